"""Proofs for eval.py: intervals against the normal approximation and hand-worked draws, every method against a table
worked by hand from scripted LMs, and the number of questions asked."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from harness import ScriptedLM, call, failing_once, lines

import data
import lmcot
import rewards
import train_kd
import train_rl
from data import Example, Paragraph
from eval import COSTS, METHODS, Settings, as_markdown, bootstrap, evaluate, interval, main, summarise, what_changed
from model import T5
from plumbing.command import align
from plumbing.run import Run

TINY = Path(data.__file__).parent / "tiny"

# ------------------------------------------------------------------------------------------------ statistics


def test_with_one_seed_the_interval_of_a_share_is_that_of_the_normal_approximation():
    for p, n in ((0.3, 400), (0.5, 1000), (0.8, 600)):
        right = np.repeat([1.0, 0.0], [round(p * n), round((1 - p) * n)])
        low, high = interval(bootstrap(right[None, None])[0])
        half = 1.96 * np.sqrt(p * (1 - p) / n)
        assert low == pytest.approx(p - half, abs=0.12 * half)
        assert high == pytest.approx(p + half, abs=0.12 * half)


def test_differences_are_paired_so_that_only_questions_that_differ_make_them_uncertain():
    n, better = 500, 25
    base = np.tile([1.0, 0.0], n // 2)
    other = base.copy()
    other[np.flatnonzero(base == 0)[:better]] = 1  # right on 25 more, wrong on none
    draws = bootstrap(np.stack([base, other])[:, None])
    p = better / n
    half = 1.96 * np.sqrt(p * (1 - p) / n)  # .019; unpaired it would be .062
    low, high = interval(draws[1] - draws[0])
    assert (low, high) == (pytest.approx(p - half, abs=0.2 * half), pytest.approx(p + half, abs=0.2 * half))


def test_seeds_are_resampled_two_that_differ_wholly_give_0_a_half_and_1_in_the_ratio_1_2_1():
    scores = np.stack([np.ones(40), np.zeros(40)])[None]
    draws = bootstrap(scores)[0]
    values, counts = np.unique(draws.round(9), return_counts=True)
    assert values.tolist() == [0, 0.5, 1] and counts.sum() == 2000
    assert abs(counts - np.array([500, 1000, 500])).max() < 4 * np.sqrt(500)
    assert interval(draws) == pytest.approx([0.0, 1.0])


def test_seeds_and_questions_both_add_to_the_variance():
    rng = np.random.default_rng(3)
    seeds, n = 5, 200
    skill, ease = rng.normal(0, 0.1, seeds), rng.normal(0, 0.5, n)
    draws = bootstrap((skill[:, None] + ease[None])[None], draws=4000)[0]
    assert draws.var() == pytest.approx(skill.var() / seeds + ease.var() / n, rel=0.12)  # additive: worked by hand


# ------------------------------------------------------------------------------------------------ a scripted world


def question(i: int, kind: str, answer: str) -> Example:
    facts = Paragraph(f"T{i}", (f"Noise {i}.", f"Fact {i} says {answer}."))
    return Example(f"id{i}", f"q{i}", (facts,), answer, supporting_facts=((0, 1),), type=kind)


EXAMPLES = [question(0, "bridge", "Oslo"), question(1, "bridge", "Rome"), question(2, "compare", "yes"),
            question(3, "compare", "Bern Lake")]  # fmt: skip


def kind_of(prompt):
    """Which of the prompts this is."""
    ends = {"Therefore, the answer is": "two-stage", "step by step.": "cot", " Reasoning:": "rationale"}
    for end, kind in ends.items():
        if prompt.endswith(end):
            return kind
    return "guided" if "\nReasoning: " in prompt else "standard"


def question_of(prompt):
    return re.search(r"Question: (q\d)\s", prompt)[1]


GOLD = {ex.question: ex.answer for ex in EXAMPLES}
COT = {  # the texts that M_L writes, sample by sample: greedy takes the first
    "q0": ["A. So the answer is Oslo.", "So the answer is Bonn.", "So the answer is oslo."],  # right; majority right
    "q1": ["B. So the answer is Kiel.", "So the answer is Rome.", "So the answer is Rome."],  # wrong; majority right
    "q2": ["C goes on", "So the answer is no.", "So the answer is no."],  # second stage right; majority wrong
    "q3": ["So the answer is Lake.", "So the answer is Y.", "So the answer is Bern Lake."],  # a tie: half right
}


def large_says(prompt, number):
    q = question_of(prompt)
    match kind_of(prompt):
        case "standard":
            return "in Bern Lake" if q == "q3" else "dunno"
        case "cot":
            return COT[q][number]
        case "two-stage":
            return "yes"
        case "guided":  # a faithful reader: right if and only if the rationale says so
            return GOLD[q] if GOLD[q] in prompt.rpartition("Reasoning: ")[2] else "lost"
    raise AssertionError(prompt)


def small_says(good):
    """`good`: question → for each sample, whether the rationale holds the answer."""

    def say(prompt, number):
        q = question_of(prompt)
        if kind_of(prompt) == "standard":
            return "yes"
        assert kind_of(prompt) == "rationale"
        return f"So it is {GOLD[q]}." if good[q][number] else "Who knows."

    return say


UNTRAINED = {"q0": [0], "q1": [0], "q2": [0], "q3": [0]}
KD = [
    {"q0": [1, 1, 0], "q1": [0, 1, 1], "q2": [1, 0, 0], "q3": [0, 0, 1]},  # greedy 1 0 1 0; majority 1 1 0 0
    {"q0": [1, 1, 1], "q1": [1, 0, 0], "q2": [1, 1, 0], "q3": [1, 0, 1]},  # greedy 1 1 1 1; majority 1 0 1 1
]
RL = [
    {"q0": [1, 1, 1], "q1": [0, 0, 1], "q2": [1, 0, 0], "q3": [0, 1, 1]},  # greedy 1 0 1 0; majority 1 0 0 1
    {"q0": [0, 0, 0], "q1": [1, 1, 1], "q2": [0, 0, 1], "q3": [1, 1, 0]},  # greedy 0 1 0 1; majority 0 1 0 1
]
EXPECTED = {  # EM of each seed
    "standard": [0],
    "CoT": [2 / 4],
    "CoT + SC": [2 / 4, 2 / 4],
    "LM-guided, untrained": [0],
    "LM-guided, KD": [2 / 4, 4 / 4],
    "LM-guided, KD + SC": [2 / 4, 3 / 4],
    "LM-guided, KD, best of N": [4 / 4, 4 / 4],  # right where any of the three is good
    "LM-guided, RL": [2 / 4, 2 / 4],
    "LM-guided, RL + SC": [2 / 4, 2 / 4],
    "LM-guided, RL, best of N": [4 / 4, 3 / 4],
    "M_S alone": [1 / 4, 1 / 4],
    "gold rationale": [4 / 4],
    "other's rationale": [0],
}


@pytest.fixture(autouse=True, scope="module")
def scripted_quality():
    """Aspects that say outright which of the scripted rationales are good: .5 of each for these, 0 for the others."""

    def aspects(rationale, question, context, prediction=None):
        return dict.fromkeys(rewards.ASPECTS, 0.5 * rationale.startswith("So it is"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "aspects", aspects)
        yield


def make_lms():
    smalls = {"untrained": [UNTRAINED], "kd": KD, "rl": RL, "direct": [UNTRAINED, UNTRAINED]}
    for role, goods in smalls.items():
        smalls[role] = [ScriptedLM(small_says(good)) for good in goods]
    return ScriptedLM(large_says), smalls


def compare(folder, large, smalls, examples=EXAMPLES):
    settings = Settings(samples=3, max_new_tokens=50)
    with Run(folder, settings) as run:
        markdown = evaluate(run, examples, large, smalls, settings)
    return markdown, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A whole comparison: (folder, M_L, Markdown, results.json)."""
    folder, (large, smalls) = tmp_path_factory.mktemp("compared") / "r", make_lms()
    return folder, large, *compare(folder, large, smalls)


