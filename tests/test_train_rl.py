"""Proofs for train_rl.py: whole runs with a random tiny M_S and a scripted M_L, interrupted and continued."""

import functools
import json
import shutil

import pytest
import torch
from harness import (
    ScriptedLM,
    error_of,
    example_of,
    failing_once,
    files_of,
    lines,
    run_script,
    save_random_small,
    write_run,
)
from kill import differences

import data
import rewards
import rl
import train_rl
from lmcot import LocalLM
from model import T5
from tiny import pretrain

SIZES = {"train": 24, "dev": 6, "test": 4}
OUT = ["settings.json"]  # what differs between two runs of the same settings
EXAMPLES = [example for split, size in SIZES.items() for example in data.load("tiny", split, size)]
ANSWERS = {(example.question, example.context): example.answer for example in EXAMPLES}


def large_says(prompt, _):
    """M_L as a script: right if the rationale has an even number of words."""
    rationale = prompt.rpartition("Reasoning: ")[2].removesuffix("\nAnswer:")
    return example_of(prompt, EXAMPLES).answer if len(rationale.split()) % 2 == 0 else "nonsense"


@pytest.fixture(scope="module")
def kd(tmp_path_factory):
    """A run folder as train_kd.py leaves it, with a random M_S in it."""
    folder = tmp_path_factory.mktemp("runs") / "kd"
    save_random_small(folder / "model", pretrain.make_tokenizer())
    settings = {"target": "rationale", "data": "tiny", "test_data": "", "test_limit": 5, "large": "teacher",
                "context": "gold", "max_input_tokens": 1024, "decode_batch_size": 8}  # fmt: skip
    return write_run(folder, settings)


def start(patch, kd, folder, *arguments):
    """Run train_rl.py in this process → (exit status, M_L)."""
    large = ScriptedLM(large_says)
    flags = {"--kd": kd, "--out": folder, "--steps": 5, "--questions": 4, "--samples-per-question": 3, "--minibatch": 2,
             "--eval-every": 2, "--samples": 2, "--max-new-tokens": 12, "--lr": 3e-3}  # fmt: skip
    return run_script(patch, train_rl, SIZES, lambda **_: large, flags, arguments), large


@pytest.fixture
def train(kd, monkeypatch):
    """`start` with that M_S: train(folder, *arguments)."""
    return functools.partial(start, monkeypatch, kd)


@pytest.fixture(scope="module")
def whole(kd, tmp_path_factory):
    """One run that nothing interrupts: (folder, M_L, the arguments of every call of rewards.aspects)."""
    folder, calls, original = tmp_path_factory.mktemp("whole") / "rl", [], rewards.aspects
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "aspects", lambda *args: calls.append(args) or original(*args))
        code, large = start(patch, kd, folder)
    assert code == 0
    return folder, large, calls


# ------------------------------------------------------------------------------------------------ a whole run


