"""
What strangers can send: a checkpoint or a data file. Each loader reads broken ones, and must make a working object of
each or refuse it in one sentence.

    python tests/fuzz.py                                # 10,000 inputs for each loader: minutes
    python tests/fuzz.py config pickle --inputs 500     # some of them

An input is a small good file with a few random changes to its JSON or its bytes; `--seed` and its number decide it
alone. A failure is any other exception than UserError and OSError, a sentence that is no sentence, an object that does
not work, more than SECONDS of CPU time or GIGABYTES of memory.
"""

import argparse
import copy
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import data  # noqa: E402
import lmcot  # noqa: E402
from model import T5, T5Config  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from tiny import world  # noqa: E402

SECONDS, GIGABYTES = 5, 4  # that one input may take

# ------------------------------------------------------------------------------------------------ mutations

ODD = (0, 1, 7, -1, 96, 2**15, 2**24 - 1, 2**31, 2**63, 10**300, 0.5, 5e-324, math.nan, math.inf, "", " ", "x", "\0",
       "a\r\nb", "\x1b[2J", "\u202eabc", "שלום", "0", "true", "I64", "..", "../x", "/etc/passwd", "%s{0}{x}", "a" * 300,
       [], {}, [[]], [None], [0] * 50, [2**24] * 9, [-1, 2], None, True, False, "@lists@", "@digits@", "@surrogate@",
       "@huge@")  # fmt: skip
# Words that stand for what json.dumps cannot write; they are replaced when the text is made.
RAW = {"@lists@": "[" * 10**5 + "]" * 10**5, "@digits@": "9" * 5000, "@surrogate@": '"a\\udfff b"', "@huge@": "-1e999"}
BYTES = (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"\\ud800", b"{", b"]",
         b"\n", b"-", b"9" * 30, b"NaN")  # fmt: skip


def places(value):
    """All (container, key) of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def mutate_value(rng, value, words):
    """One to three changes to a JSON value: something is gone, doubled, renamed or replaced."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        odd = copy.deepcopy(rng.choice(rng.choice((ODD, words or ODD))))
        found = places(value)
        if not found or rng.random() < 0.02:
            return odd
        node, key = rng.choice(found)
        change = rng.choice(("drop", "double", "rename", "odd", "odd", "odd"))
        if change == "drop":
            del node[key]
        elif change == "double" and isinstance(node, list):
            node[key:key] = [node[key]] * rng.choice((1, 2, 40))
        elif change == "rename" and isinstance(node, dict):
            node[rng.choice(("", "x", key + "x", *words))] = node.pop(key)
        else:
            node[key] = odd
    return value


