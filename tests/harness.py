"""What the tests of scripts share: commands in this process, whole runs with a random M_S and a scripted M_L, models of
FLAN-T5's form with its real tokenizer."""

import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import data
import lmcot
from lmcot import LocalLM
from model import T5, T5Config, load_tokenizer, pad_batch
from plumbing.command import run_main
from plumbing.server import Completion
from tiny import world

# A folder with real records and FLAN-T5's tokenizer, where they are at hand.
SAMPLES = Path(os.environ.get("LMCOT_SAMPLES", "no samples"))


class ScriptedLM:
    """An LM as a script: `say(prompt, n)` gives the text of the n-th sample of a prompt, 2 tokens each."""

    max_input_tokens, batch_size = 10**6, 64

    def __init__(self, say):
        self.say = say
        self.asked = []  # prompts, one for each text
        self.calls = []  # the arguments of each call that has prompts
        self.restart(0)

    def restart(self, seed):
        self.tokens_written = self.cut = self.unfinished = self.unanswered = 0

    def count_tokens(self, text):
        return len(text.split())

    def complete(self, prompts, max_new_tokens, samples=1, temperature=0.0):
        if prompts:
            self.calls.append((list(prompts), max_new_tokens, samples, temperature))
        completions = []
        for prompt in prompts:
            self.asked += [prompt] * samples
            completions += [Completion(self.say(prompt, n), "stop") for n in range(samples)]
        self.tokens_written += 2 * len(completions)
        return completions


def call(patch, main, *arguments):
    """A script's `main` as its command would run it, in this process → exit status."""
    patch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, arguments)])
    try:
        run_main(main)
    except SystemExit as end:
        return end.code
    return 0


def save_random_small(folder, tokenizer, dropout=0.1):
    """A tiny M_S, with dropout, so that what is random in training matters."""
    config = T5Config(vocab_size=tokenizer.get_vocab_size(), d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=1,
                      num_decoder_layers=1, dropout_rate=dropout)  # fmt: skip
    T5(config).init_weights(0).save_pretrained(folder, tokenizer)


def run_script(patch, script, sizes, make_large, flags, arguments):
    """Run `script.main` as its command would, on a TinyWiki of these sizes; the folder "teacher" is what make_large
    gives for the options of LocalLM.load → exit status."""
    patch.setattr(world, "SIZES", world.SIZES | sizes)
    load = LocalLM.load.__func__

    def stub_or_load(cls, place, *rest, **options):
        return make_large(**options) if str(place) == "teacher" else load(cls, place, *rest, **options)

    patch.setattr(LocalLM, "load", classmethod(stub_or_load))
    try:
        return call(patch, script.main, *(x for pair in flags.items() for x in pair), *arguments)
    finally:
        patch.setattr(LocalLM, "load", classmethod(load))


def save_flan_form(folder, seed, lr, steps, **sizes):
    """FLAN-T5-small's form, or smaller `sizes` of it, with random weights that have learned to say one sentence."""
    tokenizer = load_tokenizer(SAMPLES / "flan-t5")
    config = T5Config.from_dict(json.loads((SAMPLES / "flan-t5" / "config.json").read_text()) | sizes)
    model = T5(config).init_weights(seed).eval()
    questions = [example.question for example in data.load(SAMPLES / "hotpotqa_train_sample.json", limit=8)]
    ids, mask = pad_batch([tokenizer.encode(lmcot.COT.format(question=q, context="")).ids for q in questions])
    labels = torch.tensor([tokenizer.encode("She was born in Paris. So the answer is Paris.").ids] * len(questions))
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids, mask, model.shift_right(labels)).mT, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder, tokenizer)


def write_run(folder, settings, **logs):
    """A run folder: its settings, and a JSONL file for each log → the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, rows in logs.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_comparison(folder, questions, answers):
    """A folder as eval.py leaves it, but for its table, with the data that it is about → the folder.

    questions: (question, context, answer) of each; answers: (method, seed) → (prediction, rationale) of each."""
    names = ("question", "context", "answer")
    rows = [{"id": f"q{i}", **dict(zip(names, texts, strict=True))} for i, texts in enumerate(questions)]
    runs = []
    for (method, seed), pairs in answers.items():
        of = [{"id": f"q{i}", "prediction": p, "rationale": r, "parsed": True} for i, (p, r) in enumerate(pairs)]
        runs.append({"method": method, "seed": seed, "answers": of})
    settings = {"data": str(folder / "data.jsonl"), "split": "test", "limit": 1000, "context": "gold", "samples": 5,
                "max_new_tokens": 64}  # fmt: skip
    return write_run(folder, settings, data=rows, answers=runs)


def example_of(prompt, examples):
    """The example that M_L is asked about; questions alone may be equal."""
    return next(e for e in examples if f"Question: {e.question}\nContext: {e.context}\n" in prompt)


def lines(path):
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder):
    """The bytes of every file in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def failing_once(place, name, number, error):
    """Within it, the call of this number of a function raises an error in its stead; it must come to that."""
    original, calls = getattr(place, name), []

    def fails(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            raise error
        return original(*args, **kwargs)

    with mock.patch.object(place, name, fails):
        yield
    assert len(calls) == number


def error_of(capsys):
    """The one line on stderr that names an error; there is no traceback."""
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return line


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")


def seen_in_chromium(page, *options):
    """What the script of a page leaves as JSON in its <pre>, in headless Chromium."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--allow-file-access-from-files",
               "--virtual-time-budget=20000", "--dump-dom", f"--user-data-dir={page.parent / 'profile'}"]  # fmt: skip
    shown = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search("<pre>(.*)</pre>", shown.stdout, re.S)[1]))
