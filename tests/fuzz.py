"""
What strangers can send: a checkpoint, a data file, a server's answer, a run folder. Each loader reads broken ones, and
must make a working object of each or refuse it in one sentence.

    python tests/fuzz.py                                # 10,000 inputs for each loader: minutes
    python tests/fuzz.py config pickle --inputs 500     # some of them

An input is a small good file with a few random changes to its JSON or its bytes; `--seed` and its number decide it
alone. A failure is any other exception than UserError and OSError, a sentence that is no sentence, an object that does
not work, weights from outside the folder, more than SECONDS of CPU time or GIGABYTES of memory.
"""

import argparse
import copy
import json
import math
import os
import random
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

import data  # noqa: E402
import lmcot  # noqa: E402
from model import T5, T5Config, load_tokenizer  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.run import Run  # noqa: E402
from plumbing.server import ServedLM  # noqa: E402
from tiny import world  # noqa: E402

SECONDS, GIGABYTES = 5, 4  # that one input may take

# ------------------------------------------------------------------------------------------------ mutations

NUMBERS = (0, 1, 2, 7, -1, 96, 2**15, 2**24 - 1, 2**31, 2**63, 10**300, 0.5, -0.0, 5e-324, math.nan, math.inf)
TEXTS = ("", " ", "x", "\0", "a\r\nb", "\x1b[2J\x9b2J", "\u2028", "\u202eabc\u202c", "שלום עולם", "e" + "\u0301" * 40,
         "👩‍👩‍👧‍👦", "\ufeff", "\uffff", "İıſKﬁ", "0", "true", "float32", "I64", "../outside/x.safetensors", "..",
         "../outside/x.bin", "/etc/passwd", "C:\\x", "a/b", "%s{0}{x}", "word " * 3000, "a" * 300)  # fmt: skip
OTHERS = ([], {}, [[]], [None], [[], {}], {"": None}, [0] * 50, [""] * 50, [2**24] * 9, [-1, 2], None, True, False)
BYTES = (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"\\ud800", b"{", b"]",
         b"\n", b"-", b"9" * 30, b"NaN")  # fmt: skip

# Words that stand for what json.dumps cannot write; they are replaced when the text is made.
RAW = {
    "@lists@": lambda rng: nested(rng, "[", "]"),
    "@objects@": lambda rng: nested(rng, '{"a":', "}"),
    "@digits@": lambda rng: "9" * rng.choice((400, 4000, 5000)),
    "@surrogate@": lambda rng: rng.choice(('"\\ud800"', '"a\\udfff b"', '"\\udc00\\ud83d"')),
    "@huge@": lambda rng: rng.choice(("1e999", "-1e999", "123456789012345678901e200")),
}


def nested(rng: random.Random, left: str, right: str) -> str:
    depth = rng.choice((40, 400, rng.randrange(850, 1000), 100_000))  # Python reads about 1000
    return left * depth + "1" + right * depth


def places(value) -> list[tuple]:
    """All (container, key) of a JSON value."""
    found, todo = [], [value]
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                found.append((node, key))
                todo.append(node[key])
    return found


def mutate_value(rng: random.Random, value, words: tuple):
    """One to three changes to a JSON value: something is gone, doubled, renamed, exchanged or replaced."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        # A value that nobody expects; a copy, which later changes may reach.
        odd = copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS, tuple(RAW), words or TEXTS))))
        found = places(value)
        if not found or rng.random() < 0.02:
            return odd
        node, key = rng.choice(found)
        change = rng.choice(("drop", "double", "rename", "exchange", "near", "odd", "odd", "odd"))
        if change == "drop":
            del node[key]
        elif change == "double" and isinstance(node, list):
            node[key:key] = [node[key]] * rng.choice((1, 2, 40))
        elif change == "rename" and isinstance(node, dict):
            node[rng.choice((*TEXTS, *words, key + "x"))] = node.pop(key)
        elif change == "exchange":
            other, place = rng.choice(found)
            node[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(node[key])
        elif change == "near" and type(node[key]) in (int, float):
            node[key] += rng.choice((-1, 1, 8, 0.5, 2**20))
        else:
            node[key] = odd
    return value


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    """One to four changes to bytes: a piece is gone, repeated or replaced, or all from there on is gone."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        a = rng.randrange(len(raw) + 1)
        b = min(len(raw), a + rng.choice((1, 1, 2, 8, 100)))
        piece = rng.choice((b"", raw[a:b] * 3, raw[a:b] * 100, rng.choice(BYTES), rng.randbytes(b - a)))
        raw = raw[:a] + piece + (raw[b:] if rng.random() < 0.85 else b"")
    return raw


