"""lab/experiments.py: its statistics against brute force and values worked by hand; a killed experiment goes on."""

import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import SAMPLES, call, save_flan_form
from hypothesis import given
from hypothesis import strategies as st

import data
import lmcot
import rewards
from lab import experiments as lab
from model import T5
from plumbing.command import parse_settings
from plumbing.run import Run
from tiny import world

ROOT = Path(__file__).parents[1]

# ------------------------------------------------------------------------------------------------ statistics

samples = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12)


@given(samples)
def test_auroc_is_the_share_of_pairs_that_are_ranked_rightly(rows):
    scores, right = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    pairs = [(a, b) for a, r in rows if r for b, w in rows if not w]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    assert lab.auroc(scores, right) == pytest.approx(sum(wins) / len(wins) if wins else np.nan, nan_ok=True)


@given(st.lists(samples, min_size=1, max_size=5))
def test_auroc_within_questions_counts_only_pairs_of_the_same_question(questions):
    n = min(map(len, questions))
    grid = np.array([[rows[:n] for rows in questions]], dtype=float)  # (1 seed, Q, n, 2)
    won, pairs = lab.pairs_within(grid[..., 0], grid[..., 1])
    expected = [(a, b) for rows in questions for a, r in rows[:n] if r for b, w in rows[:n] if not w]
    assert pairs.sum() == len(expected)
    assert won.sum() == sum((a > b) + 0.5 * (a == b) for a, b in expected)


@given(samples)
def test_correlation_is_pearsons(rows):
    x, y = zip(*((float(a), float(b)) for a, b in rows), strict=True)
    varies = len(set(x)) > 1 and len(set(y)) > 1
    expected = statistics.correlation(x, y) if varies else np.nan
    assert lab.correlation(np.array(x), np.array(y)) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_draws_without_a_case_are_left_out_and_what_has_no_case_is_blank():
    right = np.zeros((1, 50))
    right[0, :2] = 1  # all that are kept are right; some draws keep none
    assert lab.estimate(lab.ratio, right, right) == {"mean": 1.0, "interval": [1.0, 1.0]}
    assert lab.estimate(lab.ratio, right, 0 * right) is None
    assert lab.estimate(lab.auroc, right + np.arange(50) / 100, right)["interval"] == [1.0, 1.0]


def test_intervals_are_those_of_the_normal_approximation_and_pairs_stay_paired():
    p, n = 0.3, 1000
    right = (np.arange(n) < p * n).astype(float)[None]  # one seed
    cell = lab.estimate(np.mean, right)
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert cell["mean"] == pytest.approx(p)
    assert cell["interval"] == pytest.approx([p - half, p + half], abs=0.005)
    shifted = lab.estimate(lab.difference, right + 0.1, right)  # the difference is the same for every question
    assert [shifted["mean"], *shifted["interval"]] == pytest.approx([0.1] * 3)
    seeds = np.repeat([[0.0], [1.0]], 50, axis=1)  # two seeds that disagree on everything: draws are 0, ½ or 1
    assert lab.estimate(np.mean, seeds) == {"mean": 0.5, "interval": [0.0, 1.0]}


def answer(prediction, right, quality, **more):
    return {"prediction": prediction, "right": right, "R_aspect": quality, "R_aspect before the answer": quality,
            **dict.fromkeys(rewards.ASPECTS, quality / 8), "tokens": 10, "answer tokens": 2, **more}  # fmt: skip


QUESTIONS = [  # greedy, then four samples
    [answer("a", 1, 5.0, confidence=-1.0), answer("b", 0, 6.0, confidence=-0.5), answer("a", 1, 5.0, confidence=-0.1),
     answer("b", 0, 7.2, confidence=-0.9), answer("b.", 0, 1.0, confidence=-2.0)],
    [answer("y", 1, 5.0, confidence=-1.0), answer("y", 1, 4.5, confidence=-0.1), answer("x", 0, 4.0, confidence=-0.5),
     answer("y", 1, 7.0, confidence=-0.3), answer("z", 0, 3.0, confidence=-0.4)],
]  # fmt: skip