def mutate_bytes(rng, raw):
    """One to four changes to bytes: a piece is gone, repeated or replaced, or all from there on is gone."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        a = rng.randrange(len(raw) + 1)
        b = min(len(raw), a + rng.choice((1, 1, 2, 8, 100)))
        piece = rng.choice((b"", raw[a:b] * 3, raw[a:b] * 100, rng.choice(BYTES), rng.randbytes(b - a)))
        raw = raw[:a] + piece + (raw[b:] if rng.random() < 0.85 else b"")
    return raw


def mutate_json(rng, raw, words=()):
    """A JSON file, changed as a value, as bytes, or both. `words` are good values that may stand in wrong places."""
    kind = rng.random()
    if kind < 0.8:
        text = json.dumps(mutate_value(rng, json.loads(raw), words), ensure_ascii=rng.random() < 0.5)
        for word, meant in RAW.items():
            text = text.replace(f'"{word}"', meant)
        raw = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, raw) if kind > 0.75 else raw


# ------------------------------------------------------------------------------------------------ loaders
# A loader gets an empty folder → good files, what loads a broken one and works with it, and what breaks a good one.

CONFIG = T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)


def checkpoint(folder, name):
    """A good checkpoint → its weights, and what loads it with other bytes for one of its files."""
    T5(CONFIG).init_weights(0).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")

    def attempt(raw):
        (folder / name).write_bytes(raw)
        model = T5.from_pretrained(folder, torch.float32 if len(raw) % 2 else torch.bfloat16)
        ids = torch.tensor([[5, 9, 1], [3, 1, 0]]) % model.config.vocab_size
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        assert model.generate(ids, mask, 2, 2).ids.shape[:2] == (2, 2)

    return weights, attempt


def config(folder):
    _, attempt = checkpoint(folder, "config.json")
    base = (folder / "config.json").read_bytes()
    words = (*json.loads(base), "gated-gelu", "relu", "t5")
    return [base], attempt, lambda rng, raw: mutate_json(rng, raw, words)


def safetensors(folder):
    _, attempt = checkpoint(folder, "model.safetensors")

    def mutate(rng, raw):
        if rng.random() < 0.5:
            return mutate_bytes(rng, raw)
        end = 8 + int.from_bytes(raw[:8], "little")  # the header's length, the header, the numbers
        header = mutate_json(rng, raw[8:end], ("F32", "BF16", "F64", "I64", "BOOL", "__metadata__"))
        return len(header).to_bytes(8, "little") + header + raw[end:]

    return [(folder / "model.safetensors").read_bytes()], attempt, mutate


def pickle(folder):
    weights, attempt = checkpoint(folder, "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    one = torch.ones(1)
    values = (torch.ones(8, dtype=torch.long), torch.ones(8, dtype=torch.complex64), one, one[0], torch.empty(0),
              one.expand(2**12, 2**24), torch.ones(64, 8)[:, 2:4], one.to("meta"), torch.full((64, 8), math.nan),
              torch.nn.Parameter(torch.ones(64, 8)), 3, "x", None, [1], {"a": one}, torch.float32,
              torch.ones(8, 64).T, torch.ones(64, 8).to(torch.float8_e4m3fn))  # fmt: skip

    def pickled(content, new_form=True):
        out = BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=new_form)
        return out.getvalue()

    def mutate(rng, raw):
        state = dict(weights)
        for _ in range(rng.choice((0, 0, 1, 2))):
            state[rng.choice((*weights, "lm_head.weight", "decoder.embed_tokens.weight", ""))] = rng.choice(values)
        raw = pickled(state if rng.random() < 0.97 else rng.choice(values), rng.random() < 0.6)
        return mutate_bytes(rng, raw) if rng.random() < 0.6 else raw

    return [pickled(weights)], attempt, mutate


def records(folder):
    def attempt(raw):
        (folder / "x.json").write_bytes(raw)
        for context in ("gold", "all"):
            for example in data.load(folder / "x.json", context=context):
                prompt = lmcot.RATIONALE.format(question=example.question, context=example.context)
                assert prompt.encode() and example.answer.strip()
                assert data.exact_match(example.answer, example.answer) == 1
                assert 0 <= data.token_f1(example.question, example.answer) <= 1

    strategyqa = {"qid": "s1", "question": "Can a fish fly?", "answer": False, "facts": ["Fish swim", "Birds fly."]}
    own = {"id": 7, "question": "Q two?", "context": ["A b. C.", "E f."], "answer": "E", "aliases": ["e f"]}
    forms = [world.records("dev", size=2), [strategyqa, own]]
    return [json.dumps(form).encode() for form in forms], attempt, mutate_json


LOADERS = {make.__name__: make for make in (config, safetensors, pickle, records)}

# ------------------------------------------------------------------------------------------------ running


def outcome(attempt, raw):
    """ "accepted", "refused", or what went wrong."""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        attempt(raw)
        return "accepted"
    except (UserError, OSError) as refusal:  # what ends a script in one sentence
        text = str(refusal)
        return "refused" if text and text.isprintable() and len(text) < 1000 else f"no sentence: {text[:300]!a}"
    except BaseException as error:  # a panic in Rust is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:200]!a}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def stop(*_):
    raise RuntimeError(f"more than {SECONDS} seconds")


def main():
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
    for name in given.loaders or LOADERS:
        counts = {"accepted": 0, "refused": 0, "failures": 0}
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            bases, attempt, mutate = LOADERS[name](Path(folder))
            for base in bases:
                attempt(base)  # good files must pass
            for number in range(given.inputs):
                rng = random.Random(f"{given.seed} {name} {number}")
                result = outcome(attempt, mutate(rng, rng.choice(bases)))
                if result not in counts:
                    print(f"    input {number}: {result}")
                    result = "failures"
                counts[result] += 1
        print(f"{name}: {counts}", flush=True)
        failed += counts["failures"]
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