# ------------------------------------------------------------------------------------------------ every method


def test_every_method_gets_the_exact_match_that_is_worked_by_hand(compared):
    _, large, _, table = compared
    assert {name: row["EM of each seed"] for name, row in table["methods"].items()} == EXPECTED
    assert set(EXPECTED) == set(METHODS)
    # Everything that M_L was asked: once per question, or per sample where samples are drawn, for each seed.
    asked = Counter(map(kind_of, large.asked))
    assert asked == {"standard": 4, "cot": 4 + 2 * 12, "two-stage": 1 + 2, "guided": 4 + 2 * 2 * (4 + 12 + 4) + 8}
    tokens = {name: row["tokens per question"] for name, row in table["methods"].items()}  # 2 for each text
    assert tokens["standard"] == 2 and tokens["CoT"] == 2.5 and tokens["LM-guided, KD"] == 4
    assert tokens["LM-guided, KD + SC"] == 12 and tokens["CoT + SC"] == 6.5
    assert tokens["LM-guided, RL, best of N"] == 8  # M_L answers from the chosen one only


def test_means_and_differences_are_worked_by_hand_and_lie_in_their_intervals(compared):
    table = compared[3]
    standard, cot, kd, rl = (table["methods"][name] for name in ("standard", "CoT", "LM-guided, KD", "LM-guided, RL"))
    assert (table["questions"], table["seeds"]) == (4, 2)
    # "in Bern Lake" has F1 .8 and includes the answer; CoT's "Lake" has F1 2/3
    assert [standard[m]["mean"] for m in ("EM", "F1", "AI")] == pytest.approx([0, 0.8 / 4, 1 / 4])
    assert [cot[m]["mean"] for m in ("EM", "F1", "AI")] == pytest.approx([2 / 4, 8 / 12, 2 / 4])
    assert (kd["R_aspect"]["mean"], rl["R_aspect"]["mean"]) == pytest.approx((3.0, 2.0))  # 6 and 4 good ones of 8
    for row, measure, base, expected in (
        (kd, "EM", "CoT", 1 / 4), (cot, "EM", "LM-guided, KD", -1 / 4), (rl, "R_aspect", "LM-guided, KD", -1),
    ):  # fmt: skip
        difference = row[measure][f"minus {base}"]
        low, high = difference["interval"]
        assert difference["mean"] == pytest.approx(expected) and low <= expected < high
    assert kd["EM"]["minus CoT"]["interval"][0] == 0  # no question got worse, so no paired difference is below 0
    assert "minus CoT" not in cot["EM"]
    for row in (cot, kd):
        for metric in ("EM", "F1", "AI"):
            low, high = row[metric]["interval"]
            assert 0 <= low < row[metric]["mean"] < high <= 1
    assert table["methods"]["LM-guided, KD + SC"]["EM by type"] == {"bridge": 0.75, "compare": 0.5}
    assert cot["two-stage"] == 1 / 4 and kd["two-stage"] == 0


