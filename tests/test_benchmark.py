"""benchmark.py still runs, at the smallest sizes, and its two sides do the same work: ids and losses are compared."""

import re
import subprocess
import sys

import benchmark
import pytest


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
    command = [sys.executable, benchmark.__file__, "--smallest", "greedy", "ppo", "profile"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\| greedy.* tokens/s +\|.*\| transformers \d\S+ +\| \d+\.\d+ × \[.* ×", out), out
    assert re.search(r"\| PPO.*--trl-python", out), out
    assert len(re.findall(r"\|( \d+% +\|){3} -?\d+% +\|", out)) == 5, out