@pytest.fixture(autouse=True)
def few_draws(request, monkeypatch):
    if "intervals" not in request.node.name:
        monkeypatch.setattr(lab, "BOOTSTRAPS", 20)


@pytest.fixture
def one_seed(monkeypatch, tmp_path):
    """A laboratory whose only run is QUESTIONS."""
    monkeypatch.setattr(lab.Lab, "kd", lambda self: ["kd-0"])
    monkeypatch.setattr(lab.Lab, "answers", lambda self, folders, split, samples: [QUESTIONS])
    return lab.Lab(lab.Settings(seeds=1, samples=4, out=str(tmp_path)))


def means(table, column):
    i = table["columns"].index(column)
    return {row[0]: row[i]["mean"] if isinstance(row[i], dict) else row[i] for row in table["rows"]}


def test_thresholds_keep_and_score_what_is_counted_by_hand(one_seed):
    curve, _ = lab.reliability(one_seed)
    kept, right, others = (means(curve, name) for name in ("kept %", "EM % of these", "EM % of the others"))
    # samples by quality: 7.2 wrong · 7 right · 6 wrong · 5 right · 4.5 right · 4 wrong · 3 wrong · 1 wrong
    assert kept == pytest.approx({0: 100, 4: 75, 5: 50, 5.5: 37.5, 6: 37.5, 6.5: 25, 7: 25})  # none of 7.25 and more
    assert right == pytest.approx({0: 37.5, 4: 50, 5: 50, 5.5: 100 / 3, 6: 100 / 3, 6.5: 50, 7: 50})
    assert others[0] is None
    assert (others[4], others[5], others[7]) == pytest.approx((0, 25, 100 / 3))


def test_ways_of_choosing_pick_the_sample_that_is_picked_by_hand(one_seed):
    # Quality has mean 4.7 and standard deviation 1.9, confidence -0.6 and 0.57. In standard units, first question:
    # (0.68, 0.18) wrong, (0.15, 0.88) right, (1.31, -0.53) wrong, (-1.96, -2.46) wrong; the second is right by both.
    # Halves: 0.43, 0.51 (right), 0.39; a quarter of confidence: 0.55, 0.33, 0.85 (wrong).
    ways, curve = lab.selection(one_seed)
    assert means(ways, "EM %") == {
        "greedy, no choice": 100, "first sampled": 50, "by R_aspect": 50, "majority of answers": 50,
        "by 25% R_aspect, 75% confidence": 100, "by 50% R_aspect, 50% confidence": 100,
        "by 75% R_aspect, 25% confidence": 50, "by M_L's confidence": 100, "the worst by R_aspect": 0,
        "by factuality alone": 50, "oracle: right if any is": 100,
    }  # fmt: skip
    assert means(ways, "minus greedy, %")["by R_aspect"] == -50
    assert means(ways, "answers asked of M_L")["by R_aspect"] == 1
    assert means(ways, "answers asked of M_L")["majority of answers"] == 4
    # first question by rank: wrong, wrong, right, wrong; second: right, right, wrong, wrong
    assert list(means(curve, "EM %").values()) == [50, 50, 50, 0]
    assert list(means(curve, "R_aspect").values()) == pytest.approx([7.1, 5.25, 4.5, 2])


def test_more_samples_cost_and_bring_what_is_counted_by_hand(one_seed):
    (table,) = lab.samples(one_seed)
    assert means(table, "SC, EM %") == {1: 50, 2: 50, 4: 50}  # b, then y; a tie (b a, y x): the first; b b b a, y y x z
    assert means(table, "oracle, EM %") == {1: 50, 2: 100, 4: 100}
    assert means(table, "SC: tokens") == {1: 12, 2: 24, 4: 48} and means(table, "best: tokens") == {1: 12, 2: 22, 4: 42}