def test_markdown_tables_are_rectangles_with_the_figures_in_per_cent(compared):
    folder, _, text, table_of = compared
    assert text == (folder / "results.md").read_text()
    tables = {}
    for block in text.split("\n\n"):
        if block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            assert len(set(map(len, block.splitlines()))) == 1
            head, rule, *body = rows
            assert set("".join(rule)) == {"-"}
            tables[head[0]] = {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in body}
    assert list(tables) == ["method", "EM", "aspect of rationales", "", "EM by question type"]
    kd = tables["method"]["LM-guided, KD"]
    assert re.fullmatch(r"75\.0 \[\d+\.\d, \d+\.\d\]", kd["EM [95 %]"])
    assert [kd[column] for column in ("F1", "AI", "R_aspect", "tokens per question")] == ["75.0", "75.0", "3.00", "4"]
    kd, cot = tables["EM"]["LM-guided, KD"], tables["EM"]["CoT"]
    assert list(kd) == ["minus standard", "minus CoT", "minus LM-guided, untrained", "minus LM-guided, KD"]
    signed = r" \[[+-]\d+\.\d, [+-]\d+\.\d\]"
    assert re.fullmatch(r"\+25\.0" + signed, kd["minus CoT"])
    assert cot["minus CoT"] == "" and cot["minus LM-guided, KD"].startswith("-25.0 [")
    aspects = {name: list(row.values()) for name, row in tables["aspect of rationales"].items()}
    assert aspects["CoT"] == ["0.00"] * 8 and aspects["LM-guided, KD"] == ["0.38"] * 8 and "standard" not in aspects
    gains = {measure: row["RL minus KD [95 %]"] for measure, row in tables[""].items()}
    assert re.fullmatch(r"-25\.0" + signed, gains["EM"]) and gains["R_aspect"].startswith("-1.00 [")
    assert tables["EM by question type"]["LM-guided, KD + SC"] == {"bridge": "75.0", "compare": "50.0"}
    gain = table_of["methods"]["LM-guided, RL"]["EM"]["minus LM-guided, KD"]
    low, high = (f"{100 * bound:+.1f}" for bound in gain["interval"])
    assert text.endswith("\n\nPPO: M_L answers 50.0 % of these 4 questions right instead of 75.0 %: "
                         f"-25.0 [{low}, {high}] points, which may be chance.\n")  # fmt: skip
    assert "questions: 4, seeds: 2" in text and "CoT: in 25.0 % of its chains M_L named no answer" in text