def test_every_step_is_logged_with_its_parts_and_the_first_has_no_kl(whole):
    rows = lines(whole[0] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["kl"] == 0 and any(row["kl"] > 1e-4 for row in rows)
    for row in rows:
        assert row["reward"] == pytest.approx(row["R_aspect"] + 4 * row["R_task"], abs=1e-5)
        assert row["R_aspect"] == pytest.approx(sum(row[name] for name in rewards.ASPECTS), abs=1e-5)
        assert 1 <= row["length"] <= 12 and row["beta"] == 0.05 and 0 <= row["clip_fraction"] <= 1
        assert row.keys() >= {"entropy", "ended", "grad_norm", "ratio_max", "explained_variance", "policy_loss"}


def test_no_aspect_sees_more_than_rationale_question_context_and_what_m_l_answered(whole):
    _, _, calls = whole
    assert len(calls) > 60
    for _, question, context, *prediction in calls:
        known = [], [None], [ANSWERS[question, context]], ["nonsense"]
        assert prediction in known, "M_L's answer to another question"
    # M_L is right or not by chance, so its prediction differs from the gold answer about half of the time.
    wrong = [p for _, q, c, *p in calls if p not in ([], [None]) and p[0] != ANSWERS[q, c]]
    assert len(wrong) > 0.2 * len(calls)


def test_the_m_s_of_the_best_look_at_dev_is_kept_and_evaluated(whole, kd):
    folder = whole[0]
    looks = lines(folder / "dev.jsonl")
    assert [look["step"] for look in looks] == [0, 2, 4, 5]
    state = torch.load(folder / "state.pt", weights_only=True)
    best = max(looks, key=lambda look: look["reward"])  # the first of equals
    assert (state["best_step"], state["best"]) == (best["step"], best["reward"]) and state["step"] == 5
    kept, first = T5.from_pretrained(folder / "model").state_dict(), T5.from_pretrained(kd / "model").state_dict()
    assert all(torch.equal(kept[name], p) for name, p in first.items()) == (best["step"] == 0)
    assert all(torch.equal(kept[name], p) for name, p in state["policy"].items()) == (best["step"] == 5)
    table = json.loads((folder / "results.json").read_text())
    assert {"LM-guided, KD", "LM-guided, RL", "LM-guided, RL, best of N"} <= set(table["methods"])
    assert set(table["methods"]["LM-guided, RL"]) >= {"R_aspect", *rewards.ASPECTS}


def test_the_texts_that_are_kept_of_each_look_are_those_that_it_measured(whole):
    looks, texts = lines(whole[0] / "dev.jsonl"), lines(whole[0] / "texts.jsonl")
    dev = data.load("tiny", "dev", SIZES["dev"])
    assert [row["step"] for row in texts] == [0, 2, 4, 5]
    for look, row in zip(looks, texts, strict=True):
        pairs = list(zip(row["answers"], dev, strict=True))
        assert all(answer["id"] == example.id for answer, example in pairs)
        assert look["R_task"] == pytest.approx(sum(a["prediction"] == e.answer for a, e in pairs) / 6)
        scores = [rewards.quality(a["rationale"], e, a["prediction"])["R_aspect"] for a, e in pairs]
        assert look["R_aspect"] == pytest.approx(sum(scores) / 6)


def test_m_l_is_asked_once_for_each_rationale_of_a_step_and_of_a_look_at_dev(whole):
    asked = [example_of(prompt, EXAMPLES).id for prompt in whole[1].asked[:30]]
    dev = [example.id for example in data.load("tiny", "dev", SIZES["dev"])]
    assert asked[:6] == dev
    for rollout in (asked[6:18], asked[18:30]):  # 4 questions × 3 samples each
        assert [question for question in rollout[::3] for _ in range(3)] == rollout
        assert len(set(rollout)) == 4 and not set(rollout) & set(dev)


def test_the_same_command_again_prints_the_table_and_asks_nothing(whole, capsys, train):
    folder = whole[0]
    before = files_of(folder)
    code, large = train(folder)
    assert code == 0 and not large.asked and (folder / "results.md").read_text().strip() in capsys.readouterr().out
    assert files_of(folder) == before


# ------------------------------------------------------------------------------------------------ interruptions


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [(rl, "rollout", 4), (torch, "save", 2), (T5, "save_pretrained", 1)],
    ids=["in a rollout", "while its state is written", "while the best M_S is written"],
)
def test_interrupted_the_run_goes_on_bit_identically(place, name, number, whole, tmp_path, train):
    folder = tmp_path / "rl"
    with failing_once(place, name, number, KeyboardInterrupt()):
        assert train(folder)[0] == 130
    assert train(folder)[0] == 0
    assert differences(whole[0], folder) == OUT


def test_another_seed_draws_other_questions_and_rationales(whole, tmp_path, train):
    with failing_once(rl, "rollout", 2, KeyboardInterrupt()):  # after one step
        train(tmp_path / "rl", "--seed", 1)
    (other,) = lines(tmp_path / "rl" / "metrics.jsonl")
    assert other != lines(whole[0] / "metrics.jsonl")[0]


def test_fewer_questions_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(train_rl.processes, "rank_and_size", lambda: (0, 3))
    train_rl.Settings(questions=3).check()
    with pytest.raises(ValueError, match="--questions"):
        train_rl.Settings(questions=2).check()


# ------------------------------------------------------------------------------------------------ steps


