"""lab/experiments.py: its statistics and tables against brute force and values worked by hand; a cut one goes on."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import SAMPLES, call, failing_once, save_flan_form, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import lmcot
import rewards
import train_rl
from lab import experiments as lab
from lab import runs
from model import T5
from plumbing.command import parse_settings, parse_weights
from plumbing.run import Run

ROOT = Path(__file__).parents[1]

# ------------------------------------------------------------------------------------------------ statistics

samples = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12)


@settings(deadline=None)  # of a busy machine
@given(st.lists(samples, min_size=1, max_size=5))
def test_auroc_within_questions_counts_only_pairs_of_the_same_question(questions):
    n = min(map(len, questions))
    grid = np.array([[rows[:n] for rows in questions]], dtype=float)  # (1 seed, Q, n, 2)
    won, pairs = lab.pairs_within(grid[..., 0], grid[..., 1])
    expected = [(a, b) for rows in questions for a, r in rows[:n] if r for b, w in rows[:n] if not w]
    assert pairs.sum() == len(expected)
    assert won.sum() == sum((a > b) + 0.5 * (a == b) for a, b in expected)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["oslo", "rome", "paris", ""]), min_size=1, max_size=9))
def test_who_agrees_with_most_wins_the_vote(answers):
    votes = lab.agreement(np.array(answers))
    assert lab.chosen(votes, np.arange(len(answers))) == lmcot.majority(answers)


def test_draws_without_a_case_are_left_out_and_what_has_no_case_is_blank():
    right = np.zeros((1, 50))
    right[0, :2] = 1  # all that are kept are right; some draws keep none
    assert lab.estimate(lab.ratio, right, right) == {"mean": 1.0, "interval": [1.0, 1.0]}
    assert lab.estimate(lab.ratio, right, 0 * right) is None


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


# ------------------------------------------------------------------------------------------------ tables


def found(quality, right, prediction=None, rationale=""):
    """What `Lab.answers` gives for one seed, from (questions, 1 + samples) each."""
    quality = np.array([quality], dtype=float)
    aspects = {name: quality / 8 for name in rewards.ASPECTS}
    return {"R_aspect": quality, "R_aspect before the answer": quality, **aspects,
            "right": 100 * np.array([right], dtype=float), "tokens": np.full(quality.shape, 10),
            "prediction": np.array([prediction or right]).astype(str),
            "rationale": np.broadcast_to(np.array(rationale), quality.shape)}  # fmt: skip


QUESTIONS = found(  # the greedy rationale, then four samples
    quality=[[5, 6, 5, 7.2, 1], [5, 4.5, 4, 7, 3]],
    right=[[1, 0, 1, 0, 0], [1, 1, 0, 1, 0]],
    prediction=[["a", "b", "a", "b", "b"], ["y", "y", "x", "y", "z"]],
)


@pytest.fixture(autouse=True)
def few_draws(request, monkeypatch):
    if "intervals" not in request.node.name:
        monkeypatch.setattr(lab, "BOOTSTRAPS", 20)


@pytest.fixture
def one_seed(monkeypatch, tmp_path):
    """A laboratory whose only run is QUESTIONS."""
    monkeypatch.setattr(lab.Lab, "kd", lambda self: ["kd-0"])
    monkeypatch.setattr(lab.Lab, "answers", lambda self, folders, split, samples: QUESTIONS)
    return lab.Lab(lab.Settings(seeds=1, samples=4, out=str(tmp_path)))


def means(table, column):
    i = table["columns"].index(column)
    return {row[0]: row[i]["mean"] if isinstance(row[i], dict) else row[i] for row in table["rows"]}


# Samples by quality: 7.2 wrong · 7 right · 6 wrong · 5 right · 4.5 right · 4 wrong · 3 wrong · 1 wrong
THRESHOLD = {
    "kept %": {0: 100, 4: 75, 5: 50, 5.5: 37.5, 6: 37.5, 6.5: 25, 7: 25, 7.25: 0, 7.5: 0},
    "EM % of these": {0: 37.5, 4: 50, 5: 50, 5.5: 100 / 3, 6: 100 / 3, 6.5: 50, 7: 50, 7.25: None, 7.5: None},
    "EM % of the others": {0: None, 4: 0, 5: 25, 5.5: 40, 6: 40, 6.5: 100 / 3, 7: 100 / 3, 7.25: 37.5, 7.5: 37.5},
}
# Quality has mean 4.7 and standard deviation 1.9; votes are 3 1 3 3 and 2 1 2 1: 2 and 0.87. In standard units, the
# first question's second sample (right) is below its first in both; the second question's third is right and best.
SELECTION = {
    "greedy, no choice": 100, "first sampled": 50, "by factuality alone": 50, "the worst by R_aspect": 0,
    "by R_aspect": 50, "by 75% R_aspect, 25% votes of the 4 answers": 50,
    "by 50% R_aspect, 50% votes of the 4 answers": 50, "by 25% R_aspect, 75% votes of the 4 answers": 50,
    "by votes (self-consistency)": 50, "oracle: right if any is": 100,
}  # fmt: skip
BY_N = {
    "votes of N answers, EM %": {1: 50, 2: 50, 4: 50},  # b, then y; a tie (b a, y x): the first; b b b a, y y x z
    "best of N by R_aspect, EM %": {1: 50, 2: 50, 4: 50},
    "oracle, EM %": {1: 50, 2: 100, 4: 100},
    "tokens of M_S": {1: 10, 2: 20, 4: 40},
}


@pytest.mark.parametrize("experiment, number, expected", [
    (lab.threshold, 0, THRESHOLD), (lab.selection, 0, {"EM %": SELECTION}), (lab.selection, 1, BY_N),
])  # fmt: skip
def test_tables_over_sampled_rationales_hold_what_is_counted_by_hand(one_seed, experiment, number, expected):
    table = experiment(one_seed)[number]
    for column, cells in expected.items():
        assert means(table, column) == pytest.approx(cells), column


def test_quality_and_votes_are_weighed_against_each_other(one_seed, monkeypatch):
    """Both have standard deviation 1 already: the best by quality is wrong, the vote is right, and they tie at half."""
    quality, votes = np.array([[[1, -1]]]), np.array([[[-1, 1]]])
    monkeypatch.setattr(lab, "agreement", lambda predictions: votes)
    one = found([[0, 0, 0]], [[0, 0, 1]]) | {"R_aspect before the answer": np.insert(quality, 0, 0, -1)}
    monkeypatch.setattr(lab.Lab, "answers", lambda *_: one)
    monkeypatch.setattr(lab, "by_number", lambda *_: ([], []))
    em = means(lab.selection(one_seed)[0], "EM %")
    assert [em[f"by {share} votes of the 4 answers"] for share in
            ("75% R_aspect, 25%", "50% R_aspect, 50%", "25% R_aspect, 75%")] == [0, 0, 100]  # fmt: skip


def test_arms_are_compared_with_the_first_by_hand(monkeypatch, tmp_path):
    answers = {"kd": found([[4], [5]], [[1], [0]]), "rl": found([[6], [7]], [[1], [1]])}
    monkeypatch.setattr(lab.Lab, "answers", lambda self, folders, split: answers[folders[0].name])
    write_run(tmp_path / "kd", {}, metrics=[{"held_out_loss": 1.0}])
    looks = [{"step": 0, "reward": 5.0}, {"step": 10, "reward": 7.0}, {"step": 20, "reward": 6.0}]
    write_run(tmp_path / "rl", {}, metrics=[{"kl": 1.0}, {"kl": 3.0}], dev=looks)
    stretches = [("kd", 1.5), ("rl", 2.0), ("rl", 0.5), ("other", 9.0)]  # rl was cut off once
    write_run(tmp_path, {}, minutes=[{"name": name, "cpu_minutes": minutes} for name, minutes in stretches])
    here = lab.Lab(lab.Settings(seeds=1, limit=2, out=str(tmp_path)))
    table = lab.arm_table(here, "Title.", {name: [tmp_path / name] for name in answers}, "dev")
    assert table["title"] == "Title. 2 dev questions."
    assert means(table, "EM %") == {"kd": 50, "rl": 100} and means(table, "EM minus kd, %") == {"kd": None, "rl": 50}
    assert means(table, "R_aspect") == {"kd": 4.5, "rl": 6.5}
    assert means(table, "R_aspect minus kd") == {"kd": None, "rl": 2}
    assert means(table, "factuality") == {"kd": 4.5 / 8, "rl": 6.5 / 8}
    assert means(table, "CPU minutes of a seed") == {"kd": 1.5, "rl": 2.5}
    assert means(table, "step kept") == {"kd": None, "rl": 10}
    assert means(table, "KL at the last step") == {"kd": None, "rl": 3}


def test_curves_are_means_over_seeds_at_each_step_with_all_weights_1(tmp_path):
    ones = dict.fromkeys(rewards.ASPECTS, 0.5)
    seeds = []
    for seed, right in enumerate((0.25, 0.75)):
        looks = [{"step": step, "reward": 9.0, "R_aspect": 0.0, "R_task": right, **ones} for step in (0, 10)]
        seeds.append(write_run(tmp_path / str(seed), {}, dev=looks))
    table = lab.curves({"RL": seeds, "other": seeds[:1]})
    assert table["columns"] == ["step", "RL: EM %", "RL: R_aspect", "other: EM %", "other: R_aspect"]
    assert table["rows"] == [[0, 50, 4, 25, 4], [10, 50, 4, 25, 4]]


def test_classes_have_their_share_of_their_own_questions():
    """Three comparisons and one other question: of the comparisons, two are whole (one right), one is made up."""
    facts = data.Paragraph("", ("A is a.", "B is b."))
    comparison = data.Example("0", "?", (facts,), "x", supporting_facts=((0, 0), (0, 1)), type="comparison")
    questions = [comparison] * 3 + [data.Example("3", "?", (), "x", type="three_hops")]
    answers = [{"rationale": text, "prediction": prediction} for text, prediction in
               [("A is a. B is b.", "x"), ("B is b. A is a.", "y"), ("A is b.", "y"), ("", "x")]]  # fmt: skip
    cells = lab.class_cells(questions, *lab.texts_and_right(questions, [answers]))
    both, made_up = cells["comparison: both facts"], cells["comparison: unfaithful"]
    assert [both[0]["mean"], both[1]["mean"]] == pytest.approx([200 / 3, 50])
    assert [made_up[0]["mean"], made_up[1]["mean"]] == pytest.approx([100 / 3, 0])
    assert cells["comparison: no fact"][1] is None and cells["two hops: full chain"] == (None, None)


def test_comparisons_of_eval_stand_beside_one_another(tmp_path):
    def cell(mean, **more):
        return {"mean": mean, "interval": [mean - 0.125, mean + 0.25], **more}

    for name, kd in (("a", 0.5), ("b", 0.75)):
        em = {"CoT": cell(0.25), lab.UNTRAINED: cell(0.125),
              lab.KD: cell(kd, **{"minus CoT": cell(kd - 0.25), "minus LM-guided, untrained": cell(kd - 0.125)}),
              lab.RL: cell(1.0, **{"minus LM-guided, KD": cell(1 - kd)})}  # fmt: skip
        methods = {method: {"EM": each, "EM by type": {"x": 0.5}, "seconds per question": 0.5}
                   for method, each in em.items()}  # fmt: skip
        if name == "b":
            methods["gold rationale"] = methods["CoT"]
        (write_run(tmp_path / name, {}) / "results.json").write_text(json.dumps({"methods": methods}))
    table, gains = lab.method_tables("", {name: tmp_path / name for name in "ab"}, by_type=True)
    em = {"CoT": 25, lab.UNTRAINED: 12.5, lab.RL: 100}
    assert means(table, "a, EM %") == em | {lab.KD: 50, "gold rationale": None}
    assert means(table, "b, EM %") == em | {lab.KD: 75, "gold rationale": 25}
    assert means(table, "a: x, EM %") == dict.fromkeys(em | {lab.KD: 0}, 50) | {"gold rationale": None}
    assert means(gains, "EM, KD minus CoT, %") == {"a": 25, "b": 50}
    assert means(gains, "EM, RL minus KD, %") == {"a": 50, "b": 25}
    assert means(gains, "EM, KD minus untrained, %") == {"a": 37.5, "b": 62.5}
    assert gains["rows"][0][1]["interval"] == [25, 62.5]


def test_every_training_has_flags_that_its_script_knows_and_does_what_its_name_says(monkeypatch, tmp_path):
    made = {}

    def run(self, script, name, *flags):
        key = (self.out / name).relative_to(tmp_path)
        made[str(key).removesuffix("-0")] = lab.settings_of(script, flags)
        texts = [{"step": 0, "answers": [{"rationale": "It is.", "prediction": "it"}]}]
        folder = write_run(self.out / name, {}, texts=texts)
        (folder / "filter.json").write_text('[{"kept": 1, "asked": 2}, {}]')
        return folder

    monkeypatch.setattr(lab.Lab, "run", run)
    for name in ("arm_table", "method_tables", "curves", "class_cells"):
        monkeypatch.setattr(lab, name, lambda *a, **k: {})
    monkeypatch.setattr(lab.Lab, "answers", lambda *a: QUESTIONS)
    here = lab.Lab(lab.Settings(seeds=1, limit=2, out=str(tmp_path), habits="other"))
    for make, _ in lab.EXPERIMENTS.values():
        if make not in (lab.threshold, lab.selection):  # which train nothing of their own
            make(here)

    everything = dict.fromkeys(rewards.ASPECTS, 1)
    content = ("factuality", "relevance", "logicality", "coherence")
    form = ("consistency", "fluency", "naturalness", "readability")
    expected = {name: everything for name in made if name.startswith(("rl", "other/rl"))}
    expected |= {f"rl20-without-{name}": everything | {name: 0} for name in rewards.ASPECTS}
    expected |= {"rl-answers": dict.fromkeys(everything, 0), "rl20-factuality-times-4": everything | {"factuality": 4},
                 "rl20-factuality-only": dict.fromkeys(everything, 0) | {"factuality": 1},
                 "rl20-content-only": everything | dict.fromkeys(form, 0),
                 "rl20-form-only": everything | dict.fromkeys(content, 0)}  # fmt: skip
    assert {name: parse_weights(made[name].weights, rewards.ASPECTS) for name in expected} == expected
    assert made["rl-quality"].task_weight == 0 and made["rl"].task_weight == made["rl-answers"].task_weight == 4
    assert (made["rl"].steps, made["rl20-default"].steps) == (train_rl.Settings.steps, 20)
    assert made["rl20-lr-0.00021"].lr == pytest.approx(3 * made["rl"].lr)
    longer = made["longer"]
    assert longer.rationales == str(tmp_path / "kd-0") and longer.train_limit == made["rl"].train_limit
    assert longer.epochs == longer.patience == 14 and longer.lr == made["kd"].lr
    assert made["other/kd"].large == "other" and made["other/rl"].kd == str(tmp_path / "other/kd-0")
    assert made["other/eval-test"].large == "other" and made["other/eval-test"].kd == f"{tmp_path}/other/kd-[0-0]"
    assert made["eval-ood"].split == "ood" and made["eval-test-all"].context == "all"
    assert made["kd-unfiltered"].filter is False and made["tuned-large"].target == "answer"


# ------------------------------------------------------------------------------------------------ what can go wrong


def cell(low, high):
    return {"mean": (low + high) / 2, "interval": [low, high]}


def ppo(rewards_seen, **last):
    steady = {"ratio_max": 1.5, "kl": 1.0, "entropy": 0.2, "length": 14.0, "ended": 1.0}
    rows = [steady | {"reward": float(reward)} for reward in rewards_seen]
    rows[-1] |= last
    return rows


KD, RL = lab.KD, lab.RL
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
    said = runs.signatures({"methods": HEALTHY | {method: HEALTHY[method] | change}}, metrics)
    assert len(said) == len(names)
    assert all(name in sentence for name, sentence in zip(names, said, strict=True))


def test_a_steady_rise_is_not_unsteady():
    assert runs.unsteadiness(ppo([9, 1, 9, 1, *range(4)])) == pytest.approx(0)  # of the second half


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
        here = lab.Lab(lab.Settings(seeds=2, out=str(folder)))
        for seed in range(2):
            shutil.copytree(ROOT / "tiny/small", folder / f"kd-{seed}" / "model")
            more = ["--seed", seed] + [f"--rationales={folder / 'kd-0'}"] * seed
            wanted = lab.settings_of("train_kd.py", [*here.kd_flags, *more])
            (folder / f"kd-{seed}" / "settings.json").write_text(json.dumps(vars(wanted)))
            (folder / f"kd-{seed}" / "results.md").write_text("a table")
        return folder

    return make


def test_an_interrupted_experiment_goes_on_to_the_same_result(ready, monkeypatch, capsys):
    whole, cut = ready("whole"), ready("cut")
    sizes = ["--seeds", 2, "--limit", 3, "--samples", 2]
    assert run(monkeypatch, "selection", *sizes, "--out", whole) == 0
    with failing_once(lab, "ask", 2, KeyboardInterrupt()):
        assert run(monkeypatch, "selection", *sizes, "--out", cut) == 130
    assert without_minutes(cut) == {}
    ask, asked = lab.ask, []
    monkeypatch.setattr(lab, "ask", lambda *a: asked.append(a) or ask(*a))
    assert run(monkeypatch, "selection", *sizes, "--out", cut) == 0
    assert without_minutes(cut) == without_minutes(whole) and len(asked) == 1  # what was there is not asked again
    assert run(monkeypatch, "threshold", *sizes, "--out", cut) == 0 and len(asked) == 1  # another shares the answers
    capsys.readouterr()
    assert run(monkeypatch, "tables", "--out", cut) == 0
    said = capsys.readouterr().out
    assert all((cut / "results" / f"{name}.md").read_text() in said for name in ("selection", "threshold"))


def test_an_m_s_that_was_trained_anew_is_asked_anew_and_comparisons_of_the_old_one_are_refused(ready, monkeypatch):
    folder, asked = ready("runs"), []
    monkeypatch.setattr(lab, "ask", lambda *a: asked.append(a) or {"rationale": [str(len(asked))]})
    here = lab.Lab(lab.Settings(seeds=2, limit=1, out=str(folder)))
    eval_flags = ["--kd", f"{folder}/kd-[0-1]", f"--out={folder / 'eval'}"]
    with Run(folder / "eval", parse_settings(lab.EvalSettings, None, eval_flags)) as run:
        run.uses({f"kd {seed}": folder / f"kd-{seed}/model/model.safetensors" for seed in range(2)})
        run.write("results.md", "a table")
    before = here.answers(here.kd(), "dev")["rationale"].tolist()
    assert here.answers(here.kd(), "dev")["rationale"].tolist() == before
    assert here.run("eval.py", "eval", *eval_flags[:2]) and len(asked) == 2
    T5.from_pretrained(folder / "kd-1/model").init_weights(1).save_pretrained(folder / "kd-1/model")
    after = here.answers(here.kd(), "dev")["rationale"].tolist()
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
    def good(lab):
        """?"""
        return []

    monkeypatch.setattr(lab, "EXPERIMENTS", {"filter": lab.EXPERIMENTS["filter"], "good": (good, 0)})
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # a script that fails
    assert run(monkeypatch, "all", "--out", tmp_path) == 2
    assert "filter: train_kd.py stopped" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "results").glob("*.json")] == ["good.json"]


def test_the_page_of_experiments_is_that_of_the_results():
    assert (ROOT / "docs/experiments.md").read_text("utf-8") == lab.document(ROOT / "lab") + "\n"


def test_without_a_name_the_experiments_are_listed_and_a_wrong_one_is_an_error(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch) == 0
    listed = capsys.readouterr().out
    assert all(f"| {name} " in listed and make.__doc__ in listed for name, (make, _) in lab.EXPERIMENTS.items())
    assert run(monkeypatch, "all", "--kd-flags", '"') == 2 and "No closing quotation" in capsys.readouterr().err
    assert run(monkeypatch, "mehtods") == 2 and "there is no experiment 'mehtods'" in capsys.readouterr().err
    assert run(monkeypatch, "tables", "--out", tmp_path) == 2 and "there are no results" in capsys.readouterr().err
    assert run(monkeypatch, "habits") == 2 and "name M_L with other habits" in capsys.readouterr().err


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
    table, gains = json.loads((tmp_path / "runs/lab/results/ood.json").read_text())["tables"]
    labels = ["gold paragraphs", "all paragraphs", *others]
    assert table["columns"] == ["method", *[f"{label}, EM %" for label in labels]]
    assert [row[0] for row in gains["rows"]] == labels
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
