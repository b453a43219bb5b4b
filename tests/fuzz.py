"""
What files of strangers can do: each loader reads thousands of broken ones, and must make a valid object of each or
refuse it in one sentence.

    python tests/fuzz.py                                # 10,000 inputs for each loader: minutes
    python tests/fuzz.py config pickle --inputs 500     # some of them

An input is a small good file with a few mutations: bits and pieces of its bytes, keys and values of its JSON. `--seed`
and an input's number decide it alone. A failure is any other exception than UserError, a sentence that is none, an
object that does not work, more than SECONDS of CPU time or MEGABYTES, a file opened outside the loader's folder, the
end of the process. Failing inputs are kept in `--keep`; the exit status says whether there are any.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

import data  # noqa: E402
import lmcot  # noqa: E402
import rewards  # noqa: E402
import train_kd  # noqa: E402
import train_rl  # noqa: E402
from lmcot import LocalLM  # noqa: E402
from model import T5, T5Config, load_tokenizer  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import read_jsonl  # noqa: E402
from plumbing.run import Run  # noqa: E402
from plumbing.server import ServedLM  # noqa: E402

SECONDS, MEGABYTES = 5, 500  # of CPU time that one input may take; by which a loader's process may grow
PATIENCE = 600  # seconds of wall time after which a process that gets no further is ended

# ------------------------------------------------------------------------------------------------ mutations

# Some stand for what json.dumps cannot write, and become that afterwards.
RAW = {
    "@deep@": lambda rng: nested(rng.choice((40, 400, rng.randrange(850, 1000), 100_000)), rng.random() < 0.5),
    "@digits@": lambda rng: "-" * rng.randrange(2) + "9" * rng.choice((400, 4000, 5000)),
    "@surrogate@": lambda rng: rng.choice(('"\\ud800"', '"a\\udfff b"', '"\\udc00\\ud83d"')),
    "@huge@": lambda rng: rng.choice(("1e999", "-1e999", "1e-999", "0e99999", "123456789012345678901e200")),
}
NUMBERS = (0, 1, 2, 3, -1, 7, 96, 127, 2**15, 2**24 - 1, 2**24, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**300, 0.5,
           -0.0, 0.999, 1e308, 5e-324, math.nan, math.inf, -math.inf)  # fmt: skip
TEXTS = ("", " ", "x", "\0", "a\0b", "\n", "a\r\nb", "\x1b[2J\x9b2J", "\u2028", "\u202eabc\u202c", "שלום עולם",
         "مرحبا", "e" + "\u0301" * 40, "👩‍👩‍👧‍👦😀", "\ufeff", "\uffff", "﷽" * 9, "İıſKﬁ", "0", "true", "null", "yes",
         "the", "float32", "I64", "F8_E4M3", "../outside/canary.safetensors", "..", ".", "/etc/passwd", "C:\\x", "a/b",
         "~", "%s{0}{x}", "<script>", "word " * 3000, "a" * 300, " " * 5000)  # fmt: skip
CONTAINERS = ([], {}, [[]], [None], [[], {}], {"": None}, {"a": {"a": {}}}, [0] * 50, [""] * 50, [2**24] * 9, [-1, 2])


def nested(depth: int, objects: bool) -> str:
    return '{"a":' * depth + "1" + "}" * depth if objects else "[" * depth + "]" * depth


def odd(rng: random.Random):
    """Some value that nobody expects, or just another one."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NUMBERS)
    if kind < 0.7:
        return rng.choice(TEXTS)
    if kind < 0.85:
        return copy.deepcopy(rng.choice(CONTAINERS))  # which later changes must not reach
    return rng.choice((None, True, False, *RAW))


def places(value) -> list[tuple]:
    """All (container, key) of a JSON value."""
    found, todo = [], [value]
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            found += [(node, key) for key in keys]
            todo += [node[key] for key in keys]
    return found


