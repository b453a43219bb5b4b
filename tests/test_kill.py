"""Proofs that a killed run goes on bit-identically: the short form of kill.py, with random models and scripted ones."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

if not Path("/proc/self/stat").exists():
    pytest.skip("kill.py reads CPU times from /proc", allow_module_level=True)

import kill
import test_train_kd
import test_train_rl
from test_train_kd import student, tokenizer  # noqa: F401 (fixtures)
from test_train_rl import kd  # noqa: F401


def survives(run, out, place):
    """Kills at a moment and in a write; `run(patch, folder)` is a whole run."""

    def in_a_fork():
        with pytest.MonkeyPatch.context() as patch:
            return run(patch, Path(out))[0]

    found = kill.kill_runs(in_a_fork, out, 1, random.Random(1), place)
    assert (found["killed in a write"], found["killed at a moment"], found["folders that differ"]) == (1, 1, 0)


def test_a_killed_distillation_goes_on_bit_identically(student, tmp_path):  # noqa: F811
    settings = ["--epochs", 2, "--samples", 1, "--train-limit", 16, "--dev-limit", 8, "--test-limit", 2]
    survives(lambda patch, out: test_train_kd.start(patch, student, out, *settings), "kd", tmp_path)


def test_a_killed_refinement_goes_on_bit_identically(kd, tmp_path):  # noqa: F811
    settings = ["--reward", "standardized", "--target-kl", 1, "--eval-every", 1, "--steps", 2, "--samples", 1]
    survives(lambda patch, out: test_train_rl.start(patch, kd, out, *settings), "rl", tmp_path)


def test_ctrl_c_ends_a_process_with_130_and_says_how_to_go_on(kd, tmp_path):  # noqa: F811
    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start programs with it ignored
        with pytest.MonkeyPatch.context() as patch:
            return test_train_rl.start(patch, kd, Path("rl"))[0]

    pid = kill.start(run, tmp_path)
    while not (tmp_path / "rl" / "metrics.jsonl").exists():  # in its first step, or soon
        time.sleep(0.01)
    os.kill(pid, signal.SIGINT)
    assert kill.end(pid)[0] == 130
    said = (tmp_path / "log").read_text()
    assert said.endswith("interrupted: run the same command again to continue\n") and "Traceback" not in said
    assert kill.end(kill.start(run, tmp_path))[0] == 0


def test_a_difference_would_be_seen(tmp_path):
    def forgetful():
        Path("out").mkdir(exist_ok=True)
        kill.files.atomic_write("out/begun", "here")
        again = str(Path("out/done").exists()).lower()
        kill.files.atomic_write("out/lines.jsonl", f'{{"again": {again}}}\n')
        kill.files.atomic_write("out/done", "before its end")
        kill.files.atomic_write("out/end", "here")
        return 0

    found = kill.kill_runs(forgetful, "out", 12, random.Random(0), tmp_path)
    assert found["writes"] == 12 and found["killed in a write"] == 12 and found["folders that differ"] >= 3