def test_the_gradient_of_micro_batches_is_that_of_the_whole_minibatch(kd):
    small, head, examples = LocalLM.load(kd / "model"), rl.ValueHead(32), data.load("tiny", "dev", 4)
    s = train_rl.Settings(samples_per_question=3, max_new_tokens=12)
    r = train_rl.sample_rationales(small, small, head, examples, s, seed=0)
    r.mask &= torch.arange(12) < torch.arange(1, 13)[:, None]  # of 1 to 12 tokens
    advantages, returns = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0))
    gradients = []
    for micro_batch in (0, 1):  # all four questions at once, or one at a time
        small.model.zero_grad()
        head.zero_grad()
        s.micro_batch = micro_batch
        train_rl.learn(small, head, r, torch.tensor([2, 0, 3, 1]), advantages, returns, s, is_first=False)
        gradients.append([p.grad.clone() for p in (*small.model.parameters(), *head.parameters())])
    for of_all, of_parts in zip(*gradients, strict=True):
        torch.testing.assert_close(of_parts, of_all, atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ broken numbers


@pytest.mark.parametrize(
    ("place", "name", "call_in_step_3", "spoiled", "what"),
    [
        (rl, "update_metrics", 10, lambda metrics: metrics | {"ratio_max": float("inf")}, "a ratio"),
        (rl, "value_loss", 10, lambda loss: loss * float("nan"), "a loss"),
        (rewards.Combination, "__call__", 3, lambda scores: [*scores[:5], float("inf"), *scores[6:]], "a reward"),
    ],
    ids=["ratio", "loss", "reward"],
)  # the losses are called 4 times in each step
def test_a_number_that_is_none_stops_the_step_and_the_run_can_go_on(
    place, name, call_in_step_3, spoiled, what, whole, tmp_path, monkeypatch, capsys, train
):
    folder, calls, original = tmp_path / "rl", [], getattr(place, name)

    def spoiling(*args):
        calls.append(args)
        found = original(*args)
        return spoiled(found) if len(calls) == call_in_step_3 else found

    monkeypatch.setattr(place, name, spoiling)
    assert train(folder)[0] == 2
    said = error_of(capsys)
    assert what in said and "is not a finite number" in said and "bad_batch.pt" in said and "lower --lr" in said
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 2
    batch = torch.load(folder / "bad_batch.pt", weights_only=True)
    assert batch["ids"].shape == batch["logp_old"].shape and len(batch["questions"]) == 4
    numbers = [*batch["scores"].tolist(), *(x for part in batch.get("updates", []) for x in part.values())]
    assert sum(not torch.tensor(x).isfinite() for x in numbers) > 0
    monkeypatch.setattr(place, name, original)
    assert train(folder)[0] == 0
    assert differences(whole[0], folder) == ["bad_batch.pt", *OUT]


# ------------------------------------------------------------------------------------------------ settings


def test_a_run_does_not_go_on_from_another_m_s_than_it_began_with(kd, tmp_path, capsys, train):
    folder, again = tmp_path / "rl", tmp_path / "kd"
    shutil.copytree(kd, again)
    with failing_once(rl, "rollout", 1, KeyboardInterrupt()):
        train(folder, "--kd", again)
    T5.from_pretrained(again / "model").init_weights(7).save_pretrained(again / "model")
    code, large = train(folder, "--kd", again)
    assert code == 2 and not large.asked and f"was made from another M_S than {again}" in error_of(capsys)


@pytest.mark.parametrize(
    ("flags", "reward"),
    [
        (["--task-weight", 0], lambda row: row["R_aspect"]),
        (["--weights", 0], lambda row: 4 * row["R_task"]),
        (["--weights", "fluency=3,relevance=0"],
         lambda row: 4 * row["R_task"] + sum(row[n] for n in rewards.ASPECTS) + 2 * row["fluency"] - row["relevance"]),
        (["--missing-eos-penalty", 2], lambda row: row["R_aspect"] + 4 * row["R_task"] - 2 * (1 - row["ended"])),
    ],
    ids=["aspects alone", "task alone", "some aspects", "penalty"],
)  # fmt: skip
def test_task_weight_weights_and_penalty_do_what_they_say(flags, reward, tmp_path, train):
    with failing_once(rl, "rollout", 2, KeyboardInterrupt()):  # after one step
        train(tmp_path / "rl", *flags)
    (row,) = lines(tmp_path / "rl" / "metrics.jsonl")
    assert row["reward"] == pytest.approx(reward(row), abs=1e-5)
    assert row["R_task"] > 0 and row["ended"] < 1 and (row["R_aspect"] == 0) == (flags == ["--weights", 0])


def test_an_adaptive_coefficient_falls_below_its_target_and_standardized_rewards_begin_at_mean_0(tmp_path, train):
    train(tmp_path / "rl", "--target-kl", 50, "--reward", "standardized")
    rows = lines(tmp_path / "rl" / "metrics.jsonl")
    assert [row["beta"] for row in rows] == pytest.approx([0.05 * (1 - 0.2 * 12 / 10_000) ** i for i in range(5)])
    assert rows[0]["reward"] == pytest.approx(0, abs=1e-5) and abs(rows[1]["reward"]) > 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kd", "nowhere"], "no distilled M_S in nowhere: run train_kd.py first"),
        (["--kd", "another-rl"], "no distilled M_S in another-rl: run train_kd.py first"),
        (["--kd", "direct"], "the M_S of direct learned to answer, not to write rationales"),
        (["--weights", "brilliance=2"], "brilliance"),
        (["--reward", "product"], "--reward is sum or standardized"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_leaves_no_folder(arguments, words, tmp_path, monkeypatch, capsys, train):
    monkeypatch.chdir(tmp_path)
    (write_run(tmp_path / "direct", {"target": "answer", "data": "tiny", "test_data": ""}) / "model").mkdir()
    (write_run(tmp_path / "another-rl", {"kd": "runs/kd", "ppo_epochs": 2}) / "model").mkdir()
    code, _ = train("rl", *arguments)
    assert code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "rl").exists()
