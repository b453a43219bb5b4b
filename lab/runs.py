"""What the page of results and the rating sheets read off run folders: their questions, and what went wrong in them."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
import rl  # noqa: E402
from eval import read_run  # noqa: E402
from plumbing.errors import UserError  # noqa: E402


def questions_of(folder: str | Path) -> list[data.Example]:
    """The questions that the table of a run folder is about; UserError where it is none, or its KD run is gone."""
    kind, s = read_run(folder)
    if kind == "eval":
        return data.load(s["data"], s["split"], s["limit"], s["context"])
    limit = s.get("test_limit")
    if kind == "rl":  # the data are those of its KD run
        folder = s["kd"]
        kind, s = read_run(folder)
    if kind not in ("kd", "direct"):
        raise UserError(f"{folder} is no run of train_kd.py, which had the questions")
    return data.load(s["test_data"] or s["data"], "test", limit, s["context"])


def signatures(results: dict | None, metrics: list[dict], max_new_tokens: int = 128) -> list[str]:
    """The failures to look for, in a table of eval.py (results.json) and in a run of train_rl.py (metrics.jsonl); those
    that `rl.warnings` names while PPO runs are among them."""
    methods = (results or {}).get("methods", {})
    found = []
    for name, row in methods.items():
        if name.startswith("LM-guided"):
            found += signatures_of_guiding(name, row)
        slower = row["seconds per question"] / max(methods.get("CoT", row)["seconds per question"], 1e-9)
        if name in ("LM-guided, KD", "LM-guided, RL") and slower > 2:
            found.append(f"long inference times: {name} takes {slower:.1f} times as long as CoT")
    if len(metrics) >= 10:
        reward = [row["reward"] for row in metrics]
        tenth = max(3, len(metrics) // 10)
        gain = np.mean(reward[-tenth:]) - np.mean(reward[:tenth])
        if unsteadiness(metrics) > max(gain, 0.02):
            found.append(f"high variance of rewards: ± {unsteadiness(metrics):.2f} from step to step, and {gain:+.2f} "
                         "in the whole run: more --questions or --samples-per-question, or a lower --lr")  # fmt: skip
    return found + rl.warnings(metrics, max_new_tokens)


def signatures_of_guiding(name: str, row: dict) -> list[str]:
    """Those of one method in which M_S guides M_L, by its row of results.json."""
    found = []
    quality = row.get("R_aspect", {}).get("minus LM-guided, KD")
    answers = row["EM"].get("minus LM-guided, KD")
    if quality and quality["interval"][0] > 0 and answers["mean"] < 0.01:
        found.append(f"low accuracy despite high rationale scores: against KD, {name} has R_aspect "
                     f"{quality['mean']:+.2f} and EM {100 * answers['mean']:+.1f}")  # fmt: skip
    against = row["EM"].get("minus CoT")
    if against and against["interval"][1] < 0:
        found.append(f"LM-guided worse than CoT: {name} by {-100 * against['mean']:.1f} EM; M_L may write better "
                     "than M_S reads: look at the gold rationale's row, and at what the filter kept")  # fmt: skip
    return found


def unsteadiness(metrics: list[dict]) -> float:
    """Standard deviation of the reward from step to step of PPO around its trend, over the second half of a run."""
    reward = np.array([row["reward"] for row in metrics[len(metrics) // 2 :]])
    return float(np.diff(reward).std() / np.sqrt(2)) if len(reward) > 2 else 0.0