@pytest.mark.parametrize(
    ("interval", "said"), [((0.01, 0.2), "points."), ((0, 0.2), "chance."), ((-0.2, -0.01), "points.")]
)
def test_a_change_is_called_chance_where_its_interval_holds_0(interval, said):
    before, after = {"EM": {"mean": 0.5}}, {"EM": {"mean": 0.6, "minus a": {"mean": 0.1, "interval": interval}}}
    assert what_changed({"questions": 10, "methods": {"a": before, "b": after}}, "a", "b").endswith(said)


def test_align_pads_cells_and_missing_cells():
    assert align([["a", "bb"], ["ccc"]]) == "| a   | bb |\n|-----|----|\n| ccc |    |"


def test_called_again_nothing_is_asked_and_the_table_is_the_same(compared):
    folder, _, *first = compared
    large, smalls = make_lms()
    assert list(compare(folder, large, smalls)) == first
    assert large.asked == [] and all(lm.asked == [] for role in smalls.values() for lm in role)


def test_an_interrupted_comparison_asks_only_what_is_missing(compared, tmp_path):
    large, smalls = make_lms()
    with failing_once(smalls["kd"][0], "complete", 2, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "r", large, smalls)  # as far as "LM-guided, KD + SC"

    large, smalls = make_lms()
    _, table = compare(tmp_path / "r", large, smalls)
    assert Counter(map(kind_of, large.asked)) == {"guided": 2 * (12 + 4) + 2 * (4 + 12 + 4) + 8}
    assert [len(lm.asked) for lm in smalls["kd"]] == [24, 24] and not smalls["untrained"][0].asked
    for name, row in compared[3]["methods"].items():
        assert row | {"seconds per question": 0} == table["methods"][name] | {"seconds per question": 0}


