"""Proofs for eval.py: intervals against the normal approximation and hand-worked draws, every method against a table
worked by hand from scripted LMs, and the number of questions asked."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from harness import ScriptedLM, call, lines

import data
import rewards
import train_kd
import train_rl
from data import Example, Paragraph
from eval import METHODS, Settings, as_markdown, bootstrap, evaluate, interval, main, summarise
from lmcot import Answer
from model import T5
from plumbing.command import align
from plumbing.run import Run

TINY = Path(data.__file__).parent / "tiny"
PAIR = ("--small", TINY / "small", "--large", TINY / "large")

# ------------------------------------------------------------------------------------------------ statistics


def binary(mean: float, n: int) -> np.ndarray:
    return (np.arange(n) < round(mean * n)).astype(float)


def test_with_one_seed_the_interval_of_a_share_is_that_of_the_normal_approximation():
    for p, n in ((0.3, 400), (0.5, 1000), (0.8, 600)):
        low, high = interval(bootstrap(binary(p, n)[None, None])[0])
        half = 1.96 * np.sqrt(p * (1 - p) / n)
        assert low == pytest.approx(p - half, abs=0.12 * half)
        assert high == pytest.approx(p + half, abs=0.12 * half)


def test_identical_methods_differ_by_exactly_0_in_every_draw():
    scores = np.repeat(np.random.default_rng(1).random((1, 3, 50)), 2, axis=0)
    draws = bootstrap(scores)
    assert draws.std() > 0 and interval(draws[0] - draws[1]) == [0.0, 0.0]


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


# ------------------------------------------------------------------------------------------------ summaries


def question(i: int, kind: str, answer: str) -> Example:
    facts = Paragraph(f"T{i}", (f"Noise {i}.", f"Fact {i} says {answer}."))
    return Example(f"id{i}", f"q{i}", (facts,), answer, supporting_facts=((0, 1),), type=kind)


EXAMPLES = [question(0, "bridge", "Oslo"), question(1, "bridge", "Rome"), question(2, "compare", "yes"),
            question(3, "compare", "Bern Lake")]  # fmt: skip
COST = {"seconds per question": 0.5, "tokens per question": 10.0}


def make_summary() -> dict:
    def run(*predictions, good=""):
        marks = good.ljust(4)
        return [Answer("", p, "So it is." * (mark == "x")) for p, mark in zip(predictions, marks, strict=True)]

    outcomes = {
        "CoT": [run("oslo", "no", "yes", "Lake")],  # EM 1 0 1 0 · F1 1 0 1 2/3 · AI 1 0 1 0
        "LM-guided, KD": [run("Oslo.", "the Rome", "no", "in Bern Lake", good="xxx "),
                          # EM 1 1 0 0 · F1 1 1 0 4/5 · AI 1 1 0 1
                          run("x", "Rome", "yes", "Bern Lake", good="x xx")],  # EM 0 1 1 1 · F1 the same · AI the same
    }  # fmt: skip
    outcomes["CoT"][0][1].parsed = False
    return summarise(EXAMPLES, outcomes, dict.fromkeys(outcomes, COST))


def test_summaries_hold_the_means_that_are_worked_by_hand():
    table = make_summary()
    assert (table["questions"], table["seeds"]) == (4, 2)
    cot, kd = table["methods"]["CoT"], table["methods"]["LM-guided, KD"]
    assert {m: cot[m]["mean"] for m in ("EM", "F1", "AI")} == pytest.approx({"EM": 0.5, "F1": 8 / 12, "AI": 0.5})
    assert {m: kd[m]["mean"] for m in ("EM", "F1", "AI")} == pytest.approx({"EM": 5 / 8, "F1": 5.8 / 8, "AI": 6 / 8})
    assert kd["EM"]["minus CoT"]["mean"] == pytest.approx(1 / 8)
    assert "minus CoT" not in cot["EM"] and "minus standard" not in kd["EM"]  # not to itself, not to what was not run
    assert cot["EM of each seed"] == [0.5] and kd["EM of each seed"] == [0.5, 0.75]
    assert cot["EM by type"] == {"bridge": 0.5, "compare": 0.5}
    assert kd["EM by type"] == {"bridge": 0.75, "compare": 0.5}
    assert cot["two-stage"] == 0.25 and kd["two-stage"] == 0
    for row in (cot, kd):
        for metric in ("EM", "F1", "AI"):
            low, high = row[metric]["interval"]
            assert 0 <= low < row[metric]["mean"] < high <= 1
    assert all(kd[key] == COST[key] for key in COST)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_tables_are_rectangles_with_the_figures_in_per_cent():
    text = as_markdown(make_summary())
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    tables = [block for block in blocks if block[0].startswith("|")]
    assert [cells(table[0])[0] for table in tables] == [
        "method", "EM", "aspect of rationales", "EM by question type"
    ]  # fmt: skip
    for table in tables:
        assert len(set(map(len, table))) == 1 and len({row.count("|") for row in table}) == 1
        assert set(table[1]) == {"|", "-"}
    methods, differences, aspects, types = tables
    kd = cells(methods[3])
    assert kd[0] == "LM-guided, KD" and re.fullmatch(r"62\.5 \[\d+\.\d, \d+\.\d\]", kd[1])
    assert kd[2:] == ["72.5", "75.0", "3.00", "0.5", "10"]  # R_aspect: six of eight rationales have 8 · ½
    assert cells(differences[0]) == ["EM", "minus CoT", "minus LM-guided, KD"]
    assert cells(differences[2])[1] == "" and cells(differences[3])[2] == ""  # to itself
    assert re.fullmatch(r"\+12\.5 \[[+-]\d+\.\d, [+-]\d+\.\d\]", cells(differences[3])[1])
    assert cells(differences[2])[2].startswith("-12.5 [")
    assert cells(aspects[2]) == ["CoT", *["0.00"] * 8] and cells(aspects[3])[1:] == ["0.38"] * 8
    assert cells(types[0])[1:] == ["bridge", "compare"] and cells(types[3])[1:] == ["75.0", "50.0"]
    assert "questions: 4, seeds: 2" in text and "CoT: in 25.0 % of its chains M_L named no answer" in text


def test_refined_rationales_are_compared_with_distilled_ones_in_answers_and_every_aspect(tmp_path):
    markdown, table = compare(tmp_path / "r", *make_lms())
    kd, rl = table["methods"]["LM-guided, KD"], table["methods"]["LM-guided, RL"]
    assert (kd["R_aspect"]["mean"], rl["R_aspect"]["mean"]) == pytest.approx((3.0, 2.0))  # 6 and 4 good ones of 8
    assert rl["R_aspect"]["minus LM-guided, KD"]["mean"] == pytest.approx(-1)
    low, high = rl["fluency"]["minus LM-guided, KD"]["interval"]
    assert -0.5 <= low < -1 / 8 < high <= 0.5
    block = next(block for block in markdown.split("\n\n") if "RL minus KD" in block)
    rows = {row[0]: row[1:] for row in map(cells, block.splitlines())}
    assert rows["EM"][0].startswith("-25.0 [") and rows["R_aspect"][0].startswith("-1.00 [")
    assert set(rows) >= {"EM", "F1", "AI", *rewards.ASPECTS}


def test_align_pads_cells_and_missing_cells():
    assert align([["a", "bb"], ["ccc"]]) == "| a   | bb |\n|-----|----|\n| ccc |    |"


# ------------------------------------------------------------------------------------------------ every method


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
    "q3": ["So the answer is X.", "So the answer is Y.", "So the answer is Bern Lake."],  # a tie: the first, wrong
}


def large_says(prompt, number):
    q = question_of(prompt)
    match kind_of(prompt):
        case "standard":
            return GOLD[q] if q == "q3" else "dunno"
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
    "standard": [1 / 4],
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


@pytest.fixture(autouse=True)
def scripted_quality(monkeypatch):
    """Aspects that say outright which of the scripted rationales are good: .5 of each for these, 0 for the others."""

    def aspects(rationale, question, context, prediction=None):
        return dict.fromkeys(rewards.ASPECTS, 0.5 * rationale.startswith("So it is"))

    monkeypatch.setattr(rewards, "aspects", aspects)


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


def test_every_method_gets_the_exact_match_that_is_worked_by_hand(tmp_path):
    large, smalls = make_lms()
    markdown, table = compare(tmp_path / "r", large, smalls)
    assert {name: row["EM of each seed"] for name, row in table["methods"].items()} == EXPECTED
    assert set(EXPECTED) == set(METHODS) and markdown == (tmp_path / "r" / "results.md").read_text()
    assert table["methods"]["CoT"]["two-stage"] == 1 / 4 and table["methods"]["LM-guided, KD"]["two-stage"] == 0
    # Everything that M_L was asked: once per question, or per sample where samples are drawn, for each seed.
    asked = Counter(map(kind_of, large.asked))
    assert asked == {"standard": 4, "cot": 4 + 2 * 12, "two-stage": 1 + 2, "guided": 4 + 2 * 2 * (4 + 12 + 4) + 8}
    tokens = {name: row["tokens per question"] for name, row in table["methods"].items()}  # 2 for each text
    assert tokens["standard"] == 2 and tokens["CoT"] == 2.5 and tokens["LM-guided, KD"] == 4
    assert tokens["LM-guided, KD + SC"] == 12 and tokens["CoT + SC"] == 6.5
    assert tokens["LM-guided, RL, best of N"] == 8  # M_L answers from the chosen one only


def test_called_again_nothing_is_asked_and_the_table_is_the_same(tmp_path):
    large, smalls = make_lms()
    first = compare(tmp_path / "r", large, smalls)
    large, smalls = make_lms()
    assert compare(tmp_path / "r", large, smalls) == first
    assert large.asked == [] and all(lm.asked == [] for role in smalls.values() for lm in role)


def test_an_interrupted_comparison_asks_only_what_is_missing(tmp_path, monkeypatch):
    _, whole = compare(tmp_path / "whole", *make_lms())
    large, smalls = make_lms()
    write = smalls["kd"][0].complete

    def write_once(prompts, max_new_tokens, samples, temperature):
        if temperature > 0:  # in "LM-guided, KD + SC"
            raise KeyboardInterrupt
        return write(prompts, max_new_tokens, samples, temperature)

    monkeypatch.setattr(smalls["kd"][0], "complete", write_once)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "r", large, smalls)

    large, smalls = make_lms()
    _, table = compare(tmp_path / "r", large, smalls)
    assert Counter(map(kind_of, large.asked)) == {"guided": 2 * (12 + 4) + 2 * (4 + 12 + 4) + 8}
    assert [len(lm.asked) for lm in smalls["kd"]] == [24, 24] and not smalls["untrained"][0].asked
    for result in (whole, table):
        for row in result["methods"].values():
            row.pop("seconds per question")
    assert table == whole


def test_methods_without_their_lm_or_without_supporting_facts_are_left_out(tmp_path):
    bare = [Example(e.id, e.question, e.paragraphs, e.answer) for e in EXAMPLES]
    large, smalls = make_lms()
    _, table = compare(tmp_path / "r", large, {"untrained": smalls["untrained"]}, bare)
    assert set(table["methods"]) == {"standard", "CoT", "CoT + SC", "LM-guided, untrained"} and table["seeds"] == 1


def test_self_consistency_shows_a_rationale_that_led_to_the_winning_answer(tmp_path):
    compare(tmp_path / "r", *make_lms())
    rows = {(row["method"], row["seed"]): row for row in lines(tmp_path / "r" / "answers.jsonl")}
    row = rows["LM-guided, KD + SC", 0]
    shown = {a["id"]: (a["prediction"], a["rationale"]) for a in row["answers"]}
    assert shown["id1"] == ("Rome", "So it is Rome.") and shown["id2"] == ("lost", "Who knows.")


def test_answers_of_an_m_s_that_was_trained_anew_are_refused_and_another_method_may_join(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for role in ("kd", "rl"):
        shutil.copytree(TINY / "small", Path("runs", role, "model"))

    def run(*flags):
        return call(monkeypatch, main, *PAIR, "--limit", 1, "--samples", 1, "--max-new-tokens", 8, *flags)

    Path("runs/rl").rename("elsewhere")
    assert run() == 0 and "LM-guided, RL" not in capsys.readouterr().out
    Path("elsewhere").rename("runs/rl")
    assert run() == 0 and "LM-guided, RL" in capsys.readouterr().out
    T5.from_pretrained("runs/kd/model").init_weights(1).save_pretrained("runs/kd/model")
    assert run() == 2 and "was made from another kd 0 than runs/kd" in capsys.readouterr().err
    assert run("--overwrite") == 0
    capsys.readouterr()


def test_folders_keep_their_roles_and_seeds_and_answers_their_questions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = TINY / "small"
    shutil.copytree(small, Path("runs/kd1/model"))
    rows = [json.dumps({"question": f"Where was {name} born?", "context": f"{name} was born in 1924.", "answer": "x"})
            for name in ("Dumina", "Walick")]  # fmt: skip
    Path("q.jsonl").write_text("".join(row + "\n" for row in rows))

    def run(*flags):
        return call(monkeypatch, main, *PAIR, "--kd", "runs/kd*", "--rl", "none", "--data", "q.jsonl", "--samples", 1,
                    "--max-new-tokens", 8, *flags), capsys.readouterr().err  # fmt: skip

    for settings, flag in ((train_kd.Settings(target="answer"), "direct"), (train_rl.Settings(), "rl")):
        Path("runs/kd1/settings.json").write_text(json.dumps(vars(settings)))
        assert f"runs/kd1 is a folder for --{flag}, not for --kd" in run()[1] and not Path("runs/eval").exists()
    Path("runs/kd1/settings.json").unlink()
    assert run()[0] == 0
    Path("q.jsonl").write_text("".join(row + "\n" for row in reversed(rows)))
    code, said = run()
    assert code == 2 and "answers.jsonl answers other questions" in said
    Path("q.jsonl").write_text("".join(row + "\n" for row in rows))
    shutil.copytree(small, Path("runs/kd2/model"))  # a further seed is only added
    assert run()[0] == 0 and json.loads(Path("runs/eval/results.json").read_text())["seeds"] == 2
    shutil.copytree(small, Path("runs/kd0/model"))
    T5.from_pretrained(small).init_weights(1).save_pretrained("runs/kd0/model")
    code, said = run()
    assert code == 2 and "was made from another kd 0 than runs/kd0" in said
    shutil.rmtree("runs/kd0")
    with open("runs/eval/answers.jsonl", "a") as file:
        file.write('{"method": "CoT"}\n')
    code, said = run()
    assert code == 2 and "is damaged (delete that line" in said and said.count("\n") == 1


def test_a_table_that_measures_the_form_of_the_answers_says_so_first():
    def table(predictions, finish="stop"):
        runs = [[Answer(e.id, p, finish=finish) for e, p in zip(EXAMPLES, predictions, strict=True)]]
        return as_markdown(summarise(EXAMPLES, {"standard": runs}, {"standard": COST}))

    right = [example.answer for example in EXAMPLES]
    assert "WARNING" not in table(right)
    assert "WARNING: standard: 100% of the answers are empty." in table([""] * len(EXAMPLES))
    assert "WARNING: standard: 100% of M_L's texts were cut." in table(right, "length")
    wordy = table([f"It is said to be {answer} here" for answer in right])
    assert "WARNING: standard: EM is 0%, but 100% of the answers contain the right one." in wordy