def mutate_value(rng: random.Random, value, words: tuple = ()):
    """One to three changes to a JSON value: gone, doubled, renamed, exchanged, replaced."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = places(value)
        if not found or rng.random() < 0.02:
            return odd(rng)
        node, key = rng.choice(found)
        change = rng.choice(("drop", "double", "rename", "exchange", "odd", "odd", "odd", "near"))
        if change == "drop":
            del node[key]
        elif change == "double" and isinstance(node, list):
            node[key:key] = [node[key]] * rng.choice((1, 2, 40))
        elif change == "rename" and isinstance(node, dict):
            node[rng.choice((*TEXTS, *words, key + "x"))] = node.pop(key)
        elif change == "exchange":
            other, place = rng.choice(found)
            node[key], other[place] = json.loads(json.dumps([other[place], node[key]]))  # copies: no circles
        elif change == "near" and type(node[key]) in (int, float):
            node[key] += rng.choice((-1, 1, 8, 0.5, 2**20))
        elif words and rng.random() < 0.3:
            node[key] = rng.choice(words)
        else:
            node[key] = odd(rng)
    return value


def mutate_text(rng: random.Random, text: str) -> str:
    """A key twice, and what stands for other things made these."""
    keys = list(re.finditer(r'"(\w+)": ', text))
    if keys and rng.random() < 0.1:
        key = rng.choice(keys)
        text = text[: key.start()] + key.group() + json.dumps(odd(rng)) + ", " + text[key.start() :]
    for word, make in RAW.items():
        while f'"{word}"' in text:
            text = text.replace(f'"{word}"', make(rng), 1)
    return text


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    """One to four changes to bytes: bits, pieces that are gone or doubled or moved, strange bytes, an early end."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        a = rng.randrange(len(raw) + 1)
        b = min(len(raw), a + rng.choice((1, 1, 2, 8, 100)))
        change = rng.randrange(7)
        if change == 0 and raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif change == 1:
            del raw[a:]
        elif change == 2:
            del raw[a:b]
        elif change == 3:
            raw[a:a] = raw[a:b] * rng.choice((1, 3, 100))
        elif change == 4:
            raw[a:b] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\xed\xa0\x80", b"\xef\xbb\xbf",
                                   b'"', b"\\ud800", b"{", b"]", b"\n", b"\r", b"-", b"9" * 30, b"NaN"))  # fmt: skip
        elif change == 5:
            raw[a:b] = rng.randbytes(b - a)
        elif change == 6:
            c = rng.randrange(len(raw) + 1)
            raw[a:a] = raw[c : c + 20]
    return bytes(raw)


def mutate_json(rng: random.Random, raw: bytes, words: tuple = ()) -> bytes:
    """A JSON file, mutated as a value, as bytes, or both."""
    kind = rng.random()
    if kind < 0.8:
        value = mutate_value(rng, json.loads(raw), words)
        raw = mutate_text(rng, json.dumps(value, ensure_ascii=rng.random() < 0.5)).encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, raw) if kind > 0.75 else raw


def mutate_jsonl(rng: random.Random, raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    if rng.random() < 0.8:
        lines[i] = mutate_json(rng, lines[i]) + b"\n" * (rng.random() < 0.95)
    return b"".join(lines) if rng.random() < 0.8 else mutate_bytes(rng, b"".join(lines))


# ------------------------------------------------------------------------------------------------ loaders


@dataclass
class Loader:
    """`bases`: good files. `attempt` gets the bytes of a broken one, loads it, and works with what came of it."""

    bases: list[bytes]
    attempt: Callable[[bytes], object]
    mutate: Callable[[random.Random, bytes], bytes] = mutate_json


LOADERS: dict[str, Callable[[Path], Loader]] = {}


def loader(make: Callable[[Path], Loader]) -> Callable[[Path], Loader]:
    LOADERS[make.__name__] = make
    return make


CONFIG = T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)
CANARY = 7.0  # the weights of a checkpoint that no index may reach


