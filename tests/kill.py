"""Kills runs, starts them again, and compares what they leave with what an undisturbed run leaves.

    python tests/kill.py --kills 20 --seed 0          # minutes; exit status 1 if anything differs

The three scripts run on the tiny pair, shortened by flags. Of each, one run stays undisturbed. Then, `--kills` times in
a folder of its own, SIGKILL ends a run at a random moment of its CPU time, and the same command goes on to the end; and
`--kills` times a run kills itself in a random write: halfway through a file or some JSONL lines, or
before an fsync or a rename. Every file must then be equal, but for wall-clock times. What is left out is
the seconds in which Python imports torch: all runs are forks of one process, which has done that (POSIX and /proc).
"""

import argparse
import builtins
import functools
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402

import eval as evaluation  # noqa: E402
import train_kd  # noqa: E402
import train_rl  # noqa: E402
from plumbing import files  # noqa: E402
from plumbing import run as run_folder  # noqa: E402
from plumbing.command import align, run_main  # noqa: E402

# KD stops early, by its patience; standardized rewards and an adaptive KL coefficient have a state that must come back.
RUNS = {
    "train_kd": (train_kd.main, "--out kd --train-limit 32 --dev-limit 8 --test-limit 2 --samples 2 --epochs 4 "
                 "--patience 1 --batch-size 8 --lr 5e-4 --max-new-tokens 64 --decode-batch-size 4"),
    "train_rl": (train_rl.main, "--out rl --kd kd --steps 3 --questions 4 --samples-per-question 2 --minibatch 2 "
                 "--eval-every 1 --train-limit 40 --dev-limit 2 --test-limit 2 --samples 2 --max-new-tokens 20 "
                 "--reward standardized --target-kl 1"),
    "eval": (evaluation.main, "--out eval --kd kd --rl rl --limit 2 --samples 2 --max-new-tokens 20"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ running and dying


def die_in_write(number: int) -> list[int]:
    """From now on, this process counts its writes, fsyncs and renames and kills itself in that one (0: in none). → the
    count, in a list."""
    count = [0]

    def act(last_deed=lambda: None):
        count[0] += 1
        if count[0] == number:
            last_deed()
            os.kill(os.getpid(), signal.SIGKILL)

    class Tearing:
        """An open file; the fatal write gets half of its bytes to the disk."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            act(lambda: (self.file.write(content[: len(content) // 2]), self.file.flush()))
            return self.file.write(content)

    def opening(path, mode="r", **options):
        file = builtins.open(path, mode, **options)  # noqa: SIM115 (its user closes it)
        return Tearing(file) if mode in ("wb", "ab") else file

    def dying(original):
        def call(*arguments):
            act()
            return original(*arguments)

        return call

    files.open = run_folder.open = opening
    os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    return count


def start(run: Callable[[], int], place: Path, fatal_write: int = 0) -> int:
    """A fork of this process that runs something in the folder `place` → its id. It leaves the number of its writes."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.chdir(place)
        sys.stdout = sys.stderr = open("log", "a", buffering=1)  # noqa: SIM115 (until the process ends)
        count = die_in_write(fatal_write)
        status = run()
        Path("writes").write_text(str(count[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def command(script: str) -> int:
    """Runs a script as its command of RUNS would → exit status."""
    main, arguments = RUNS[script]
    sys.argv = [f"{script}.py", *arguments.split()]
    try:
        run_main(main)
    except SystemExit as end:
        return end.code
    return 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end(pid: int, after: float = float("inf")) -> tuple[int, float]:
    """Waits for a process, or kills it after so many seconds of CPU time → exit status (−9: killed), CPU seconds."""
    while after < float("inf") and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if cpu_seconds(pid) >= after:
            time.sleep(random.random() / 100)  # the clock ticks in hundredths
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


# ------------------------------------------------------------------------------------------------ comparing


def content(path: Path):
    """What must be equal in a file of two runs: all of it, but for the seconds that something took."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".jsonl":
        return [{name: x for name, x in json.loads(line).items() if name != "seconds"} for line in path.open()]
    if path.name == "results.json":
        return re.sub(r'"seconds per question": [\d.e-]+', "", path.read_text())
    if path.name == "results.md":
        methods, rest = path.read_text().split("\n\n", 1)
        rows = [line.rsplit("|", 3) for line in methods.splitlines()]
        assert rows[0][1].strip() == "seconds per question"
        return [[*row[:1], *row[2:]] for row in rows], rest
    return path.read_bytes()


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(x, b[name]) for name, x in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def differences(a: Path, b: Path) -> list[str]:
    """The names of the files that differ in two run folders, or are only in one."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (a, b)]
    return sorted(names[0] ^ names[1]) + sorted(
        name for name in names[0] & names[1] if not equal(content(a / name), content(b / name))
    )


def kill_runs(run: Callable[[], int], out: str, kills: int, rng: random.Random, place: Path) -> dict:
    """One undisturbed run, which writes the folder `out` in the folder `place`; then `kills` of both kinds, each in a
    place of its own, where what earlier runs left is linked → figures."""
    earlier = [path for path in place.iterdir() if path.is_dir()]
    status, cpu = end(start(run, place))
    assert status == 0, (place / "log").read_text()
    writes = int((place / "writes").read_text())
    found = {"run": out, "CPU s": round(cpu, 1), "writes": writes, "killed at a moment": 0, "killed in a write": 0,
             "folders that differ": 0}  # fmt: skip
    for i in rng.sample(range(2 * kills), 2 * kills):  # in no order: one that is cut short has seen some of everything
        with tempfile.TemporaryDirectory(dir=place) as folder:
            trial = Path(folder)
            for other in earlier:
                (trial / other.name).symlink_to(other)
            share = (i // 2 + rng.random()) / kills  # of the run: early, …, late
            moment, write = (share * cpu, 0) if i % 2 else (float("inf"), 1 + int(share * writes))
            status, _ = end(start(run, trial, write), moment)
            found["killed at a moment" if i % 2 else "killed in a write"] += status == -9
            status, _ = end(start(run, trial))  # the same again
            differing = [f"exit status {status}"] * (status != 0) + differences(place / out, trial / out)
            where = f"in write {write} of {writes}" if write else f"after {moment:.2f} of {cpu:.2f} s"
            print(f"{out}, killed {where}: {', '.join(differing) or 'equal'}", flush=True)
            if differing:
                found["folders that differ"] += 1
                print((trial / "log").read_text()[-2000:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind, for each script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--script", default="", choices=list(RUNS), help="kill only this one")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.time()
    with tempfile.TemporaryDirectory() as place:
        rows = []
        for script in RUNS:
            kills = settings.kills if settings.script in ("", script) else 0
            rng, out = random.Random(f"{script} {settings.seed}"), RUNS[script][1].split()[1]
            rows.append(kill_runs(functools.partial(command, script), out, kills, rng, Path(place)))
            if script == settings.script:
                break
    print("\n" + align([list(rows[0]), *(list(map(str, row.values())) for row in rows)]))
    print(f"\n{(time.time() - begun) / 60:.0f} minutes")
    sys.exit(any(row["folders that differ"] for row in rows))


if __name__ == "__main__":
    main()
