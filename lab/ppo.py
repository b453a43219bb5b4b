"""What PPO did: learning curves of runs, and RL minus KD for several kinds of reward.

    python lab/ppo.py runs/rl                                          # a run of train_rl.py: its curves
    python lab/ppo.py runs/eval runs/eval-task runs/eval-aspects       # comparisons of eval.py, a row for each

A file metrics.jsonl works as well as its folder: lab/default_run.jsonl is that of the README's default run, seed 0.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
from eval import align  # noqa: E402
from model import UserError  # noqa: E402

CURVES = ("reward", "R_aspect", "R_task", "kl", "entropy", "length", "ended", "ratio_max", "clip_fraction",
          "explained_variance")  # fmt: skip
POINTS = 6  # rows of a curve's table, each the mean over as many steps


def curves(rows: list[dict]) -> str:
    """A run's metrics, averaged over stretches of steps."""
    table = [["steps", *CURVES]]
    for i in range(min(POINTS, len(rows))):
        part = rows[len(rows) * i // POINTS : len(rows) * (i + 1) // POINTS] or rows
        means = [sum(row[name] for row in part) / len(part) for name in CURVES]
        table.append([f"{part[0]['step']}–{part[-1]['step']}", *(f"{mean:.3f}" for mean in means)])
    return align(table)


def arms(results: dict[str, dict]) -> str:
    """Tables of eval.py → how far RL is from KD in each, with the paired 95 % interval."""
    measures = {"EM": 100, "R_aspect": 1, "factuality": 1}
    table = [["", *(f"{measure}, RL minus KD [95 %]" for measure in measures), "EM: RL, best of N"]]
    for name, result in results.items():
        methods = result["methods"]
        row = [name]
        for measure, scale in measures.items():
            cell = methods["LM-guided, RL"][measure]["minus LM-guided, KD"]
            low, high = (scale * bound for bound in cell["interval"])
            digits = 1 if scale == 100 else 2
            row.append(f"{scale * cell['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
        table.append([*row, f"{100 * methods['LM-guided, RL, best of N']['EM']['mean']:.1f}"])
    return align(table)


def main() -> None:
    places = list(map(Path, sys.argv[1:]))
    if not places or sys.argv[1].startswith("-"):
        raise UserError("give folders of train_rl.py or eval.py: python lab/ppo.py FOLDER [FOLDER …]")
    results = {}
    for place in places:
        if (place / "results.json").is_file() and not (place / "metrics.jsonl").is_file():
            results[place.name] = json.loads((place / "results.json").read_text())
            if "LM-guided, RL" not in results[place.name]["methods"]:
                raise UserError(f"{place}: no RL in this comparison (give eval.py --rl)")
            continue
        rows = data.read_jsonl(place if place.is_file() else place / "metrics.jsonl")
        if not rows or not set(CURVES) <= rows[0].keys():
            raise UserError(f"{place}: neither a run of train_rl.py nor a comparison of eval.py")
        print(f"{place}\n\n{curves(rows)}\n")
    if results:
        print(arms(results))


if __name__ == "__main__":
    data.run_main(main)