def works(model: T5) -> None:
    assert not any(bool((p == CANARY).all()) and p.numel() > 8 for p in model.parameters()), "read outside its folder"
    ids = torch.tensor([[5, 9, 1], [3, 1, 0]]) % model.config.vocab_size
    assert model.generate(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]), 2, 2).ids.shape[:2] == (2, 2)


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    T5(CONFIG).init_weights(0).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@loader
def config(folder: Path) -> Loader:
    checkpoint(folder)
    file = folder / "config.json"
    base = file.read_bytes()
    words = tuple(json.loads(base)) + ("gated-gelu", "relu", "t5")

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        works(T5.from_pretrained(folder))

    return Loader([base], attempt, lambda rng, raw: mutate_json(rng, raw, words))


@loader
def index(folder: Path) -> Loader:
    weights = checkpoint(folder)
    (folder / "model.safetensors").unlink()
    outside = folder.parent / "outside"
    outside.mkdir()
    save_file({key: torch.full_like(t, CANARY) for key, t in weights.items()}, outside / "canary.safetensors")
    names = ("a.safetensors", "b.safetensors", "c.bin")
    for i, name in enumerate(names):
        part = dict(list(weights.items())[i::3])
        torch.save(part, folder / name) if name.endswith(".bin") else save_file(part, folder / name)
    weight_map = {key: names[i % 3] for i, key in enumerate(weights)}
    words = (*names, *weights, "config.json", str(outside / "canary.safetensors"), "./a.safetensors",
             "A.safetensors", "../outside/canary.safetensors", f"../{folder.name}/a.safetensors", "a.safetensors\0",
             "a" * 300)  # fmt: skip
    file = folder / "model.safetensors.index.json"

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        works(T5.from_pretrained(folder))

    base = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
    return Loader([base], attempt, lambda rng, raw: mutate_json(rng, raw, words))


@loader
def safetensors(folder: Path) -> Loader:
    checkpoint(folder)
    file = folder / "model.safetensors"

    def mutate(rng: random.Random, raw: bytes) -> bytes:
        end = 8 + int.from_bytes(raw[:8], "little")
        header, body, kind = raw[8:end], raw[end:], rng.random()
        if kind < 0.8:
            header = mutate_json(rng, header, ("F32", "BF16", "F16", "F64", "I64", "BOOL", "__metadata__"))
        if 0.7 < kind < 0.9:
            body = mutate_bytes(rng, body)
        length = len(header) + (rng.choice((-1, 1, 2**31, 2**62, -len(header))) if rng.random() < 0.05 else 0)
        raw = length.to_bytes(8, "little") + header + body
        return mutate_bytes(rng, raw) if kind > 0.9 else raw

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        works(T5.from_pretrained(folder, torch.float32 if len(raw) % 2 else torch.bfloat16))

    return Loader([file.read_bytes()], attempt, mutate)


def pickled(content, new: bool) -> bytes:
    out = BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


