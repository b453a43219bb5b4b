"""Proofs for several processes: what two of torchrun's (gloo) do together is what one does alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import lines, save_random_small

from model import T5
from tiny import pretrain

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"train": 48, "dev": 7, "test": 9}
KD = ["--large", ROOT / "tiny" / "large", "--epochs", 1, "--batch-size", 9, "--lr", 2e-4, "--samples", 1,
      "--no-filter", "--max-new-tokens", 40]  # fmt: skip
# Runs a script on a small TinyWiki. A single process keeps what its policy samples; several take their shares of that,
# because each process would sample with a seed of its own.
DRIVER = """
import os, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
import data, lmcot, rl, {script}
from tiny import world

from plumbing import processes
from plumbing.command import run_main
world.SIZES |= {sizes!r}
generate = lmcot.T5.generate
def count(model, source, source_mask, max_new_tokens, *rest, **named):
    if model.config.d_model > 32 and max_new_tokens == 256:  # a chain of thought of M_L
        with open({kept!r} + "/asked-{script}-{processes}-" + os.environ.get("RANK", "0"), "a") as file:
            file.write("x" * len(source))
    return generate(model, source, source_mask, max_new_tokens, *rest, **named)
lmcot.T5.generate = count
original, steps = rl.rollout, iter(range(100))
def rollout(policy, reference, head, source, mask, samples, *rest):
    path = {kept!r} + "/" + str(next(steps)) + ".pt"
    if "RANK" not in os.environ:
        r = original(policy, reference, head, source, mask, samples, *rest)
        torch.save(vars(r), path)
        return r
    kept = torch.load(path, weights_only=True)
    rows = {{name: x.view(len(kept["source"]), -1, *x.shape[1:]) for name, x in kept.items()}}
    return rl.Rollout(**{{name: processes.share(x).flatten(0, 1) for name, x in rows.items()}})
rl.rollout = rollout
sys.argv[1:] = {arguments!r}
run_main({script}.main)
"""


def run(script, out, kept, processes, arguments):
    """Run a script in one or several processes → its output."""
    arguments = [*map(str, arguments), "--out", str(out)]
    driver = kept / f"{script}-{processes}.py"
    driver.write_text(DRIVER.format(root=str(ROOT), script=script, sizes=SIZES, kept=str(kept), arguments=arguments,
                                    processes=processes))  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(driver)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent, timeout=280)
    assert ended.returncode == 0, ended.stderr[-9000:]
    return ended.stdout


def distance(a, b):
    """The largest difference between the weights of two checkpoints."""
    one, two = (T5.from_pretrained(folder).state_dict() for folder in (a, b))
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Both trainings by one process and by two, and the output of each: {(script, processes): text}, folder. The two
    distil in micro-batches, which are to memory what processes are to time."""
    place = tmp_path_factory.mktemp("processes")
    save_random_small(place / "small", pretrain.make_tokenizer(), dropout=0.0)
    said = {}
    for n, parts in ((1, 0), (2, 2)):
        kd = ["--small", place / "small", *KD, "--micro-batch", parts]
        said["train_kd", n] = run("train_kd", place / f"kd{n}", place, n, kd)
        rl = ["--kd", place / "kd1", "--steps", 2, "--questions", 5, "--samples-per-question", 3, "--minibatch", 2,
              "--eval-every", 1, "--samples", 2, "--max-new-tokens", 12, "--lr", 3e-3, "--target-kl", 1]  # fmt: skip
        said["train_rl", n] = run("train_rl", place / f"rl{n}", place, n, rl)
    return said, place


def test_distillation_by_two_processes_in_micro_batches_ends_with_the_weights_of_one(both):
    _, place = both
    models = [place / name / "model" for name in ("kd1", "kd2")]
    assert distance(*models) < 1e-5 < 3e-4 < distance(place / "small", models[0])
    for one, two in zip(*(lines(place / f"kd{n}" / "metrics.jsonl") for n in (1, 2)), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    # 48 training examples in batches of 9 leave one of 3; each is asked once, and all stay in their order.
    ids = [[row["id"] for row in lines(place / f"kd{n}" / "rationales.jsonl")] for n in (1, 2)]
    assert ids[0] == ids[1]
    asked = [len((place / f"asked-train_kd-{name}").read_text()) for name in ("1-0", "2-0", "2-1")]
    assert asked[0] == asked[1] + asked[2] == 48 + 7 + 9  # shares, not everything twice; one chain for each test
    assert abs(asked[1] - asked[2]) <= 3  # question: greedy, and sampled


def test_ppo_by_two_processes_makes_the_update_of_one_from_the_same_rollouts(both):
    _, place = both
    one, two = (torch.load(place / f"rl{n}" / "state.pt", weights_only=True) for n in (1, 2))
    first = T5.from_pretrained(place / "kd1" / "model").state_dict()
    moved = max(float((one["policy"][name] - first[name]).abs().max()) for name in first)
    apart = max(float((one["policy"][name] - two["policy"][name]).abs().max()) for name in first)
    assert apart < 1e-5 < 1e-3 < moved
    assert torch.allclose(one["head"]["weight"], two["head"]["weight"], atol=1e-4) and one["head"]["weight"].any()
    for a, b in zip(*(lines(place / f"rl{n}" / "metrics.jsonl") for n in (1, 2)), strict=True):
        averaged_over_parts = ("grad_norm", "clip_fraction", "approx_kl", "entropy", "policy_loss", "value_loss")
        for name in a.keys() - set(averaged_over_parts):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), name
    assert lines(place / "rl1" / "dev.jsonl") == [pytest.approx(row) for row in lines(place / "rl2" / "dev.jsonl")]


def test_the_evaluation_of_two_processes_gives_the_answers_of_one_and_is_printed_once(both):
    said, place = both
    greedy = ("standard", "CoT", "LM-guided, KD", "gold rationale", "other's rationale")
    answers = [{row["method"]: row for row in lines(place / f"rl{n}" / "answers.jsonl")} for n in (1, 2)]
    for name in greedy:
        assert answers[0][name]["answers"] == answers[1][name]["answers"], name
        assert answers[0][name]["tokens"] == answers[1][name]["tokens"], name
    for script in ("train_kd", "train_rl"):
        assert said[script, 2].count("| method ") == said[script, 1].count("| method ") == 1
    assert {path.name for path in place.glob("*/.*")} <= {".lock"}  # nothing half written
