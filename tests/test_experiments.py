"""lab/experiments.py: its statistics against brute force and values worked by hand; a killed experiment goes on."""

import itertools
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import SAMPLES, call, save_flan_form, write_run
from hypothesis import given
from hypothesis import strategies as st

import data
import lmcot
import rewards
from lab import experiments as lab
from model import T5
from plumbing.command import parse_settings
from plumbing.run import Run

ROOT = Path(__file__).parents[1]

# ------------------------------------------------------------------------------------------------ statistics

samples = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12)


@given(samples)
def test_auroc_is_the_share_of_pairs_that_are_ranked_rightly_and_correlation_is_pearsons(rows):
    scores, right = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    pairs = [(a, b) for a, r in rows if r for b, w in rows if not w]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    assert lab.auroc(scores, right) == pytest.approx(sum(wins) / len(wins) if wins else np.nan, nan_ok=True)
    varies = scores.std() > 0 and right.std() > 0
    expected = statistics.correlation(scores, right) if varies else np.nan
    assert lab.correlation(scores, right) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@given(st.lists(samples, min_size=1, max_size=5))
def test_auroc_within_questions_counts_only_pairs_of_the_same_question(questions):
    n = min(map(len, questions))
    grid = np.array([[rows[:n] for rows in questions]], dtype=float)  # (1 seed, Q, n, 2)
    won, pairs = lab.pairs_within(grid[..., 0], grid[..., 1])
    expected = [(a, b) for rows in questions for a, r in rows[:n] if r for b, w in rows[:n] if not w]
    assert pairs.sum() == len(expected)
    assert won.sum() == sum((a > b) + 0.5 * (a == b) for a, b in expected)


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


# Samples by quality: 7.2 wrong · 7 right · 6 wrong · 5 right · 4.5 right · 4 wrong · 3 wrong · 1 wrong
RELIABILITY = {
    "kept %": {0: 100, 4: 75, 5: 50, 5.5: 37.5, 6: 37.5, 6.5: 25, 7: 25},  # none of 7.25 and more
    "EM % of these": {0: 37.5, 4: 50, 5: 50, 5.5: 100 / 3, 6: 100 / 3, 6.5: 50, 7: 50},
    "EM % of the others": {0: None, 4: 0, 5: 25, 5.5: 40, 6: 40, 6.5: 100 / 3, 7: 100 / 3},
}
# Quality has mean 4.7 and standard deviation 1.9, confidence -0.6 and 0.57. In standard units, first question:
# (0.68, 0.18) wrong, (0.15, 0.88) right, (1.31, -0.53) wrong, (-1.96, -2.46) wrong; the second is right by both.
# Halves: 0.43, 0.51 (right), 0.39; a quarter of confidence: 0.55, 0.33, 0.85 (wrong).
SELECTION = {
    "greedy, no choice": 100, "first sampled": 50, "by R_aspect": 50, "majority of answers": 50,
    "by 25% R_aspect, 75% confidence": 100, "by 50% R_aspect, 50% confidence": 100,
    "by 75% R_aspect, 25% confidence": 50, "by M_L's confidence": 100, "the worst by R_aspect": 0,
    "by factuality alone": 50, "oracle: right if any is": 100,
}  # fmt: skip
# First question by rank: wrong, wrong, right, wrong; second: right, right, wrong, wrong
RANKS = {"EM %": {1: 50, 2: 50, 3: 50, 4: 0}, "R_aspect": {1: 7.1, 2: 5.25, 3: 4.5, 4: 2}}
SAMPLES_COST = {
    "SC, EM %": {1: 50, 2: 50, 4: 50},  # b, then y; a tie (b a, y x): the first; b b b a, y y x z
    "oracle, EM %": {1: 50, 2: 100, 4: 100},
    "SC: tokens": {1: 12, 2: 24, 4: 48},
    "best: tokens": {1: 12, 2: 22, 4: 42},
}


@pytest.mark.parametrize("experiment, number, expected", [
    (lab.reliability, 0, RELIABILITY), (lab.selection, 0, {"EM %": SELECTION}), (lab.selection, 1, RANKS),
    (lab.samples, 0, SAMPLES_COST),
])  # fmt: skip
def test_tables_over_sampled_rationales_hold_what_is_counted_by_hand(one_seed, experiment, number, expected):
    table = experiment(one_seed)[number]
    for column, cells in expected.items():
        assert means(table, column) == pytest.approx(cells), column