@loader
def pickle(folder: Path) -> Loader:
    weights = checkpoint(folder)
    (folder / "model.safetensors").unlink()
    file, one = folder / "pytorch_model.bin", torch.ones(1)
    values = (torch.ones(8, dtype=torch.long), torch.ones(8).bool(), torch.ones(8, dtype=torch.complex64), one, one[0],
              torch.empty(0), torch.empty(0, 2**40), one.expand(2**12, 2**24), one.expand(2**31, 2**31),
              torch.ones(64, 8)[:, 2:4], torch.eye(8).to_sparse(), torch.eye(8).to_sparse_csr(), one.to("meta"),
              torch.full((64, 8), math.nan), torch.quantize_per_tensor(torch.ones(64, 8), 0.1, 0, torch.qint8),
              torch.nn.Parameter(torch.ones(64, 8)), torch.Size([1]), 3, 10**30, "x", None, [1], {"a": one}, b"x",
              torch.float32, {1, 2}, torch.ones(8, 64).T, torch.ones(64, 8, dtype=torch.float8_e4m3fn))  # fmt: skip

    def mutate(rng: random.Random, raw: bytes) -> bytes:
        kind, new = rng.random(), rng.random() < 0.6
        if kind < 0.5:  # another content
            state = dict(weights)
            for _ in range(rng.choice((0, 1, 1, 2))):
                key = rng.choice((*weights, "lm_head.weight", "decoder.embed_tokens.weight", *TEXTS, 3, None))
                state[key] = rng.choice(values)
            if rng.random() < 0.1:
                state.pop(rng.choice(list(state)))
            raw = pickled(state if rng.random() < 0.97 else rng.choice(values), new)
        else:
            raw = pickled(weights, new)
        if 0.35 < kind < 0.8 and new:  # another program in the same archive
            members = {}
            with zipfile.ZipFile(BytesIO(raw)) as archive:
                for name in archive.namelist():
                    members[name] = archive.read(name)
                    if name.endswith("data.pkl") or rng.random() < 0.02:
                        members[name] = mutate_bytes(rng, members[name])
            out = BytesIO()
            packing = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
            with zipfile.ZipFile(out, "w", packing) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            return out.getvalue()
        return mutate_bytes(rng, raw) if kind > 0.35 else raw

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        works(T5.from_pretrained(folder, torch.float32 if len(raw) % 2 else torch.bfloat16))

    return Loader([b""], attempt, mutate)


WORDS = "Who directed the film Stormgate? Ann Lie was born in Oslo in 1950. So the answer is yes."


@loader
def tokenizer(folder: Path) -> Loader:
    model = T5(CONFIG).init_weights(0)
    special = ["<pad>", "</s>", "<unk>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    unigram = Tokenizer(models.Unigram([(piece, -2.0) for piece in [*special, *sorted(set(WORDS)), "▁"]], 2))
    word = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS.split()[:9])}, unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([WORDS], trainer)
    word.add_special_tokens(special)
    for one in (bpe, unigram, word):
        one.pre_tokenizer = pre_tokenizers.Whitespace() if one is word else pre_tokenizers.Metaspace()
        one.decoder = decoders.Metaspace()
        one.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    file = folder / "tokenizer.json"
    words = (*special, "BPE", "Unigram", "WordLevel", "WordPiece", "Metaspace", "ByteLevel", "Sequence", "▁", "First",
             "type")  # fmt: skip

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        lm = LocalLM(model, load_tokenizer(folder))
        texts = lm.complete([WORDS, "", "\0 \u202e שלום e\u0301 👩‍👩‍👧‍👦 \ue000"], 2)
        assert all(isinstance(completion.text, str) for completion in texts) and lm.count_tokens(WORDS) < 10_000

    bases = [one.to_str().encode() for one in (bpe, unigram, word)]
    return Loader(bases, attempt, lambda rng, raw: mutate_json(rng, raw, words))


RECORD = {
    "_id": "r1", "question": "Where was the maker of Vega born?", "answer": "Oslo", "type": "bridge",
    "supporting_facts": [["Vega", 0], ["Ann Lie", 1]],
    "context": [["Noise", ["Nothing here.", " "]], ["Ann Lie", ["A maker.", " Born in Oslo."]],
                ["Vega", ["By Ann Lie."]]],
}  # fmt: skip
MUSIQUE = {
    "id": "2hop__1_2", "question": "Where was the maker of Vega born?", "answer": "Oslo",
    "answer_aliases": ["Kristiania"], "answerable": True,
    "question_decomposition": [{"id": 1, "paragraph_support_idx": 1}, {"paragraph_support_idx": 0}],
    "paragraphs": [{"idx": 0, "title": "Ann Lie", "paragraph_text": "A maker. Born in Oslo.", "is_supporting": True},
                   {"idx": 1, "title": "Vega", "paragraph_text": "By Ann Lie.", "is_supporting": True},
                   {"idx": 2, "title": "Noise", "paragraph_text": "Nothing.", "is_supporting": False}],
}  # fmt: skip
STRATEGY = {"qid": "s1", "question": "Can a fish fly?", "answer": False, "facts": ["Fish swim", "Birds fly."]}
OWN = [{"question": "Q one?", "context": "One. Two!", "answer": "yes"},
       {"id": 7, "question": "Q two?", "context": ["A b. C.", "E f."], "answer": "E", "aliases": ["e f"]}]  # fmt: skip