def mutate_json(rng: random.Random, raw: bytes, words: tuple = ()) -> bytes:
    """A JSON file, changed as a value, as bytes, or both. `words` are good values that may stand in wrong places."""
    kind = rng.random()
    if kind < 0.8:
        text = json.dumps(mutate_value(rng, json.loads(raw), words), ensure_ascii=rng.random() < 0.5)
        for word, make in RAW.items():
            while f'"{word}"' in text:
                text = text.replace(f'"{word}"', make(rng), 1)
        raw = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, raw) if kind > 0.75 else raw


def mutate_jsonl(rng: random.Random, raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    if rng.random() < 0.8:
        lines[i] = mutate_json(rng, lines[i]) + rng.choice((b"\n", b"\n", b"\n", b""))
    return b"".join(lines) if rng.random() < 0.8 else mutate_bytes(rng, b"".join(lines))


def as_jsonl(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


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


# ---- a checkpoint

CONFIG = T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)
SECRET = 7.0  # all weights of a file outside the checkpoint's folder


def checkpoint(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], Callable[[bytes], None]]:
    """A good checkpoint → its weights, and what loads it with other bytes for one of its files."""
    T5(CONFIG).init_weights(0).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    secret = {key: torch.full_like(tensor, SECRET) for key, tensor in weights.items()}
    (folder.parent / "outside").mkdir()
    save_file(secret, folder.parent / "outside" / "x.safetensors")
    torch.save(secret, folder.parent / "outside" / "x.bin")

    def attempt(raw: bytes) -> None:
        (folder / name).write_bytes(raw)
        model = T5.from_pretrained(folder, torch.float32 if len(raw) % 2 else torch.bfloat16)
        assert not any((p == SECRET).all() for p in model.parameters()), "weights from outside the folder"
        ids = torch.tensor([[5, 9, 1], [3, 1, 0]]) % model.config.vocab_size
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        assert model.generate(ids, mask, 2, 2).ids.shape[:2] == (2, 2)

    return weights, attempt


@loader
def config(folder: Path) -> Loader:
    _, attempt = checkpoint(folder, "config.json")
    base = (folder / "config.json").read_bytes()
    words = (*json.loads(base), "gated-gelu", "relu", "t5")
    return Loader([base], attempt, lambda rng, raw: mutate_json(rng, raw, words))


@loader
def index(folder: Path) -> Loader:
    weights, attempt = checkpoint(folder, "model.safetensors.index.json")
    (folder / "model.safetensors").unlink()
    names = ("a.safetensors", "b.safetensors")
    save_file(dict(list(weights.items())[::2]), folder / names[0])
    save_file(dict(list(weights.items())[1::2]), folder / names[1])
    weight_map = {key: names[i % 2] for i, key in enumerate(weights)}
    words = (*names, *weights, "config.json", str(folder.parent / "outside" / "x.safetensors"), "./a.safetensors",
             f"../{folder.name}/a.safetensors", "a.safetensors\0")  # fmt: skip
    base = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
    return Loader([base], attempt, lambda rng, raw: mutate_json(rng, raw, words))


@loader
def safetensors(folder: Path) -> Loader:
    _, attempt = checkpoint(folder, "model.safetensors")
    words = ("F32", "BF16", "F16", "F64", "I64", "BOOL", "__metadata__")

    def mutate(rng: random.Random, raw: bytes) -> bytes:
        end = 8 + int.from_bytes(raw[:8], "little")  # the header's length, the header, the numbers
        header, numbers, kind = raw[8:end], raw[end:], rng.random()
        if kind < 0.8:
            header = mutate_json(rng, header, words)
        if 0.7 < kind < 0.9:
            numbers = mutate_bytes(rng, numbers)
        length = len(header) + rng.choice((0,) * 20 + (-1, 1, 2**31, -len(header)))
        raw = length.to_bytes(8, "little") + header + numbers
        return mutate_bytes(rng, raw) if kind > 0.9 else raw

    return Loader([(folder / "model.safetensors").read_bytes()], attempt, mutate)


