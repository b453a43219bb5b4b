"""benchmark.py still runs, at the smallest sizes, and both sides do the same work: ids, texts and losses agree."""

import json
import re
import subprocess
import sys

import benchmark
import harness
import peer
import pytest
import stages

import data
import lmcot
import train_kd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    benchmark.make_flan(benchmark.SMALLEST, folder := tmp_path_factory.mktemp("flan"))
    return folder


@pytest.mark.parametrize("row", [row for row in benchmark.ROWS if row is not benchmark.start], ids=lambda r: r.__name__)
def test_both_sides_of_a_row_run_and_agree(row, folder):
    sides = ["ours", "peer"] if benchmark.ROWS[row][1] == "transformers" else ["ours"]
    agreed, made = zip(*((agreed, run()) for agreed, run in (row(side, benchmark.SMALLEST, folder) for side in sides)),
                       strict=True)  # fmt: skip
    assert all(each[benchmark.ROWS[row][2]] > 0 for each in made)
    assert benchmark.agree(agreed[0], agreed[-1])
    if row in (benchmark.greedy, benchmark.consistency_flan, benchmark.consistency_tiny):
        assert len({i for ids in agreed[0] for i in ids}) >= 5, "greedy ids that tell nothing"


def test_the_command_prints_a_ratio_of_two_processes():
    command = [sys.executable, benchmark.__file__, "--smallest", "greedy", "ppo", "profile", "method", "shares"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\| greedy.* tokens/s +\|.*\| transformers \d\S+ +\| \d+\.\d+ × \[.* ×", out), out
    assert re.search(r"\| PPO.*--trl-python", out), out
    assert len(re.findall(r"\|( \d+% +\|){3} -?\d+% +\|", out)) == 5, out
    assert re.search(r"\| the whole method +\|\n.*\n\| left out.*--trl-python", out), out
    for script, part in [("train_kd", "ask: M_L writes"), ("train_rl", "rollout"), ("eval", "evaluate: M_L writes")]:
        assert re.search(rf"\| {script}.py +\| all .*\n(\| +\|.*\n)*\| +\| {part} +\| +\d+\.\d +\| \d+ %", out), out


def test_a_part_does_not_count_the_parts_within_it():
    times = iter([0.0, 3.0, 4.0, 9.0, 10.0, 12.0])
    clock = stages.Clock(lambda: next(times))
    inner = clock.timed(lambda lm: lm, "of {}".format)  # from 4 to 9
    outer = clock.timed(lambda: inner("M_L"), "ask")  # from 3 to 10
    assert outer() == "M_L"
    clock.credit()
    assert clock.seconds == {"start": 3.0, "ask": 2.0, "ask: of M_L": 5.0, "rest": 2.0}


def test_stages_add_up_the_parts_of_three_scripts():
    kd = {"start": 1, "ask": 2, "ask: M_L writes": 3, "updates": 4, "rest": 5, "evaluate: M_S writes": 6}
    rl = {"start": 10, "rollout": 20, "M_L writes": 30, "evaluate": 40}
    last = {"start": 100, "evaluate: M_L writes": 200, "rest": 300}
    found = stages.stages_of({"kd": {"parts": kd}, "rl": {"parts": rl}, "eval": {"parts": last}})
    assert found == {"start": 111, "ask": 5, "distil": 9, "refine": 50, "evaluate": 546}


def test_the_peer_writes_what_we_write():
    models = lmcot.Models(decode_batch_size=2)
    examples = data.load("tiny", "test", 4)
    prompts = lmcot.fill(lmcot.RATIONALE, lmcot.load_small(models, models.small), examples)
    prompts = [*prompts, prompts[0]]
    ours, theirs = lmcot.load_small(models, models.small), peer.PeerLM.load(models.small, models)
    for limit in (8, 64):
        completions = ours.complete(prompts, limit)
        assert theirs.complete(prompts, limit) == completions
    assert len(set(completions)) == 4
    assert theirs.tokens_written == ours.tokens_written
    assert theirs.unfinished == ours.unfinished
    assert 0 < ours.unfinished < 8, "all of them are cut, or none"
    assert [theirs.count_tokens(prompt) for prompt in prompts] == [ours.count_tokens(prompt) for prompt in prompts]
    sampled = theirs.complete(prompts[:2], 8, 3, 1.0)
    assert len(sampled) == 6
    assert len(set(sampled)) > 2


def test_the_peer_distils_as_train_kd_does(monkeypatch, tmp_path):
    flags = ["--train-limit", 24, "--dev-limit", 4, "--test-limit", 2, "--epochs", 2, "--samples", 2, "--out"]
    assert harness.call(monkeypatch, train_kd.main, *flags, tmp_path / "ours") == 0
    monkeypatch.setattr(sys, "argv", ["peer.py", "kd", *map(str, flags), str(tmp_path / "peer")])
    peer.main()
    losses, tables = [], []
    for side in ("ours", "peer"):
        lines = (tmp_path / side / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["held_out_loss"] for line in lines])
        tables.append(json.loads((tmp_path / side / "results.json").read_text())["methods"])
    assert len(losses[0]) == 3
    assert losses[0][2] < losses[0][0] - 0.01, "a step that is lost would not be seen"
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert tables[0].keys() == tables[1].keys()