def dataset(file: Path, bases: list[bytes], mutate: Callable = mutate_json) -> Loader:
    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        for context in ("gold", "all"):
            for e in data.load(file, context=context):
                prompt = lmcot.RATIONALE.format(question=e.question, context=e.context)
                assert prompt.encode() and e.id and len(e.supporting_sentences) == len(e.supporting_facts)
                assert e.answer.strip() and data.exact_match(e.answer, e.answers) == 1 and isinstance(e.type, str)
                assert 0 <= data.token_f1(e.question, e.answers) <= 1

    return Loader(bases, attempt, mutate)


def as_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@loader
def hotpotqa(folder: Path) -> Loader:
    return dataset(folder / "x.json", [json.dumps([RECORD, {**RECORD, "_id": "r2"}]).encode()])


@loader
def musique(folder: Path) -> Loader:
    return dataset(folder / "x.jsonl", [as_jsonl([MUSIQUE, {**MUSIQUE, "id": "x"}])], mutate_jsonl)


@loader
def strategyqa(folder: Path) -> Loader:
    return dataset(folder / "x.json", [json.dumps([STRATEGY]).encode()])


@loader
def own_jsonl(folder: Path) -> Loader:
    return dataset(folder / "x.jsonl", [as_jsonl(OWN)], mutate_jsonl)


@loader
def http_cache(folder: Path) -> Loader:
    file, prompts = folder / "http_cache.jsonl", [f"p{i}" for i in range(3)]
    completion = {"text": "said", "tokens": 3, "finish": "stop"}

    def complete(asked: list[str]) -> list[str]:
        lm = ServedLM("http://127.0.0.1:1/v1", "m", concurrency=1, cache=file)

        def ask(key: str, body: dict) -> None:  # in place of the server
            asked.append(key)
            lm.answers[key] = {"key": key, **completion}

        lm.ask = ask
        texts = lm.complete(prompts, 5)
        assert lm.tokens_written >= 0 and lm.unfinished in range(4)
        return texts

    complete(keys := [])

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        assert all(completion.text.encode() or True for completion in complete([]))

    return Loader([as_jsonl([{"key": key, **completion} for key in keys])], attempt, mutate_jsonl)


@loader
def run_jsonl(folder: Path) -> Loader:
    file = folder / "rationales.jsonl"
    rationale = {"id": "r1", "question": "Q?", "rationale": "R.", "prediction": "a", "parsed": True, "tokens": 3}
    answers = {"method": "CoT", "seed": 0, "seconds": 1.5, "tokens": 9, "answers": [{"id": "r1", "prediction": "a"}]}

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        assert all(isinstance(row, dict) for row in read_jsonl(file))

    return Loader([as_jsonl([rationale, rationale]), as_jsonl([answers])], attempt, mutate_jsonl)


@loader
def settings(folder: Path) -> Loader:
    file = folder / "settings.json"
    (folder / "model").mkdir()
    good = train_kd.Settings(rationales=str(folder))
    with Run(folder.with_name("made"), good):
        base = (folder.with_name("made") / "settings.json").read_bytes()
    loads = (lambda: Run(folder, good).close(), lambda: train_rl.distilled(str(folder)),
             lambda: train_kd.taken_over(good))  # fmt: skip

    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        refusals = []
        for load in loads:
            try:
                load()
            except UserError as refusal:
                refusals.append(refusal)
        for refusal in refusals:
            check(refusal)
        if len(refusals) == len(loads):
            raise refusals[0]

    return Loader([base], attempt, lambda rng, raw: mutate_json(rng, raw, tuple(json.loads(base))))