@loader
def pickle(folder: Path) -> Loader:
    weights, attempt = checkpoint(folder, "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    one = torch.ones(1)
    values = (torch.ones(8, dtype=torch.long), torch.ones(8, dtype=torch.complex64), one, one[0], torch.empty(0),
              one.expand(2**12, 2**24), torch.ones(64, 8)[:, 2:4], torch.eye(8).to_sparse(), one.to("meta"),
              torch.full((64, 8), math.nan), torch.nn.Parameter(torch.ones(64, 8)), 3, "x", None, [1], {"a": one},
              torch.float32, torch.ones(8, 64).T, torch.ones(64, 8).to(torch.float8_e4m3fn))  # fmt: skip

    def pickled(content, new_form: bool = True) -> bytes:
        out = BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=new_form)
        return out.getvalue()

    def mutate(rng: random.Random, raw: bytes) -> bytes:
        state = dict(weights)
        for _ in range(rng.choice((0, 0, 1, 2))):
            state[rng.choice((*weights, "lm_head.weight", "decoder.embed_tokens.weight", "", 3))] = rng.choice(values)
        raw = pickled(state if rng.random() < 0.97 else rng.choice(values), rng.random() < 0.6)
        return mutate_bytes(rng, raw) if rng.random() < 0.6 else raw

    return Loader([pickled(weights)], attempt, mutate)


TEXT = "Who directed the film Stormgate? Ann Lie was born in Oslo in 1950. So the answer is yes."


@loader
def tokenizer(folder: Path) -> Loader:
    model, special = T5(CONFIG).init_weights(0), ["<pad>", "</s>", "<unk>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([TEXT], trainer)
    unigram = Tokenizer(models.Unigram([(piece, -2.0) for piece in [*special, *sorted(set(TEXT)), "▁"]], 2))
    for each in (bpe, unigram):
        each.pre_tokenizer, each.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        each.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])

    def attempt(raw: bytes) -> None:
        (folder / "tokenizer.json").write_bytes(raw)
        lm = lmcot.LocalLM(model, load_tokenizer(folder))
        completions = lm.complete([TEXT, "", "\0 \u202e שלום e\u0301 👩‍👩‍👧‍👦 \ue000"], 2)
        assert all(completion.text.encode() is not None for completion in completions)
        assert lm.count_tokens(TEXT) < 10_000

    words = (*special, "BPE", "Unigram", "WordLevel", "Metaspace", "ByteLevel", "Sequence", "▁", "First", "type")
    bases = [bpe.to_str().encode(), unigram.to_str().encode()]
    return Loader(bases, attempt, lambda rng, raw: mutate_json(rng, raw, words))


# ---- a data file

MUSIQUE = {
    "id": "2hop__1_2", "question": "Where was the maker of Vega born?", "answer": "Oslo",
    "answer_aliases": ["Kristiania"], "answerable": True,
    "question_decomposition": [{"id": 1, "paragraph_support_idx": 1}, {"paragraph_support_idx": 0}],
    "paragraphs": [{"idx": 0, "title": "Ann Lie", "paragraph_text": "A maker. Born in Oslo.", "is_supporting": True},
                   {"idx": 1, "title": "Vega", "paragraph_text": "By Ann Lie.", "is_supporting": True},
                   {"idx": 2, "title": "Noise", "paragraph_text": "Nothing.", "is_supporting": False}],
}  # fmt: skip
STRATEGYQA = {"qid": "s1", "question": "Can a fish fly?", "answer": False, "facts": ["Fish swim", "Birds fly."]}
OWN = ({"question": "Q one?", "context": "One. Two!", "answer": "yes"},
       {"id": 7, "question": "Q two?", "context": ["A b. C.", "E f."], "answer": "E", "aliases": ["e f"]})  # fmt: skip



def dataset(file: Path, bases: list[bytes], mutate: Callable) -> Loader:
    def attempt(raw: bytes) -> None:
        file.write_bytes(raw)
        for example in [*data.load(file, context="gold"), *data.load(file, context="all")]:
            prompt = lmcot.RATIONALE.format(question=example.question, context=example.context)
            assert prompt.encode() and example.answer.strip()
            assert data.exact_match(example.answer, example.answer) == 1
            assert 0 <= data.token_f1(example.question, example.answer) <= 1

    return Loader(bases, attempt, mutate)


@loader
def data_json(folder: Path) -> Loader:
    return dataset(folder / "x.json", [json.dumps(world.records("dev", size=2)).encode()], mutate_json)


@loader
def data_jsonl(folder: Path) -> Loader:
    bases = [as_jsonl(MUSIQUE, {**MUSIQUE, "id": "x"}), as_jsonl(STRATEGYQA), as_jsonl(*OWN)]
    return dataset(folder / "x.jsonl", bases, mutate_jsonl)


