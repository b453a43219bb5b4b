"""What PPO did, as a table: the learning curves of runs of train_rl.py.

    python lab/ppo.py runs/rl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.command import align, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import read_jsonl  # noqa: E402

CURVES = ("reward", "R_aspect", "R_task", "kl", "entropy", "length", "ended", "ratio_max", "clip_fraction",
          "explained_variance")  # fmt: skip
POINTS = 6  # rows of the table, each the mean over as many steps


def curves(rows: list[dict]) -> str:
    """A run's metrics, averaged over stretches of steps."""
    table, n = [["steps", *CURVES]], min(POINTS, len(rows))
    for i in range(n):
        part = rows[len(rows) * i // n : len(rows) * (i + 1) // n]
        means = [sum(row[name] for row in part) / len(part) for name in CURVES]
        table.append([f"{part[0]['step']}–{part[-1]['step']}", *(f"{mean:.3f}" for mean in means)])
    return align(table)


def main() -> None:
    places = list(map(Path, sys.argv[1:]))
    if not places or sys.argv[1].startswith("-"):
        raise UserError("give folders of train_rl.py: python lab/ppo.py FOLDER [FOLDER …]")
    for place in places:
        rows = read_jsonl(place / "metrics.jsonl")
        if not rows or not set(CURVES) <= rows[0].keys():
            raise UserError(f"{place}: not a run of train_rl.py")
        print(f"{place}\n\n{curves(rows)}\n")


if __name__ == "__main__":
    run_main(main)
