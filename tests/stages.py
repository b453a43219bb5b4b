"""The whole method by the scripts and by `peer.py`, stage by stage, and where the time of the scripts goes: the rows
"method" and "shares" of benchmark.py.

Each script runs in a process of its own, with a clock around some of its functions:

    python tests/stages.py RESULT train_kd FLAGS         # or train_rl, eval, "peer kd", "peer rl", "peer eval"

writes RESULT, a JSON object: CPU seconds and peak memory in MB of the process, and the seconds of each part. A part
within a part has both names, "evaluate: M_L writes", and halts the clock of the outer one. "start" (imports, models,
data) ends where the first part begins, and "rest" is what belongs to no part.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = {"kd": "train_kd", "rl": "train_rl", "eval": "eval"}

# Flags of the three. A tenth of each number of questions and of rollouts; no epoch is left out, so that both sides have
# as many.
DEFAULTS = {"kd": [], "rl": [], "eval": []}
TENTH = {
    "kd": ["--train-limit", 800, "--dev-limit", 30, "--test-limit", 50, "--patience", 10],
    "rl": ["--steps", 9, "--train-limit", 1200, "--eval-every", 1, "--dev-limit", 30, "--test-limit", 50],
    "eval": ["--limit", 100],
}
FEW = {  # does it run at all?
    "kd": ["--train-limit", 16, "--dev-limit", 4, "--test-limit", 2, "--epochs", 1, "--samples", 2],
    "rl": ["--steps", 1, "--questions", 8, "--samples-per-question", 8, "--train-limit", 16, "--dev-limit", 2,
           "--test-limit", 2, "--samples", 2],
    "eval": ["--limit", 2, "--samples", 2],
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ one process

# module → function → its part. Where a language model writes is a part in every module, see `run_script`.
PARTS = {
    "train_kd": {"teach": "ask", "evaluate": "evaluate", "backward": "updates", "held_out_loss": "held-out loss"},
    "train_rl": {"sample_rationales": "rollout", "judge": "rewards", "learn": "updates", "evaluate": "evaluate"},
    "eval": {"evaluate": "evaluate"},
    "peer": {"ask": "ask", "evaluate": "evaluate"},
}


class Clock:
    """Seconds of parts, from now on."""

    def __init__(self, now=time.monotonic):
        self.seconds: Counter[str] = Counter()
        self.outside = "start"
        self.open: list[str] = []  # the parts that run, the innermost last
        self.now, self.last = now, now()

    def credit(self) -> None:
        """Gives the seconds since the last call to what is open."""
        now = self.now()
        self.seconds[": ".join(self.open) or self.outside] += now - self.last
        self.last = now

    def timed(self, function, part):
        """The function as a part; `part` is its name, or a function of its first argument that gives the name."""

        def run(*arguments, **options):
            self.credit()
            self.outside = "rest"
            self.open.append(part(arguments[0]) if callable(part) else part)
            try:
                return function(*arguments, **options)
            finally:
                self.credit()
                self.open.pop()

        return run


def who_writes(lm) -> str:
    return "M_L writes" if hasattr(lm, "templates") else "M_S writes"  # `load_large` sets them


def run_script(result: str, name: str, *flags: str) -> None:
    clock = Clock()
    sys.path.insert(0, str(ROOT))
    script = importlib.import_module(name)
    for function, part in PARTS[name].items():
        setattr(script, function, clock.timed(getattr(script, function), part))
    lm = script.PeerLM if name == "peer" else script.lmcot.LocalLM
    lm.complete = clock.timed(lm.complete, who_writes)
    sys.argv = [name, *flags]
    script.main()
    clock.credit()
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    found = {"cpu": time.process_time(), "peak MB": peak / 1024, "parts": clock.seconds}
    Path(result).write_text(json.dumps(found))


# ------------------------------------------------------------------------------------------------ the three scripts


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


def run_all(side: str, python: str, flags: dict, folder: Path) -> dict[str, dict]:
    """Runs the scripts one after the other, or what peer.py does for them → script → its RESULT, whose parts add up to
    the seconds of its process."""
    folder.mkdir()
    others = {"kd": [], "rl": ["--kd", folder / "kd"],
              "eval": ["--kd", folder / "kd", "--rl", folder / "rl", "--direct", "none"]}  # fmt: skip
    found = {}
    for name in flags:
        command = [python, __file__, folder / "result.json"]
        command += [SCRIPTS[name]] if side == "ours" else ["peer", name]
        command += [*flags[name], *others[name], "--out", folder / name]
        begun = time.perf_counter()
        ended = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True)
        seconds = time.perf_counter() - begun
        if ended.returncode:
            raise SystemExit(f"{side}, {name}:\n{ended.stderr[-3000:]}")
        found[name] = json.loads((folder / "result.json").read_text())
        parts = found[name]["parts"]
        parts["start"] += seconds - sum(parts.values())  # Python itself comes and goes outside of the clock
    return found


def what_was_done(folder: Path) -> dict[str, float]:
    """What a run has in common with one of the other side: M_S's held-out losses in distillation, in nats; steps of
    PPO; methods; and the EM of those without a trained M_S, of which 1 is all right."""

    def lines(name: str) -> list[dict]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    done = {f"loss after epoch {line['epoch']}": line["held_out_loss"] for line in lines("kd/metrics.jsonl")}
    done["steps of PPO"] = len(lines("rl/metrics.jsonl"))
    done["looks at held-out questions"] = len(lines("rl/dev.jsonl"))
    methods = json.loads((folder / "eval/results.json").read_text())["methods"]
    for name in methods:
        done[name] = methods[name]["EM"]["mean"] if name in ("standard", "CoT", "LM-guided, untrained") else 0
    return done


def differences(a: dict[str, float], b: dict[str, float]) -> list[str]:
    """Where two sides did not do the same. Rounding may decide a tie and change a text, so .02 make no difference."""
    found = [f"only one side has {name!r}" for name in a.keys() ^ b.keys()]
    for name in a.keys() & b.keys():
        if abs(a[name] - b[name]) > 0.02:
            found.append(f"{name}: {a[name]} and {b[name]}")
    return found


# ------------------------------------------------------------------------------------------------ tables

STAGES = {  # of the method, and what they are called in the table
    "start": "start: imports, models, data",
    "ask": "ask M_L, filter",
    "distil": "distil",
    "refine": "refine by PPO",
    "evaluate": "evaluate all methods",
}
MAIN_STAGE = {"kd": "distil", "rl": "refine", "eval": "evaluate"}  # of a script: parts that are no stage belong to it


def stages_of(found: dict[str, dict]) -> dict[str, float]:
    """The results of `run_all` → seconds of each stage and of all."""
    seconds = dict.fromkeys(STAGES, 0.0)
    for name, result in found.items():
        for part, s in result["parts"].items():
            outer = part.partition(":")[0]
            seconds[outer if outer in STAGES else MAIN_STAGE[name]] += s
    return seconds


def compare(pythons: dict[str, str | None], flags: dict, turns: int, folder: Path) -> list[list[str]]:
    """The whole method by both sides (side → its Python) in turns: seconds, memory, and how many times as fast ours
    is, as median and range over the turns."""
    if not pythons["peer"]:
        return [["the whole method"], ["left out: it needs --trl-python"]]
    measured = []
    for turn in range(turns):
        of_turn, done = [], []
        for side, python in pythons.items():
            found = run_all(side, python, flags, folder / f"{side} {turn}")
            seconds = stages_of(found)
            seconds |= {"all": sum(seconds.values()), "cpu": sum(result["cpu"] for result in found.values())}
            seconds["peak"] = max(result["peak MB"] for result in found.values())
            print(turn, side, {name: round(s, 2) for name, s in seconds.items()}, file=sys.stderr)
            of_turn.append(seconds)
            done.append(what_was_done(folder / f"{side} {turn}"))
        if wrong := differences(*done):
            raise SystemExit("the two sides did not do the same: " + "; ".join(wrong))
        measured.append(of_turn)

    table = [["the whole method", "ours", "peer's", "peer's / ours [range]"]]
    names = {**STAGES, "all": "all of it", "cpu": "all of it, CPU seconds", "peak": "peak MB of the largest process"}
    for name, text in names.items():
        medians = [statistics.median(of_turn[i][name] for of_turn in measured) for i in (0, 1)]
        ratios = [peer[name] / ours[name] for ours, peer in measured]
        ratio = f"{statistics.median(ratios):.2f} × [{min(ratios):.2f}, {max(ratios):.2f}]"
        unit = "" if name == "peak" else " s"
        table.append([text, *(f"{median:,.1f}{unit}" for median in medians), ratio])
    return table


def shares(flags: dict, folder: Path) -> list[list[str]]:
    """Where the time of our scripts goes: the parts of each that take a hundredth or more."""
    table = [["script", "part", "s", "share"]]
    for name, result in run_all("ours", sys.executable, flags, folder / "shares").items():
        parts = result["parts"]
        total = sum(parts.values())
        table.append([f"{SCRIPTS[name]}.py", "all", f"{total:.1f}", ""])
        for part, s in sorted(parts.items(), key=lambda item: -item[1]):
            if s > 0.01 * total:
                table.append(["", part, f"{s:.1f}", f"{100 * s / total:.0f} %"])
    return table


if __name__ == "__main__":
    run_script(*sys.argv[1:])