def test_ways_that_choose_before_m_l_answers_ask_it_once(one_seed):
    ways, _ = lab.selection(one_seed)
    asked = means(ways, "answers asked of M_L")
    assert asked["by R_aspect"] == 1 and asked["majority of answers"] == asked["by M_L's confidence"] == 4
    assert means(ways, "minus greedy, %")["by R_aspect"] == -50


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
        "kd": [told([1, 0, 1], [4.0, 3.0, 5.0], 0.5), told([0, 1, 0], [5.0, 7.0, 2.0], 0.25)],
        "rl": [told([1, 1, 0], [6.0, 2.0, 6.5], 1.0), told([1, 0, 1], [7.0, 1.0, 8.0], 0.5)],
    }
    monkeypatch.setattr(lab.Lab, "answers", lambda self, folders, split, samples: [answers[f.name] for f in folders])
    write_run(tmp_path / "kd", {}, metrics=[{"held_out_loss": 1.0}])
    steps = [{"reward": 5.0, "kl": 1.0}, {"reward": 5.0, "kl": 3.0}]
    looks = [{"step": 0, "reward": 5.0}, {"step": 10, "reward": 7.0}, {"step": 20, "reward": 6.0}]
    write_run(tmp_path / "rl", {}, metrics=steps, dev=looks)
    here = lab.Lab(lab.Settings(seeds=1, out=str(tmp_path)))
    table = lab.arm_table(here, "Title.", {name: [tmp_path / name] for name in answers}, "dev", samples=2)
    assert table["title"] == "Title. 2 dev questions."
    assert means(table, "EM %") == {"kd": 50, "rl": 100} and means(table, "minus kd, EM %") == {"kd": None, "rl": 50}
    assert means(table, "R_aspect") == {"kd": 4.5, "rl": 6.5}
    assert means(table, "minus kd, R_aspect") == {"kd": None, "rl": 2}
    assert means(table, "factuality") == {"kd": 0.375, "rl": 0.75}
    # By quality, kd: 5.0 right, 7.0 right; rl: 6.5 wrong, 8.0 right
    assert means(table, "best of N, EM %") == {"kd": 100, "rl": 50}
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


def test_every_training_has_flags_that_its_script_knows_and_rewards_what_its_name_says(monkeypatch, tmp_path):
    made = {}

    def run(self, script, name, *flags):
        made[name.removesuffix("-0")] = parse_settings(lab.SCRIPTS[script], None, [*map(str, flags)])
        write_run(tmp_path / name, {})
        (tmp_path / name / "filter.json").write_text('[{"kept": 1, "asked": 2}]')
        return tmp_path / name

    monkeypatch.setattr(lab.Lab, "run", run)
    monkeypatch.setattr(lab.Lab, "compare", lambda *a, **k: ({}, {}, []))
    monkeypatch.setattr(lab.Lab, "answers", lambda *a: [QUESTIONS])
    for name in ("arm_table", "method_table", "of_sum"):
        monkeypatch.setattr(lab, name, lambda *a: (0.0, 0.0))
    here = lab.Lab(lab.Settings(seeds=1, out=str(tmp_path)))
    for make in (lab.reward, lab.aspects, lab.filter_, lab.sizes, lab.reader, lab.sensitivity):
        make(here)

    everything = dict.fromkeys(rewards.ASPECTS, 1)
    content = ("factuality", "relevance", "logicality", "coherence")
    form = ("consistency", "fluency", "naturalness", "readability")
    expected = {name: everything for name in made if name.startswith("rl")}
    expected |= {f"rl20-without-{name}": everything | {name: 0} for name in rewards.ASPECTS}
    expected |= {"rl-task": dict.fromkeys(everything, 0), "rl20-factuality-x-4": everything | {"factuality": 4},
                 "rl20-factuality-only": dict.fromkeys(everything, 0) | {"factuality": 1},
                 "rl20-content-only": everything | dict.fromkeys(form, 0),
                 "rl20-form-only": everything | dict.fromkeys(content, 0)}  # fmt: skip
    assert {name: rewards.parse_weights(made[name].weights) for name in expected} == expected


# ------------------------------------------------------------------------------------------------ score


def test_scores_are_those_of_one_token_after_the_other():
    lm = lmcot.LocalLM.load(ROOT / "tiny" / "small", batch_size=2)
    contexts = ["Fitront directed Stormgate.", "Fitront directed Stormgate. Stormgate has music by Cobla."]
    prompts = [lmcot.STANDARD.format(question="Who directed Stormgate?", context=text) for text in contexts * 2]
    answers = ["Fitront", "no", "The director of Stormgate is Fitront.", ""]
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


# ------------------------------------------------------------------------------------------------ what can go wrong


def cell(low, high):
    return {"mean": (low + high) / 2, "interval": [low, high]}


def ppo(rewards_seen, **last):
    steady = {"ratio_max": 1.5, "kl": 1.0, "entropy": 0.2, "length": 14.0, "ended": 1.0}
    rows = [steady | {"reward": float(reward)} for reward in rewards_seen]
    rows[-1] |= last
    return rows


KD, RL = "LM-guided, KD", "LM-guided, RL"
HEALTHY = {
    "CoT": {"EM": {}, "seconds per question": 0.1},
    KD: {"EM": {"minus CoT": cell(0.05, 0.15)}, "seconds per question": 0.1},
    RL: {"EM": {f"minus {KD}": cell(0.02, 0.2)}, "R_aspect": {f"minus {KD}": cell(0.5, 0.9)},
         "seconds per question": 0.1},
}  # fmt: skip
RISING = [5 + 0.05 * i + 0.02 * (-1) ** i for i in range(20)]
NOISY = 5 + 0.5 * np.random.default_rng(0).standard_normal(20)