@loader
def server_reply(folder: Path) -> Loader:
    lm = ServedLM("http://127.0.0.1:1/v1", "m")
    choice = {"index": 0, "message": {"role": "assistant", "content": "The answer is x."}, "finish_reason": "stop"}
    base = json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode()

    def attempt(raw: bytes) -> None:
        try:
            answer = lm.read(raw.decode(errors="replace"))
        except HTTPException as refusal:  # which ServedLM tries again, and shows
            raise UserError(lm.shown(str(refusal))) from None
        assert answer["text"].encode() is not None and answer["tokens"] >= 0 and json.dumps(answer)

    return Loader([base], attempt)


if (ROOT / "lab" / "ratings.py").exists():
    sys.path.insert(0, str(ROOT / "lab"))
    import ratings

    @loader
    def rating_sheet(folder: Path) -> Loader:
        file, items = folder / "ratings-ann.csv", ["krwpa", "bmtxz", "qqlfo"]
        head, row = ("item", "question", *rewards.ASPECTS), ("Q?", *map(str, (1, 2, 3, 4, 5, 1, "", 3)))
        base = "\r\n".join(",".join(cells) for cells in (head, *((item, *row) for item in items))).encode()

        def mutate(rng: random.Random, raw: bytes) -> bytes:
            cells = re.split(rb"(,|\r\n)", raw)
            for _ in range(rng.choice((0, 1, 2))):
                cell = rng.choice((*TEXTS, *NUMBERS, *items, ",", '"', '""', ";", "\t", "\r", "=1+1", "５", " 3 "))
                cells[rng.randrange(len(cells))] = str(cell).encode()
            return mutate_bytes(rng, b"".join(cells)) if rng.random() < 0.5 else b"".join(cells)

        def attempt(raw: bytes) -> None:
            file.write_bytes(raw)
            values = ratings.read_ratings(file, items)
            assert values.shape == (3, 8) and all(math.isnan(v) or v in range(1, 6) for v in values.flatten().tolist())

        return Loader([base], attempt, mutate)


# ------------------------------------------------------------------------------------------------ running


class Hang(BaseException):
    pass


def check(refusal: UserError) -> None:
    text = str(refusal)
    assert text and text.isprintable() and len(text) < 1000, f"no sentence: {text[:300]!r}"


def broken(name: str, bases: list[bytes], mutate: Callable, seed: int, number: int) -> bytes:
    rng = random.Random(f"{seed} {name} {number}")
    return mutate(rng, rng.choice(bases))


