"""Kills runs, starts them again, and compares what they leave with what an undisturbed run leaves.

    python tests/kill.py --kills 20 --seed 0          # minutes; exit status 1 if anything differs

The three scripts run on the tiny pair, shortened by flags. Of each, one run stays undisturbed. Then, `--kills` times in
a folder of its own, SIGKILL ends a run at a random moment of its CPU time, and the same command goes on to the end; and
`--kills` times a run kills itself in a random write: halfway through a piece of a file (a JSONL line, a tensor of
state.pt), or before an fsync or a rename. Every file must then be equal, but for wall-clock times. What is left out is
the seconds in which Python imports torch: all runs are forks of one process, which has done that (POSIX and /proc).
"""

import argparse
import builtins
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402

import data  # noqa: E402
import eval as evaluation  # noqa: E402
import train_kd  # noqa: E402
import train_rl  # noqa: E402

# Standardized rewards and an adaptive KL coefficient have a state that must come back.
RUNS = {
    "train_kd": (train_kd.main, "--out kd --train-limit 12 --dev-limit 4 --test-limit 2 --samples 2 --epochs 3 "
                 "--batch-size 4 --lr 2e-4 --max-new-tokens 20 --decode-batch-size 1 --no-filter"),
    "train_rl": (train_rl.main, "--out rl --steps 3 --prompts 4 --samples-per-prompt 2 --minibatch 2 --eval-every 1 "
                 "--train-limit 40 --dev-limit 2 --test-limit 2 --samples 2 --max-new-tokens 20 "
                 "--reward standardized --target-kl 1"),
    "eval": (evaluation.main, "--out eval --limit 2 --samples 2 --max-new-tokens 20"),
}  # fmt: skip
for _name in ("train_rl", "eval"):
    RUNS[_name] = (RUNS[_name][0], RUNS[_name][1] + " --kd kd" + " --rl rl" * (_name == "eval"))


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
            act(lambda: (self.file.write(bytes(content)[: len(bytes(content)) // 2]), self.file.flush()))
            return self.file.write(content)

    def opening(path, mode="r", **options):
        file = builtins.open(path, mode, **options)  # noqa: SIM115 (its user closes it)
        return Tearing(file) if mode in ("wb", "ab+") else file

    def dying(original):
        def call(*arguments):
            act()
            return original(*arguments)

        return call

    data.open, os.fsync, os.replace = opening, dying(os.fsync), dying(os.replace)
    return count


def start(script: str, place: Path, fatal_write: int = 0) -> int:
    """The script's command in the folder `place`, as a process → its id. It leaves the number of its writes there."""
    main, arguments = RUNS[script]
    if pid := os.fork():
        return pid
    status = 1
    try:
        log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(place)
        sys.argv = [f"{script}.py", *arguments.split()]
        count = die_in_write(fatal_write)
        try:
            data.run_main(main)
            status = 0
        except SystemExit as end:
            status = end.code
        Path("writes").write_text(str(count[0]))
    finally:
        sys.stderr.flush()
        os._exit(status)


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
        return re.sub(r" +\d+\.\d{3} +\|", "|", path.read_text())  # only seconds have three decimals
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


def kill_runs(script: str, kills: int, seed: int, place: Path) -> dict:
    """One undisturbed run in `place`, then `kills` of both kinds, each in a folder of its own → figures."""
    out = RUNS[script][1].split()[1]
    status, cpu = end(start(script, place))
    assert status == 0, (place / "log").read_text()
    writes = int((place / "writes").read_text())
    found = {"script": script, "CPU s": round(cpu, 1), "writes": writes, "killed at a moment": 0,
             "killed in a write": 0, "folders that differ": 0}  # fmt: skip
    rng = random.Random(f"{script} {seed}")
    for i in range(2 * kills):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            trial = Path(folder)
            for before in ("kd", "rl"):
                if before != out and (place / before).exists():
                    (trial / before).symlink_to(place / before)
            share = (i // 2 + rng.random()) / kills  # of the run: early, …, late
            moment, write = (share * cpu, 0) if i % 2 else (float("inf"), 1 + int(share * writes))
            status, _ = end(start(script, trial, write), moment)
            found["killed at a moment" if i % 2 else "killed in a write"] += status == -9
            status, _ = end(start(script, trial))  # the same command again
            differing = [f"exit status {status}"] * (status != 0) + differences(place / out, trial / out)
            if differing:
                found["folders that differ"] += 1
                where = f"write {write}" if write else f"{moment:.2f} s"
                print(f"{script}, killed at {where}: {', '.join(differing)}\n{(trial / 'log').read_text()[-2000:]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind, for each script")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.time()
    with tempfile.TemporaryDirectory() as place:
        rows = [kill_runs(script, settings.kills, settings.seed, Path(place)) for script in RUNS]
    print("\n" + evaluation.align([list(rows[0]), *(list(map(str, row.values())) for row in rows)]))
    print(f"\n{(time.time() - begun) / 60:.0f} minutes")
    sys.exit(any(row["folders that differ"] for row in rows))


if __name__ == "__main__":
    main()