def test_the_rewards_spread_is_that_of_summing_the_parts_themselves(one_seed, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [[{**dict(zip(rewards.ASPECTS, rng.random(8), strict=True)), "right": float(rng.random() < 0.5)}
             for _ in range(5)] for _ in range(6)]  # fmt: skip
    monkeypatch.setattr(lab.Lab, "answers", lambda *_: [rows])
    monkeypatch.setattr(lab.Lab, "rl", lambda *_: [])
    monkeypatch.setattr(lab, "arm_table", lambda *_: None)
    _, table = lab.sensitivity(one_seed)
    spreads = means(table, "standard deviation within a question")
    shares = means(table, "its share that the right answer explains")
    for k in (0, 1, 3, 8):
        found, explained = [], []
        for subset in itertools.combinations(rewards.ASPECTS, k):
            gaps, right = [], []
            for question in [answers[1:] for answers in rows]:  # the first is the greedy one
                sums = [sum(row[name] for name in subset) + row["right"] for row in question]
                gaps += [x - statistics.mean(sums) for x in sums]
                right += [row["right"] - statistics.mean(r["right"] for r in question) for row in question]
            found.append(math.sqrt(statistics.mean(x * x for x in gaps)))
            explained.append(statistics.correlation(gaps, right) ** 2)
        assert spreads[k] == pytest.approx(statistics.mean(found))
        assert shares[k] == pytest.approx(statistics.mean(explained))


@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_context_with_k_distractors_is_the_gold_one_and_k_more_paragraphs(k, tmp_path):
    gold, full = (data.load("tiny", "test", 20, which) for which in ("gold", "all"))
    records = [lab.with_distractors(*pair, k) for pair in zip(gold, full, strict=True)]
    (tmp_path / "k.json").write_text(json.dumps(records))
    for g, f, e in zip(gold, full, data.load(tmp_path / "k.json", "test", context="all"), strict=True):
        assert (e.question, e.answers, e.type) == (g.question, g.answers, g.type)
        assert e.supporting_sentences == g.supporting_sentences
        assert len(e.paragraphs) == min(len(g.paragraphs) + k, len(f.paragraphs))
        texts = [p.sentences for p in e.paragraphs]
        assert all(p.sentences in texts for p in g.paragraphs)
        assert texts == [p.sentences for p in f.paragraphs if p.sentences in texts]  # in the original order
        assert k < 4 or e.context == f.context
        assert k > 0 or e.context == g.context


def told(right, quality, factuality):
    """A question's answers, the greedy one first."""
    return [answer("", r, q, factuality=factuality) for r, q in zip(right, quality, strict=True)]


def test_arms_are_compared_with_the_first_by_hand(monkeypatch, tmp_path):
    answers = {
        "kd": [told([1, 0, 1], [4.0, 5.0, 3.0], 0.5), told([0, 1, 0], [5.0, 7.0, 2.0], 0.25)],
        "rl": [told([1, 1, 0], [6.0, 2.0, 6.5], 1.0), told([1, 0, 1], [7.0, 1.0, 8.0], 0.5)],
    }
    monkeypatch.setattr(lab.Lab, "answers", lambda self, folders, split, samples: [answers[f.name] for f in folders])
    looks = [{"step": 0, "reward": 5.0}, {"step": 10, "reward": 7.0}, {"step": 20, "reward": 6.0}]
    logs = {"kd": {"metrics": [{"held_out_loss": 1.0}]}, "rl": {"metrics": [{"reward": 5.0, "kl": 1.0},
            {"reward": 5.0, "kl": 3.0}], "dev": looks}}  # fmt: skip
    for name, files in logs.items():
        (tmp_path / name).mkdir()
        for file, rows in files.items():
            (tmp_path / name / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = lab.Lab(lab.Settings(seeds=1, out=str(tmp_path)))
    table = lab.arm_table(here, "Title.", {name: [tmp_path / name] for name in answers}, "dev", samples=2)
    assert table["title"] == "Title. 2 dev questions."
    assert means(table, "EM %") == {"kd": 50, "rl": 100} and means(table, "minus kd, EM %") == {"kd": None, "rl": 50}
    assert means(table, "R_aspect") == {"kd": 4.5, "rl": 6.5}
    assert means(table, "minus kd, R_aspect") == {"kd": None, "rl": 2}
    assert means(table, "factuality") == {"kd": 0.375, "rl": 0.75}
    # By quality: 5.0 wrong, 7.0 right; 6.5 wrong, 8.0 right. The worst of two would be 3.0 right, 2.0 wrong, …
    assert means(table, "best of N, EM %") == {"kd": 50, "rl": 50}
    answers["rl"][0][2]["right"] = 1
    table = lab.arm_table(here, "Title.", {name: [tmp_path / name] for name in answers}, "dev", samples=2)
    assert means(table, "best of N, EM %") == {"kd": 50, "rl": 100}
    assert means(table, "step kept") == {"kd": None, "rl": 10}
    assert means(table, "KL at the last step") == {"kd": None, "rl": 3}


EM = {  # (1 seed, 4 questions), per cent
    "standard": [100, 0, 0, 0], "CoT": [0, 0, 0, 0], "LM-guided, KD": [100, 100, 0, 0],
    "LM-guided, RL": [100, 100, 100, 0],
}  # fmt: skip


def test_methods_are_compared_with_each_baseline_by_hand():
    em = {name: np.array([row], dtype=float) for name, row in EM.items()}
    costs = {"tokens per question": 2.0, "seconds per question": 0.5}
    table = lab.method_table("", em, {name: costs for name in em})
    assert means(table, "EM %") == dict(zip(EM, (25, 0, 50, 75), strict=True))
    assert means(table, "minus standard, %") == dict(zip(EM, (None, -25, 25, 50), strict=True))
    assert means(table, "minus CoT, %") == dict(zip(EM, (25, None, 50, 75), strict=True))
    assert means(table, "minus LM-guided, KD, %") == dict(zip(EM, (-25, -50, None, 25), strict=True))


def test_other_questions_are_asked_and_compared_by_hand(monkeypatch, tmp_path):
    asked = []

    def compare(self, name, place="", split="test", context="gold", models=(), with_rl=False):
        asked.append((place, split, context, with_rl))
        kinds = ("", "", "", "") if split == "test" else ("3-hop", "new pair", "3-hop", "new pair")
        examples = [data.Example(str(i), "?", (), "x", type=kind) for i, kind in enumerate(kinds)]
        return {name: np.array([row], dtype=float) for name, row in EM.items()}, {}, examples

    monkeypatch.setattr(lab.Lab, "compare", compare)
    (table,) = lab.ood(lab.Lab(lab.Settings(seeds=1, out=str(tmp_path))))
    assert asked == [("", "test", "gold", True), ("", "test", "all", True), ("tiny", "ood", "gold", True)]
    gains = {"test, gold paragraphs": 50, "test, all paragraphs": 50, "ood, all questions": 50, "ood, 3-hop": 50,
             "ood, new pair": 50}  # fmt: skip
    assert means(table, "KD minus CoT, %") == gains
    assert means(table, "RL minus KD, %") == {**dict.fromkeys(gains, 25), "ood, 3-hop": 50, "ood, new pair": 0}
    assert means(table, "number") == {**dict.fromkeys(gains, 4), "ood, 3-hop": 2, "ood, new pair": 2}


def test_every_arm_is_trained_with_the_flags_that_its_name_says_from_runs_that_are_there(monkeypatch, tmp_path):
    """What the scripts make of the flags, for all trainings of all experiments, with two seeds."""
    made = {}

    def run(self, script, name, *flags):
        if name not in made:
            settings = parse_settings(lab.SCRIPTS[script], None, [*map(str, flags)])
            if script == "train_rl.py":
                assert settings.kd == str(tmp_path / f"kd-{settings.seed}") and f"kd-{settings.seed}" in made
            elif name not in ("kd-0", "tuned-large"):
                assert settings.rationales == str(tmp_path / "kd-0") and "kd-0" in made
            made[name] = settings
            (tmp_path / name).mkdir()
            (tmp_path / name / "filter.json").write_text('[{"kept": 1, "asked": 2}]')
        return tmp_path / name

    monkeypatch.setattr(lab.Lab, "run", run)
    monkeypatch.setattr(lab.Lab, "compare", lambda *a, **k: ({}, {}, []))
    monkeypatch.setattr(lab.Lab, "answers", lambda *a: [QUESTIONS])
    for name in ("arm_table", "method_table", "of_sum"):
        monkeypatch.setattr(lab, name, lambda *a: (0.0, 0.0))
    monkeypatch.setattr(lab, "grid", lambda *a: np.zeros((1, 2, 3)))
    here = lab.Lab(lab.Settings(seeds=2, out=str(tmp_path)))
    for make in (lab.reward, lab.aspects, lab.filter_, lab.sizes, lab.reader, lab.sensitivity):
        make(here)

    everything = dict.fromkeys(rewards.ASPECTS, 1.0)
    content = dict.fromkeys(("factuality", "relevance", "logicality", "coherence"), 0.0)
    nothing = dict.fromkeys(everything, 0.0)
    form = everything | content
    weighted = {"rl-task": nothing, "rl20-factuality-only": nothing | {"factuality": 1}, "rl20-form-only": form,
                "rl20-content-only": {name: 1 - form[name] for name in form},
                "rl20-factuality-x-4": everything | {"factuality": 4}}  # fmt: skip
    weighted |= {f"rl20-without-{name}": everything | {name: 0} for name in everything}
    changed = {
        "kd": {}, "kd-unfiltered": {"filter": False}, "kd-other": {"small": "tiny/large"},
        "tuned-large": {"small": "tiny/large", "target": "answer", "epochs": 3},
        "rl-both": {}, "rl-aspect": {"task_weight": 0}, "rl-standardized": {"reward": "standardized"},
        "rl20-all-eight": {}, "rl20-beta-0": {"beta": 0}, "rl20-beta-0.2": {"beta": 0.2},
        "rl20-lr-0.00021": {"lr": 2.1e-4}, "rl20-lr-2.33333e-05": {"lr": 2.33333e-5},
        **{f"rl20-task-weight-{weight}": {"task_weight": weight} for weight in (0, 1, 16)},
    }  # fmt: skip
    arms = {name: re.sub(r"-[01]$", "", name) for name in made}
    assert set(arms.values()) == weighted.keys() | changed.keys()
    for name, arm in arms.items():
        found, expected = vars(made[name]), vars(type(made[name])())
        if "weights" in found:
            assert rewards.parse_weights(found["weights"]) == weighted.get(arm, everything), name
        expected |= {"test_limit": 20, "samples": 2, "seed": int(name.endswith("-1")), **changed.get(arm, {})}
        if arm.startswith("rl20-"):
            expected["steps"] = 20
        differ = {key for key in expected if found[key] != expected[key]}
        assert differ <= {"weights", "kd", "rationales", "out"}, name


# ------------------------------------------------------------------------------------------------ score


PROMPTS = [lmcot.STANDARD.format(question="Who directed Stormgate?", context=text)
           for text in ("Fitront directed Stormgate.", "Fitront directed Stormgate. Stormgate has music by Cobla.")]


def test_scores_are_those_of_one_token_after_the_other():
    lm = lmcot.LocalLM.load(ROOT / "tiny" / "small", batch_size=2)
    prompts, answers = PROMPTS + PROMPTS, ["Fitront", "no", "The director of Stormgate is Fitront.", ""]
    for prompt, answer, score in zip(prompts, answers, lab.score(lm, prompts, answers), strict=True):
        ids = torch.tensor([lm.tokenizer.encode(prompt).ids])
        inputs, total = [0], 0.0
        for token in lm.tokenizer.encode(answer).ids:
            with torch.no_grad():
                logits = lm.model(ids, torch.ones_like(ids), torch.tensor([inputs]))[0, -1].double()
            allowed = logits[1 : lm.tokenizer.get_vocab_size()]  # neither pad nor rows without a token
            total += float(logits[token] - torch.logsumexp(allowed, 0))
            inputs.append(token)
        assert inputs[-1] == 1  # EOS is part of the answer
        assert score == pytest.approx(total, abs=1e-3)


def test_the_greedy_answer_scores_highest_of_all_names_and_all_of_them_have_less_than_one_in_all():
    lm = lmcot.LocalLM.load(ROOT / "tiny" / "small")
    answers = ["yes", "no", *world.NAMES["person"], *world.NAMES["city"]]
    scores = lab.score(lm, PROMPTS[:1] * len(answers), answers)
    (greedy,) = lm.complete(PROMPTS[:1], 8)
    assert answers[scores.index(max(scores))] == greedy.text and sum(map(math.exp, scores)) < 1


# ------------------------------------------------------------------------------------------------ what can go wrong


def method(em, against_cot=None, r_against_kd=None, em_against_kd=None, seconds=0.1):
    def cell(bounds):
        return {"mean": sum(bounds) / 2, "interval": list(bounds)}

    row = {"EM": {"mean": em}, "R_aspect": {}, "seconds per question": seconds}
    if against_cot:
        row["EM"]["minus CoT"] = cell(against_cot)
    if r_against_kd:
        row["R_aspect"]["minus LM-guided, KD"] = cell(r_against_kd)
        row["EM"]["minus LM-guided, KD"] = cell(em_against_kd)
    return row


def ppo(rewards_seen, **last):
    steady = {"ratio_max": 1.5, "kl": 1.0, "entropy": 0.2, "length": 14.0, "ended": 1.0}
    rows = [steady | {"reward": float(reward)} for reward in rewards_seen]
    rows[-1] |= last
    return rows


HEALTHY = {
    "CoT": method(0.4),
    "LM-guided, KD": method(0.5, against_cot=(0.05, 0.15)),
    "LM-guided, RL": method(0.6, (0.1, 0.3), r_against_kd=(0.5, 0.9), em_against_kd=(0.02, 0.2)),
}
RISING = [5 + 0.05 * i + 0.02 * (-1) ** i for i in range(20)]


def test_a_healthy_run_has_no_signature_of_failure():
    assert lab.signatures({"methods": HEALTHY}, ppo(RISING)) == [] == lab.signatures(None, [])


@pytest.mark.parametrize("methods, metrics, name", [
    ({"LM-guided, RL": method(0.5, (0.05, 0.15), r_against_kd=(0.5, 0.9), em_against_kd=(-0.02, 0.02))}, ppo(RISING),
     "low accuracy despite high rationale scores"),
    ({"LM-guided, KD": method(0.3, against_cot=(-0.15, -0.05))}, ppo(RISING), "LM-guided worse than CoT"),
    ({"LM-guided, KD": method(0.5, (0.05, 0.15), seconds=0.5)}, ppo(RISING), "long inference times"),
    ({}, ppo(5 + 0.5 * np.random.default_rng(0).standard_normal(20)), "high variance of rewards: ± 0."),
    ({}, ppo(RISING, kl=80.0), "hacking"),  # what PPO warns of while it runs
])  # fmt: skip
def test_each_signature_of_failure_is_named_alone(methods, metrics, name):
    (found,) = lab.signatures({"methods": HEALTHY | methods}, metrics)
    assert name in found


def test_a_steady_rise_is_not_unsteady():
    assert lab.unsteadiness(ppo(np.arange(40))) == pytest.approx(0)


# ------------------------------------------------------------------------------------------------ commands


def run(patch, *arguments):
    return call(patch, lab.main, *arguments)


def without_minutes(folder):
    results = {path.name: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}
    return {name: {k: v for k, v in result.items() if k not in ("cpu_minutes", "command")}
            for name, result in results.items()}  # fmt: skip


@pytest.fixture
def ready(tmp_path):
    """Makes folders in which KD has "ended": the embedded M_S as it is, for two seeds."""

    def make(name):
        folder = tmp_path / name
        settings = lab.Settings(seeds=2, out=str(folder))
        for seed in range(2):
            shutil.copytree(ROOT / "tiny/small", folder / f"kd-{seed}" / "model")
            more = ["--seed", seed] + [f"--rationales={folder / 'kd-0'}"] * seed
            common = [*lab.Lab(settings).models, "--data=tiny", "--test-data=", *lab.QUICK]
            wanted = parse_settings(lab.train_kd.Settings, None, [*map(str, common + more), f"--out={folder}"])
            (folder / f"kd-{seed}" / "settings.json").write_text(json.dumps(vars(wanted)))
            (folder / f"kd-{seed}" / "results.md").write_text("a table")
        return folder

    return make


def test_an_interrupted_experiment_goes_on_to_the_same_result(ready, monkeypatch, capsys):
    whole, cut = ready("whole"), ready("cut")
    sizes = ["--seeds", 2, "--limit", 3, "--samples", 2]
    assert run(monkeypatch, "selection", *sizes, "--out", whole) == 0
    ask, asked = lab.ask, []

    def ask_once(*arguments):
        if asked:
            raise KeyboardInterrupt
        asked.append(arguments)
        return ask(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lab, "ask", ask_once)
        assert run(patch, "selection", *sizes, "--out", cut) == 130
    assert without_minutes(cut) == {}
    monkeypatch.setattr(lab, "ask", lambda *a: asked.append(a) or ask(*a))
    assert run(monkeypatch, "selection", *sizes, "--out", cut) == 0
    assert without_minutes(cut) == without_minutes(whole) and len(asked) == 2  # what was there is not asked again
    (result,) = without_minutes(cut).values()
    assert result["seeds"] == 2 and "oracle" in (cut / "results" / "selection.md").read_text()
    assert run(monkeypatch, "samples", *sizes, "--out", cut) == 0 and len(asked) == 2  # another shares the answers
    capsys.readouterr()


def test_an_m_s_that_was_trained_anew_is_asked_anew_and_comparisons_of_the_old_one_are_refused(ready, monkeypatch):
    folder, asked = ready("runs"), []
    monkeypatch.setattr(lab, "ask", lambda *a: asked.append(a) or [[{"rationale": str(len(asked))}]])
    here = lab.Lab(lab.Settings(seeds=2, limit=1, out=str(folder)))
    eval_flags = ["--kd", f"{folder}/kd-[0-1]", f"--out={folder / 'eval'}"]
    with Run(folder / "eval", parse_settings(lab.EvalSettings, None, eval_flags)) as run:
        run.uses({f"kd {seed}": folder / f"kd-{seed}/model/model.safetensors" for seed in range(2)})
        run.write("results.md", "a table")
    before = here.answers(here.kd(), "dev")
    assert here.answers(here.kd(), "dev") == before and here.run("eval.py", "eval", *eval_flags[:2]) and len(asked) == 2
    T5.from_pretrained(folder / "kd-1/model").init_weights(1).save_pretrained(folder / "kd-1/model")
    after = here.answers(here.kd(), "dev")
    assert after[0] == before[0] and after[1] != before[1] and len(asked) == 3
    with pytest.raises(data.UserError, match=rf"another kd 1 than {folder}/kd-1/.*: delete {folder}/eval"):
        here.run("eval.py", "eval", *eval_flags[:2])


def test_an_m_s_may_be_a_name_of_the_hub(ready, monkeypatch):
    loaded, here = [], lab.Lab(lab.Settings(limit=1, out=str(ready("runs"))))
    small = lab.lmcot.load_small(lab.lmcot.Models(), "tiny/small")
    monkeypatch.setattr(lab, "ask", lambda *a: [[{}]])
    monkeypatch.setattr(lab.lmcot, "load_small", lambda models, place: loaded.append(place) or small)
    assert here.answers(["google/flan-t5-small"], "dev") == [[[{}]]]
    assert loaded == ["google/flan-t5-small"]  # a text, which `load_small` takes for a name; a Path would be a folder


def test_a_run_with_other_settings_is_refused_in_one_sentence(ready, monkeypatch, capsys):
    folder = ready("runs")
    assert run(monkeypatch, "selection", "--kd-flags=--lr 0.5", "--seeds", 2, "--out", folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: selection: ") and "lr is 0.0003 there and 0.5 here" in error
    assert f"delete {folder / 'kd-0'}" in error and "--overwrite" not in error  # which is no flag of experiments
    assert not (folder / "results" / "selection.json").exists()


def test_a_failing_training_stops_its_experiment_and_no_other(monkeypatch, tmp_path, capsys):
    def bad(lab):
        """?"""
        return lab.run("train_kd.py", "kd-0")

    def good(lab):
        """?"""
        return []

    monkeypatch.setattr(lab, "EXPERIMENTS", {"bad": (bad, 0), "good": (good, 0)})
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # a script that fails
    assert run(monkeypatch, "all", "--out", tmp_path) == 2
    assert "bad: train_kd.py stopped" in capsys.readouterr().err
    assert (tmp_path / "results" / "good.json").exists() and not (tmp_path / "results" / "bad.json").exists()


def test_without_a_name_the_experiments_are_listed_and_a_wrong_one_is_an_error(monkeypatch, capsys):
    assert run(monkeypatch) == 0
    listed = capsys.readouterr().out
    assert len(lab.EXPERIMENTS) == 12 and all(f"| {name} " in listed for name in lab.EXPERIMENTS)
    assert run(monkeypatch, "all", "--kd-flags", '"') == 2 and "No closing quotation" in capsys.readouterr().err
    assert run(monkeypatch, "mehtods") == 2 and "there is no experiment 'mehtods'" in capsys.readouterr().err


QUICKEST = ["--seeds", 2, "--limit", 6, "--samples", 3, "--steps", 2,
            "--kd-flags=--train-limit 60 --dev-limit 20 --epochs 1 --test-limit 2",
            "--rl-flags=--steps 3 --prompts 4 --dev-limit 8 --train-limit 60 --test-limit 2"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_experiment_killed_again_and_again_ends_with_the_table_of_an_undisturbed_one(tmp_path):
    command = [sys.executable, str(ROOT / "lab" / "experiments.py"), "reward", *map(str, QUICKEST), "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert subprocess.run([*command, str(whole)], capture_output=True, cwd=tmp_path).returncode == 0
    chance, kills, status = random.Random(0), 0, None
    while status is None:
        process = subprocess.Popen([*command, str(cut)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True, cwd=tmp_path)  # fmt: skip
        try:
            status = process.wait(chance.uniform(4, 16) if kills < 20 else None)  # seconds
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the experiment, and the script that it runs
            process.wait()
            kills += 1
    print(f"{kills} kills")
    assert status == 0 and kills >= 10
    assert without_minutes(cut) == without_minutes(whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SAMPLES.exists(), reason="the real samples are not here")
def test_other_data_sets_are_out_of_distribution_for_models_with_flans_tokenizer(tmp_path):
    """Real records; random models of FLAN-T5's form, a hundredth of its size, that have learned to say one sentence."""
    for seed, name in enumerate(("small", "large")):
        save_flan_form(tmp_path / name, seed, 3e-3, 60, d_model=64, d_ff=64, num_layers=1, num_decoder_layers=1)
    others = [str(SAMPLES / name) for name in ("musique_dev_sample.json", "strategyqa_sample.json")]
    command = [sys.executable, ROOT / "lab" / "experiments.py", "ood", "--small", "small", "--large", "large",
               "--data", SAMPLES / "2wikimultihop_train_sample.json", "--ood", ",".join(others),
               "--test-data", SAMPLES / "2wikimultihop_dev_sample.json", "--seeds", 1, "--limit", 4,
               "--kd-flags=--no-filter --train-limit 16 --dev-limit 4 --epochs 1 --max-new-tokens 24 --test-limit 2",
               "--rl-flags=--steps 2 --prompts 2 --train-limit 8 --dev-limit 2 --test-limit 2"]  # fmt: skip
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (table,) = json.loads((tmp_path / "runs/lab/results/ood.json").read_text())["tables"]
    labels = [row[0] for row in table["rows"]]
    assert labels[:2] == ["test, gold paragraphs", "test, all paragraphs"]
    assert [label for label in labels if label.endswith("all questions")] == [f"{o}, all questions" for o in others]
    assert all(row[1] > 0 and len(row) == len(table["columns"]) for row in table["rows"])