# ---- a server's answer, and the file that keeps such answers

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "The answer is x."}, "finish_reason": "stop"}
REPLY = json.dumps({"choices": [CHOICE], "usage": {"completion_tokens": 7}}).encode()


class Server(ThreadingHTTPServer):
    """Answers every request with `reply`."""

    daemon_threads = True
    reply = REPLY

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def ask(self, cache: Path | None = None) -> None:
        lm = ServedLM(f"http://127.0.0.1:{self.server_port}/v1", "m", cache=cache)
        lm.TRIES = 1
        for completion in lm.complete(["p0", "p1"], 5):
            assert completion.text.encode() is not None and completion.finish in ("stop", "length", "none")
        assert 0 <= lm.tokens_written < 2**53 and lm.unfinished in (0, 1, 2)


class Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # else each answer waits 40 ms

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.reply)))
        self.end_headers()
        self.wfile.write(self.server.reply)

    def log_message(self, *_):
        pass


@loader
def server_reply(folder: Path) -> Loader:
    server = Server()

    def attempt(raw: bytes) -> None:
        server.reply = raw
        server.ask()

    return Loader([REPLY], attempt)


@loader
def http_cache(folder: Path) -> Loader:
    server, cache = Server(), folder / "http_cache.jsonl"
    server.ask(cache)

    def attempt(raw: bytes) -> None:
        cache.write_bytes(raw)
        server.ask(cache)

    return Loader([cache.read_bytes()], attempt, mutate_jsonl)


# ---- a run folder


@dataclass
class Settings:
    out: str = "runs/x"
    lr: float = 3e-4
    steps: int = 10


@loader
def run_settings(folder: Path) -> Loader:
    Run(folder, Settings()).close()

    def attempt(raw: bytes) -> None:
        (folder / "settings.json").write_bytes(raw)
        Run(folder, Settings()).close()

    return Loader([(folder / "settings.json").read_bytes()], attempt)


@loader
def run_jsonl(folder: Path) -> Loader:
    with Run(folder, Settings()) as run:

        def attempt(raw: bytes) -> None:
            run.path("x.jsonl").write_bytes(raw)
            assert all("id" in row for row in run.read("x.jsonl", "id"))

        base = as_jsonl({"id": "r1", "text": "R.", "right": True}, {"id": "r2", "text": "é"})
        return Loader([base], attempt, mutate_jsonl)


# ------------------------------------------------------------------------------------------------ running


def outcome(loader: Loader, raw: bytes) -> str:
    """ "accepted", "refused", or what went wrong."""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        loader.attempt(raw)
        return "accepted"
    except (UserError, OSError) as refusal:  # what ends a script in one sentence
        text = str(refusal)
        return "refused" if text and text.isprintable() and len(text) < 1000 else f"no sentence: {text[:300]!a}"
    except BaseException as error:  # a panic in Rust is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:200]!a}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def stop(*_) -> None:
    raise RuntimeError(f"more than {SECONDS} seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loaders", nargs="*", metavar="LOADER", help=", ".join(LOADERS))
    parser.add_argument("--inputs", type=int, default=10_000, help="for each loader (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, stop)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + GIGABYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    failed = 0
    print("| loader       | inputs | accepted | refused | failures |   CPU s |")
    print("|--------------|--------|----------|---------|----------|---------|", flush=True)
    for name in given.loaders or LOADERS:
        begun, counts, kinds = time.process_time(), {"accepted": 0, "refused": 0}, {}
        with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
            folder = Path(parent) / "folder"
            folder.mkdir()
            made = LOADERS[name](folder)
            for base in made.bases:
                made.attempt(base)  # good files must pass
            for number in range(given.inputs):
                rng = random.Random(f"{given.seed} {name} {number}")
                raw = made.mutate(rng, rng.choice(made.bases))
                result = outcome(made, raw)
                if result in counts:
                    counts[result] += 1
                    continue
                kinds.setdefault(re.sub(r"\d+", "…", result)[:80], []).append(f"input {number}: {result}")
        failures = given.inputs - sum(counts.values())
        seconds = time.process_time() - begun
        print(f"| {name:<12} | {given.inputs:6} | {counts['accepted']:8} | {counts['refused']:7} | {failures:8} "
              f"| {seconds:7.1f} |", flush=True)  # fmt: skip
        for examples in kinds.values():
            print(f"    {len(examples)} × {examples[0]}", flush=True)
        failed += failures
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