@pytest.mark.parametrize("method, change, metrics, names", [
    (KD, {}, ppo(RISING), []),  # a healthy run
    (RL, {"EM": {f"minus {KD}": cell(-0.02, 0.02)}}, ppo(RISING), ["low accuracy despite high rationale scores"]),
    (KD, {"EM": {"minus CoT": cell(-0.15, -0.05)}}, ppo(RISING), ["LM-guided worse than CoT"]),
    (KD, {"seconds per question": 0.5}, ppo(RISING), ["long inference times"]),
    (KD, {}, ppo(NOISY), ["high variance of rewards: ± 0."]),
    (KD, {}, ppo(RISING, kl=80.0), ["hacking"]),  # what PPO warns of while it runs
])  # fmt: skip
def test_each_signature_of_failure_is_named_alone(method, change, metrics, names):
    found = lab.signatures({"methods": HEALTHY | {method: HEALTHY[method] | change}}, metrics)
    assert len(found) == len(names)
    assert all(name in sentence for name, sentence in zip(names, found, strict=True))


def test_a_steady_rise_is_not_unsteady():
    assert lab.unsteadiness(ppo([9, 1, 9, 1, *range(4)])) == pytest.approx(0)  # of the second half


# ------------------------------------------------------------------------------------------------ commands


def run(patch, *arguments):
    return call(patch, lab.main, *arguments)


def without_minutes(folder):
    """The results of a laboratory's folder: file → question and tables."""
    results = {}
    for path in (folder / "results").glob("*.json"):
        result = json.loads(path.read_text())
        results[path.name] = (result["question"], result["seeds"], result["tables"])
    return results


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


def test_an_interrupted_experiment_goes_on_to_the_same_result(ready, monkeypatch):
    whole, cut = ready("whole"), ready("cut")
    sizes = ["--seeds", 2, "--limit", 3, "--samples", 2]
    assert run(monkeypatch, "selection", *sizes, "--out", whole) == 0
    ask, asked = lab.ask, []

    def ask_once(*arguments):
        if asked:
            raise KeyboardInterrupt
        asked.append(arguments)
        return ask(*arguments)

    monkeypatch.setattr(lab, "ask", ask_once)
    assert run(monkeypatch, "selection", *sizes, "--out", cut) == 130
    assert without_minutes(cut) == {}
    monkeypatch.setattr(lab, "ask", lambda *a: asked.append(a) or ask(*a))
    assert run(monkeypatch, "selection", *sizes, "--out", cut) == 0
    assert without_minutes(cut) == without_minutes(whole) and len(asked) == 2  # what was there is not asked again
    assert run(monkeypatch, "samples", *sizes, "--out", cut) == 0 and len(asked) == 2  # another shares the answers


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


def test_a_run_with_other_settings_is_refused_in_one_sentence(ready, monkeypatch, capsys):
    folder = ready("runs")
    assert run(monkeypatch, "selection", "--kd-flags=--lr 0.5", "--seeds", 2, "--out", folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: selection: ") and "lr is 0.0003 there and 0.5 here" in error
    assert f"delete {folder / 'kd-0'}" in error and "--overwrite" not in error  # which is no flag of experiments
    assert not (folder / "results" / "selection.json").exists()


def test_a_failing_training_stops_its_experiment_and_no_other(monkeypatch, tmp_path, capsys):
    experiments = {"filter": lab.EXPERIMENTS["filter"], "good": (lambda lab: [], 0)}
    experiments["good"][0].__doc__ = "?"
    monkeypatch.setattr(lab, "EXPERIMENTS", experiments)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # a script that fails
    assert run(monkeypatch, "all", "--out", tmp_path) == 2
    assert "filter: train_kd.py stopped" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "results").glob("*.json")] == ["good.json"]


def test_without_a_name_the_experiments_are_listed_and_a_wrong_one_is_an_error(monkeypatch, capsys):
    assert run(monkeypatch) == 0
    listed = capsys.readouterr().out
    assert len(lab.EXPERIMENTS) == 12 and all(f"| {name} " in listed for name in lab.EXPERIMENTS)
    assert run(monkeypatch, "all", "--kd-flags", '"') == 2 and "No closing quotation" in capsys.readouterr().err
    assert run(monkeypatch, "mehtods") == 2 and "there is no experiment 'mehtods'" in capsys.readouterr().err


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
               "--rl-flags=--steps 2 --questions 2 --train-limit 8 --dev-limit 2 --test-limit 2"]  # fmt: skip
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (table,) = json.loads((tmp_path / "runs/lab/results/ood.json").read_text())["tables"]
    labels = [row[0] for row in table["rows"]]
    assert labels[:2] == ["test, gold paragraphs", "test, all paragraphs"]
    assert [label for label in labels if label.endswith("all questions")] == [f"{o}, all questions" for o in others]
    assert all(row[1] > 0 and len(row) == len(table["columns"]) for row in table["rows"])