def test_methods_without_their_lm_or_without_supporting_facts_are_left_out(tmp_path):
    bare = [Example(e.id, e.question, e.paragraphs, e.answer) for e in EXAMPLES]
    large, smalls = make_lms()
    _, table = compare(tmp_path / "r", large, {"untrained": smalls["untrained"]}, bare)
    assert set(table["methods"]) == {"standard", "CoT", "CoT + SC", "LM-guided, untrained"} and table["seeds"] == 1
    assert table["methods"]["CoT"]["EM"].keys() == {  # not to what was not run
        "mean", "interval", "minus standard", "minus LM-guided, untrained"}  # fmt: skip


def test_self_consistency_shows_a_rationale_that_led_to_the_winning_answer(compared):
    rows = {(row["method"], row["seed"]): row for row in lines(compared[0] / "answers.jsonl")}
    row = rows["LM-guided, KD + SC", 0]
    shown = {a["id"]: (a["prediction"], a["rationale"]) for a in row["answers"]}
    assert shown["id1"] == ("Rome", "So it is Rome.") and shown["id2"] == ("lost", "Who knows.")


# ------------------------------------------------------------------------------------------------ the script


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """eval.py in a folder where runs/kd1 holds an M_S: run(*flags) → (exit status, what it printed)."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY / "small", "runs/kd1/model")
    write_questions("Dumina", "Walick")

    def run(*flags):
        code = call(monkeypatch, main, "--small", TINY / "small", "--large", TINY / "large", "--kd", "runs/kd*",
                    "--data", "q.jsonl", "--samples", 1, "--max-new-tokens", 8, *flags)  # fmt: skip
        return code, "".join(capsys.readouterr())

    return run


def write_questions(*names):
    rows = [{"question": f"Where was {name} born?", "context": f"{name} was born in 1924.", "answer": "x"}
            for name in names]  # fmt: skip
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_of_another_role_is_refused_before_anything_is_written(run):
    for settings, flag in ((train_kd.Settings(target="answer"), "direct"), (train_rl.Settings(), "rl")):
        Path("runs/kd1/settings.json").write_text(json.dumps(vars(settings)))
        assert f"runs/kd1 is a folder for --{flag}, not for --kd" in run()[1] and not Path("runs/eval").exists()


def test_methods_and_seeds_may_join_but_no_other_questions_weights_or_damaged_answers(run):
    code, said = run()
    assert code == 0 and "LM-guided, RL" not in said
    shutil.copytree(TINY / "small", "runs/rl/model")
    shutil.copytree(TINY / "small", "runs/kd2/model")
    code, said = run()
    assert code == 0 and "LM-guided, RL" in said
    assert json.loads(Path("runs/eval/results.json").read_text())["seeds"] == 2

    write_questions("Walick", "Dumina")
    code, said = run()
    assert code == 2 and "answers.jsonl answers other questions" in said
    write_questions("Dumina", "Walick")
    with open("runs/eval/answers.jsonl", "a") as file:
        file.write('{"method": "CoT"}\n')
    code, said = run()
    assert code == 2 and "is damaged (delete that line" in said
    T5.from_pretrained("runs/kd1/model").init_weights(1).save_pretrained("runs/kd1/model")
    code, said = run()
    assert code == 2 and "was made from another kd 0 than runs/kd1" in said


def test_a_table_that_measures_the_form_of_the_answers_says_so_first():
    def table(predictions, finish="stop"):
        answers = [vars(lmcot.Answer(e.id, p, finish=finish)) for e, p in zip(EXAMPLES, predictions, strict=True)]
        row = {"answers": answers, **dict.fromkeys(COSTS, 0)}
        return as_markdown(summarise(EXAMPLES, {"standard": [row]}))

    right = [example.answer for example in EXAMPLES]
    assert "WARNING" not in table(right)
    assert "WARNING: standard: 100% of the answers are empty." in table([""] * len(EXAMPLES))
    assert "WARNING: standard: 100% of M_L's texts were cut." in table(right, "length")
    wordy = table([f"It is said to be {answer} here" for answer in right])
    assert "WARNING: standard: EM is 0%, but 100% of the answers contain the right one." in wordy
