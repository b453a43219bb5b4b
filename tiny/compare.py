"""Several finished runs side by side, one row each: what KD gains with large LMs that write rationales better or worse.

python tiny/compare.py runs/kd-weak runs/kd runs/kd-strong       # prints a Markdown table from their results.json
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval import with_interval  # noqa: E402
from plumbing.command import align, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import read_json  # noqa: E402

GUIDED = ("LM-guided, untrained", "LM-guided, KD", "LM-guided, KD + SC")
METHODS = ("standard", "CoT", "CoT + SC", *GUIDED, "gold rationale")


def main() -> None:
    folders = sys.argv[1:]
    if not folders or folders[0].startswith("-"):
        raise UserError("give the run folders to compare: python tiny/compare.py FOLDER [FOLDER …]")
    rows = [["EM, %", "teacher's rationales kept", *METHODS, "KD minus CoT [95 %]"]]
    for folder in map(Path, folders):
        if not (folder / "results.json").is_file():
            raise UserError(f"{folder}: no results.json there (has that run ended?)")
        methods = read_json(folder / "results.json").get("methods", {})
        if not set(METHODS) <= methods.keys():
            raise UserError(f"{folder}: no table of train_kd.py in its results.json")
        kept = ""
        if (folder / "filter.json").is_file():
            train = json.loads((folder / "filter.json").read_text("utf-8"))[0]
            kept = f"{100 * train['kept'] / train['asked']:.0f} %"
        figures = [f"{100 * methods[name]['EM']['mean']:.1f}" for name in METHODS]
        gain = methods["LM-guided, KD"]["EM"]["minus CoT"]
        rows.append([folder.name, kept, *figures, with_interval(gain, "EM", "+")])
    print(align(rows))


if __name__ == "__main__":
    run_main(main)