def work(todo: list[tuple[str, range]], seed: int, now, pipe) -> None:
    """In a process of its own: sends (loader, accepted, refused, failures, megabytes, CPU seconds) as each is done;
    `now` is the number of the input at work."""
    torch.set_num_threads(1)
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    allowed, opened = [], []

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and allowed and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(tuple(allowed)):
                opened.append(path)

    def stop(*_) -> None:
        raise Hang(f"more than {SECONDS} seconds")

    sys.addaudithook(hook)
    signal.signal(signal.SIGPROF, stop)
    elsewhere = (sys.prefix, sys.base_prefix, ROOT, os.devnull)  # modules that are loaded late
    for name, numbers in todo:
        allowed.clear()
        accepted, refused, failures, now.value = 0, 0, [], -1
        begun = time.process_time()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
            folder = Path(parent) / "folder"
            folder.mkdir()
            made = LOADERS[name](folder)
            for base in filter(None, made.bases):
                made.attempt(base)  # good files must pass
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + 2**32, resource.RLIM_INFINITY))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            allowed += map(os.path.realpath, (folder, *elsewhere))
            for number in numbers:
                now.value = number
                raw = broken(name, made.bases, made.mutate, seed, number)
                opened.clear()
                os.dup2(null, 2)  # what libraries say about their panics
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    try:
                        made.attempt(raw)
                        accepted += 1
                    except UserError as refusal:
                        check(refusal)
                        refused += 1
                    assert not opened, f"opened {opened[0]}"
                except BaseException as error:  # a panic in Rust is no Exception
                    where = error.__traceback__
                    while where.tb_next:
                        where = where.tb_next
                    place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
                    failures.append((number, f"{type(error).__name__} at {place}: {str(error)[:200]}", raw))
                signal.setitimer(signal.ITIMER_PROF, 0)
                os.dup2(stderr, 2)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if grown > MEGABYTES:
            failures.append((numbers[-1], f"the process has grown by {grown:.0f} MB", b""))
        pipe.send((name, accepted, refused, failures, grown, time.process_time() - begun))


def address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def fuzz(names: list[str], inputs: int, seed: int):
    """Runs loaders → for each its row of the table. A process that dies or hangs costs the input at which it was."""
    spawn = multiprocessing.get_context("spawn")  # torch does not work in a forked process
    todo, lost = [(name, range(inputs)) for name in names], []
    while todo:
        now, (receive, send) = spawn.Value("l", 0), spawn.Pipe(False)
        process = spawn.Process(target=work, args=(todo, seed, now, send))
        process.start()
        send.close()
        seen, since = 0, time.monotonic()
        while todo:
            if receive.poll(0.5):
                try:
                    name, accepted, refused, failures, grown, seconds = receive.recv()
                except EOFError:
                    break
                yield {"loader": name, "inputs": inputs, "accepted": accepted, "refused": refused, "MB": grown,
                       "failures": lost + failures, "seconds": seconds}  # fmt: skip
                todo, lost = todo[1:], []
            if now.value != seen:
                seen, since = now.value, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                process.kill()
        process.join()
        if todo and process.exitcode == 1:
            raise RuntimeError(f"{todo[0][0]}: a good file does not pass, or a mutation failed: see above")
        if todo:  # what was accepted and refused before is not known
            lost.append((now.value, f"the process hung or died (exit code {process.exitcode})", b""))
            name, numbers = todo[0]
            todo[0] = name, range(now.value + 1, numbers.stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loaders", nargs="*", metavar="LOADER", help=", ".join(LOADERS))
    parser.add_argument("--inputs", type=int, default=10_000, help="for each loader (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for failing inputs")
    given = parser.parse_args()
    if unknown := set(given.loaders) - set(LOADERS):
        parser.error(f"no such loader: {', '.join(unknown)} (there are {', '.join(LOADERS)})")
    print(f"| {'loader':<12} | inputs | accepted | refused | failures |   CPU s | grown by, MB |\n"
          "|--------------|--------|----------|---------|----------|---------|--------------|", flush=True)  # fmt: skip
    failed = 0
    for row in fuzz(given.loaders or list(LOADERS), given.inputs, given.seed):
        print("| {loader:<12} | {inputs:6} | {accepted:8} | {refused:7} | {0:8} | {seconds:7.1f} | {MB:12.0f} |".format(
            len(row["failures"]), **row), flush=True)  # fmt: skip
        kinds = {}
        for number, text, raw in row["failures"]:
            if given.keep and raw:
                given.keep.mkdir(parents=True, exist_ok=True)
                (given.keep / f"{row['loader']}-{number}").write_bytes(raw)
            kinds.setdefault(re.sub(r"\d+", "…", text)[:80], []).append(f"input {number}: {text!a}")
        for examples in kinds.values():
            print(f"    {len(examples)} × {examples[0]}", flush=True)
        failed += len(row["failures"])
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
