"""
Proofs for lab/ratings.py: agreement by Krippendorff's own example and by brute force, intervals by their coverage, the
blinding by what the sheet is a function of, import after export, hostile files, and the page in a real browser
(Chromium through chromedriver, skipped where there is none; RATINGS_SHOTS=folder keeps pictures of it).
"""

import base64
import csv
import io
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import harness
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
import ratings

import train_kd
import train_rl
from plumbing.errors import UserError
from rewards import ASPECTS, aspects

KD, RL, COT = ratings.SOURCES
NAN = float("nan")

# ---- Agreement and correlation ---------------------------------------------------------------------------------------

KRIPPENDORFF = [  # Computing Krippendorff's Alpha-Reliability (2011), part D: four observers, twelve units
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def alpha_by_coincidences(rows):
    """Ordinal α as Krippendorff defines it: a matrix of coincidences o_ck, and δ²_ck from its margins n_g."""
    units = [[v for v in unit if v == v] for unit in zip(*rows, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({v for unit in units for v in unit})
    o = {pair: 0.0 for pair in itertools.product(values, values)}
    for unit in units:
        for i, j in itertools.permutations(range(len(unit)), 2):
            o[unit[i], unit[j]] += 1 / (len(unit) - 1)
    n = {c: sum(o[c, k] for k in values) for c in values}

    def distance(c, k):
        c, k = min(c, k), max(c, k)
        return (sum(n[g] for g in values if c <= g <= k) - (n[c] + n[k]) / 2) ** 2

    observed = sum(o[c, k] * distance(c, k) for c, k in o)
    expected = sum(n[c] * n[k] * distance(c, k) for c, k in o)
    return 1 - (sum(n.values()) - 1) * observed / expected if expected else NAN


def test_alpha_is_the_published_one():
    assert round(alpha_by_coincidences(KRIPPENDORFF), 3) == 0.815
    assert round(ratings.alpha(np.array(KRIPPENDORFF)), 3) == 0.815


@given(st.integers(1, 4).flatmap(lambda n: st.lists(
    st.lists(st.sampled_from([NAN, 1.0, 2.0, 3.0, 3.5, 5.0]), min_size=n, max_size=n), min_size=1, max_size=5)))
def test_alpha_is_that_of_the_coincidence_matrix_whatever_is_missing(rows):
    assert ratings.alpha(np.array(rows)) == pytest.approx(alpha_by_coincidences(rows), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("p", [0, 0.5, 0.8, 1])
def test_alpha_of_raters_whose_agreement_is_known(p):
    """Each rating is the item's own value with probability p, else independent of it with the same distribution: two
    raters then differ as two random ratings do, unless both have the item's value, and so α = p²."""
    rng = np.random.default_rng(0)
    shares = [0.1, 0.2, 0.3, 0.3, 0.1]
    own = rng.choice(5, 6000, p=shares) + 1.0
    rows = np.where(rng.random((3, 6000)) < p, own, rng.choice(5, (3, 6000), p=shares) + 1.0)
    rows[rng.random(rows.shape) < 0.2] = NAN
    assert ratings.alpha(rows) == pytest.approx(p**2, abs=1e-12 if p == 1 else 0.025)


def test_alpha_says_nothing_of_one_rater_or_of_equal_ratings_only():
    assert np.isnan(ratings.alpha(np.array([[1.0, 2, 3]])))
    assert np.isnan(ratings.alpha(np.array([[4.0, 4], [4, NAN]])))
    assert ratings.alpha(np.array([[1.0, 5], [5, 1]])) < 0


@given(st.lists(st.tuples(st.sampled_from([NAN, 0, 0.2, 0.5, 1]), st.sampled_from([NAN, 1, 2, 2.5, 4])), max_size=9))
def test_spearman_is_the_correlation_of_ranks_that_are_counted(pairs):
    both = [(x, y) for x, y in pairs if x == x and y == y]
    ranks = [[sum(w < v for w in side) + sum(w == v for w in side) / 2 for v in side]
             for side in zip(*both, strict=True)]  # fmt: skip
    varies = both and all(len(set(side)) > 1 for side in ranks)
    expected = np.corrcoef(ranks)[0, 1] if varies else NAN
    x, y = (np.array([pair[i] for pair in pairs], float) for i in (0, 1))
    assert ratings.spearman(x, y) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def two_sources(rng, raters, severity):
    """Ratings (raters, 20 questions) of two sources whose true means are 3.4 and 3; a fifth of them is missing."""
    shared = rng.normal(3, severity, (raters, 1)) + rng.normal(0, 0.5, 20)  # cancels in the difference
    rows = [shared + effect + rng.normal(0, 0.6, 20) + rng.normal(0, 0.7, (raters, 20)) for effect in (0.4, 0)]
    for each in rows:
        each[rng.random(each.shape) < 0.2] = NAN
    return rows


@pytest.mark.parametrize("severity", [0, 0.5])
def test_intervals_hold_the_truth_as_often_as_they_say(severity, monkeypatch):
    """Raters who differ in severity and in noise, questions that differ in difficulty, a fifth of the ratings missing:
    of 300 intervals of a difference whose truth is .4, at least 90 % hold it, and they are not much wider than theory
    asks (± 1.96 standard errors)."""
    monkeypatch.setattr(ratings, "BOOTSTRAPS", 500)
    rng, held, widths = np.random.default_rng(1), 0, []
    for _ in range(300):
        one, two = two_sources(rng, 8, severity)
        low, high = ratings.mean(one - two)["interval"]
        held += low <= 0.4 <= high
        widths.append(high - low)
    assert held >= 0.90 * 300
    assert np.mean(widths) < 1.25 * 2 * 1.96 * (2 * 0.6**2 / 20 + 2 * 0.7**2 / (0.64 * 160)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("raters, of_means", [(2, 0.83), (3, 0.89), (5, 0.93), (8, 0.94)])
def test_intervals_of_few_raters_hold_the_truth_as_often_as_the_readme_says(raters, of_means, monkeypatch):
    """1,000 intervals of a difference and of a mean, 300 of α; what is printed stands in the README."""
    monkeypatch.setattr(ratings, "BOOTSTRAPS", 500)
    rng, held = np.random.default_rng(raters), {"difference": [], "mean": [], "alpha": []}
    for i in range(1000):
        one, two = two_sources(rng, raters, 0.5)
        estimates = {"difference": (ratings.mean(one - two), 0.4), "mean": (ratings.mean(one), 3.4)}
        if i < 300:  # as in the test of α above: its truth is p²
            own = rng.choice(5, 20, p=[0.1, 0.2, 0.3, 0.3, 0.1])
            chance = rng.choice(5, (raters, 20), p=[0.1, 0.2, 0.3, 0.3, 0.1])
            rows = np.where(rng.random((raters, 20)) < 0.8, own, chance) + 1.0
            rows[rng.random(rows.shape) < 0.2] = NAN
            groups = [np.array([question]) for question in range(20)]
            estimates["alpha"] = ratings.estimate(lambda at, rows=rows: ratings.alpha(rows[:, at]), groups), 0.8**2
        for name, (cell, truth) in estimates.items():
            held[name].append(cell["interval"][0] <= truth <= cell["interval"][1])
    shares = {name: float(np.mean(each)) for name, each in held.items()}
    print(raters, "raters:", shares)
    assert shares["difference"] > 0.95 and abs(shares["mean"] - of_means) < 0.03 and shares["alpha"] > 0.85


# ---- A run to export from --------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>document.title = 'broken in'</script>",
    "</script><img src=x onerror=\"document.title='broken in'\">",
    "&lt;b&gt; &amp; <!-- <script> ]]> \\u003c ${1} @SHEET@",
    "one line\u2028another\u2029third\nfourth",
    "\u202eright to left\u202c שלום עולם \u2067 e\u0301 👩‍🚀",
    "=HYPERLINK(\"http://example.com\")",
    "+1;=2+5",
    "@SUM(A1)\n-3\t=4, \"quoted\"",
]


def write_run(folder, texts, seeds=1, **settings):
    """A folder as eval.py leaves it; texts: for each question a rationale for each of KD, RL and CoT."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [{"id": f"q{i}", "question": f"Who wrote book {i}?", "context": f"Book {i} was written by Ann {i}.",
                "answer": f"Ann {i}"} for i in range(len(texts))]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = {"data": str(folder / "data.jsonl"), "split": "test", "limit": 1000, "context": "gold"} | settings
    (folder / "settings.json").write_text(json.dumps(made))
    rows = [{"method": source, "seed": seed, "answers": [
                {"id": f"q{i}", "prediction": "", "note": "", "rationale": of[k] + f" {seed}" * (seed > 0)}
                for i, of in enumerate(texts)]}
            for k, source in enumerate(ratings.SOURCES) for seed in range(seeds if source != COT else 1)]  # fmt: skip
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text("{}")
    return folder


def call(*arguments):
    """`python lab/ratings.py …` in this process → exit status."""
    with pytest.MonkeyPatch.context() as patch:
        return harness.call(patch, ratings.main, *arguments)


def exported(tmp_path, texts, *flags, seeds=1):
    """Exports all of a run of these texts → (items of the key, folder for raters)."""
    write_run(tmp_path / "run", texts, seeds)
    out = tmp_path / "sheet"
    assert call("export", "--run", tmp_path / "run", "--questions", len(texts), "--out", out, *flags) == 0
    return json.loads((out / "key.json").read_text())["items"], out / "for_raters"


def plain(n):
    return [[f"{word} {i} was written by Ann {i}." for word in ("Book", "Novel", "Poem")] for i in range(n)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ratings, "BOOTSTRAPS", 20)


# ---- Blinding --------------------------------------------------------------------------------------------------------


def test_what_raters_get_is_the_same_whoever_wrote_it(tmp_path):
    """The sheet and the page of the same items are byte for byte the same with all sources and seeds exchanged."""
    items, _ = exported(tmp_path, plain(6), seeds=3)
    for turned in itertools.permutations(ratings.SOURCES):
        names = dict(zip(ratings.SOURCES, turned, strict=True))
        other = [i | {"question_id": "x", "seed": 9, "sources": [names[s] for s in i["sources"]]} for i in items]
        assert ratings.as_csv(other) == ratings.as_csv(items)
        assert ratings.as_page(other, "sheet") == ratings.as_page(items, "sheet")


def test_nothing_for_raters_names_a_source_a_seed_or_a_question(tmp_path):
    items, folder = exported(tmp_path, plain(6))
    assert {path.name for path in folder.iterdir()} == {"sheet.csv", "sheet.html"}
    for path in folder.iterdir():
        text = path.read_text()
        assert not re.search(r"LM-guided|\bKD\b|\bRL\b|CoT|sources|seed|key\.json|\bq\d", text), path
        assert all(item["item"] in text for item in items)


def test_order_and_names_of_items_tell_nothing():
    """Over 3,000 sheets each source stands at each place, and has each first letter, as often as chance has it."""
    rows = [{"sources": [source]} for source in ratings.SOURCES]
    sheets = [ratings.blind(rows) for _ in range(3000)]
    orders = [tuple(row["sources"][0] for row in sheet) for sheet in sheets]
    for order in itertools.permutations(ratings.SOURCES):
        assert abs(orders.count(order) - 500) < 5 * (3000 * 1 / 6 * 5 / 6) ** 0.5
    for source in ratings.SOURCES:
        low = sum(row["item"][0] < "l" for sheet in sheets for row in sheet if row["sources"] == [source])
        assert abs(low - 3000 * 8 / 19) < 5 * (3000 * 8 / 19 * 11 / 19) ** 0.5
    assert all(len({row["item"] for row in sheet}) == 3 for sheet in sheets)


def test_a_seed_draws_the_same_questions_and_never_the_same_order(tmp_path):
    folder = write_run(tmp_path / "run", plain(30), seeds=4)
    once, again, other = (ratings.collect(folder, 10, seed) for seed in (7, 7, 8))
    assert once == again != other
    assert [row["item"] for row in ratings.blind(once)] != [row["item"] for row in ratings.blind(again)]
    for row in once:  # KD and RL of one seed; M_L's chain, which ran once, stands for all
        if row["sources"] != [COT]:
            assert row["rationale"].endswith(f" {row['seed']}" if row["seed"] else ".")


def test_same_words_are_rated_once_and_count_for_each_source(tmp_path):
    items, _ = exported(tmp_path, [["Same.", "Same.", "Other."], ["A.", "A. ", "A."], ["A.", "B.", "C."]])
    assert sorted(sorted(item["sources"]) for item in items) == sorted(map(sorted, [
        [KD, RL], [COT], [KD, RL, COT], [KD], [RL], [COT]]))  # fmt: skip


def test_questions_of_a_ppo_run_are_those_of_its_kd_run(tmp_path):
    kd, rl = write_run(tmp_path / "kd", plain(4)), write_run(tmp_path / "rl", plain(4))
    taught = vars(train_kd.Settings(data=str(kd / "data.jsonl"), test_data=str(kd / "data.jsonl")))
    (kd / "settings.json").write_text(json.dumps(taught))
    (rl / "settings.json").write_text(json.dumps(vars(train_rl.Settings(kd=str(kd)))))
    assert {row["question"] for row in ratings.collect(rl, 4, 0)} == {f"Who wrote book {i}?" for i in range(4)}


# ---- Import after export ---------------------------------------------------------------------------------------------


def filled(sheet, scores, delimiter=","):
    """The sheet as a spreadsheet gives it back: item → eight ratings ("" for none) put into its last columns."""
    header, *rows = csv.reader(io.StringIO(sheet.read_text(encoding="utf-8-sig"), newline=""))
    file = io.StringIO(newline="")
    out = csv.writer(file, delimiter=delimiter)
    out.writerow(header)
    for row in rows:
        out.writerow([*row[:-8], *scores.get(row[0], [""] * 8)])
    return file.getvalue()


def test_ratings_come_back_as_they_were_given(tmp_path, quick, capsys):
    """Three spreadsheets (commas, semicolons, tabs), hostile texts, blanks: means and differences worked by hand."""
    items, folder = exported(tmp_path, [[f"{a} {i}" for a in HOSTILE[i : i + 3]] for i in range(6)])
    level = {KD: 2, RL: 4, COT: 1}
    files = []
    for name, delimiter, extra in (("ann", ",", 0), ("bo", ";", 1), ("cy", "\t", 0)):
        scores = {i["item"]: [level[i["sources"][0]] + extra] * 7 + [""] for i in items}
        files.append(tmp_path / f"ratings-{name}.csv")
        files[-1].write_text(filled(folder / "sheet.csv", scores, delimiter), encoding="utf-8-sig")
    assert call("import", tmp_path / "sheet" / "key.json", *files) == 0
    table = json.loads((tmp_path / "sheet" / "results.json").read_text())
    markdown = (tmp_path / "sheet" / "results.md").read_text()
    assert markdown in capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    means, differences, agreement = ([row for row in lines if row[0] == "fluency"][i] for i in range(3))
    assert [text[:4] for text in means[1:]] == ["2.33", "4.33", "1.33"]  # KD, RL, CoT, as the heading has them
    assert [row for row in lines if row[0].startswith("mean")][0][1:] == [KD, RL, COT]
    assert differences[1:] == ["+2.00 [+2.00, +2.00]", "+1.00 [+1.00, +1.00]"]
    assert table["raters"] == {f"ratings-{name}": 18 * 7 for name in ("ann", "bo", "cy")}
    for aspect in ASPECTS[:7]:
        row = table["columns"][aspect]
        assert [row[source]["mean"] for source in (KD, RL, COT)] == pytest.approx([2 + 1 / 3, 4 + 1 / 3, 1 + 1 / 3])
        assert row[f"{RL} minus {KD}"] == {"mean": pytest.approx(2), "interval": pytest.approx([2, 2])}
        assert row[f"{KD} minus {COT}"]["mean"] == pytest.approx(1)
        rows = [[level[i["sources"][0]] + extra for i in items] for extra in (0, 1, 0)]
        assert row["alpha, ordinal"]["mean"] == pytest.approx(alpha_by_coincidences(rows))
    assert agreement[1].startswith(f"{alpha_by_coincidences(rows):.2f} [") and agreement[2] == "fluency"
    for name in ("readability", "all eight"):  # nobody rated it, so nobody rated all eight
        assert set(table["columns"][name].values()) == {None}


def test_metrics_correlate_with_ratings_that_follow_them(tmp_path, quick):
    """A rater who knows the metric's ranks gets 1 for that aspect; one who turns them round gets −1."""
    texts = [[good := f"Book {i} was written by Ann {i}.", f"{good} Cows were eating red Grass.", "Cows eat Grass."]
             for i in range(4)]  # fmt: skip
    items, folder = exported(tmp_path, texts)
    true = {i["item"]: aspects(i["rationale"], i["question"], i["context"])["factuality"] for i in items}
    ranks = sorted(set(true.values()))
    assert 3 <= len(ranks) <= 5
    for sign in (1, -1):
        scores = {item: [3 + sign * (ranks.index(v) - 2), *[""] * 7] for item, v in true.items()}
        (tmp_path / f"r{sign}.csv").write_text(filled(folder / "sheet.csv", scores))
        assert call("import", tmp_path / "sheet" / "key.json", tmp_path / f"r{sign}.csv") == 0
        found = json.loads((tmp_path / "sheet" / "results.json").read_text())
        assert found["Spearman"]["factuality"]["factuality"]["mean"] == pytest.approx(sign)
        assert found["columns"]["factuality"]["alpha, ordinal"] is None  # of one rater


def test_ratings_that_foretell_right_answers_correlate_with_em(tmp_path, quick):
    """Two of six questions are answered right, whoever wrote; the rater gives what led there 5 in all and others 2."""
    write_run(tmp_path / "run", plain(6))
    file = tmp_path / "run" / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        for answer in row["answers"]:
            answer["prediction"] = f"Ann {answer['id'][1:]}" if answer["id"] in ("q1", "q4") else "nobody"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("export", "--run", tmp_path / "run", "--questions", 6, "--out", tmp_path / "sheet") == 0
    key = json.loads((tmp_path / "sheet" / "key.json").read_text())
    assert {item["question_id"] for item in key["items"] if item["right"]} == {"q1", "q4"}
    scores = {item["item"]: [5 if item["right"] else 2] * 8 for item in key["items"]}
    (tmp_path / "ann.csv").write_text(filled(tmp_path / "sheet" / "for_raters" / "sheet.csv", scores))
    assert "right" not in (tmp_path / "sheet" / "for_raters" / "sheet.csv").read_text().partition("\n")[0]
    assert call("import", tmp_path / "sheet" / "key.json", tmp_path / "ann.csv") == 0
    found = json.loads((tmp_path / "sheet" / "results.json").read_text())["Spearman"]["EM"]
    assert found == {"all eight": {"mean": pytest.approx(1), "interval": pytest.approx([1, 1])}}


def test_a_sheet_is_never_replaced(tmp_path, capsys):
    exported(tmp_path, plain(2))
    key = (tmp_path / "sheet" / "key.json").read_bytes()
    assert call("export", "--run", tmp_path / "run", "--questions", 2, "--out", tmp_path / "sheet") == 2
    assert "ratings of its sheet need it" in capsys.readouterr().err
    assert (tmp_path / "sheet" / "key.json").read_bytes() == key


# ---- Hostile input ---------------------------------------------------------------------------------------------------

HEAD = "item," + ",".join(ASPECTS)
NAMES = ["bcdfg", "hjkmn"]


@pytest.mark.parametrize("content, sentence", [
    (b"", "0 columns 'item'"),
    (b"\n\n", "0 columns 'item'"),
    (b"name,score\nx,3\n", "0 columns 'item'"),
    (HEAD.replace(",fluency", "") + "\nbcdfg,1,1,1,1,1,1,1\n", "0 columns 'fluency'"),
    (HEAD + ",item\nbcdfg,1,1,1,1,1,1,1,1,bcdfg\n", "2 columns 'item'"),
    (HEAD + "\nzzzzz,1,1,1,1,1,1,1,1\n", "line 2: the key has no item 'zzzzz'"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,6\n", "line 2: readability is '6' (expected 1 to 5 or blank)"),
    (HEAD + "\nbcdfg,1,0,1,1,1,1,1,1\n", "relevance is '0'"),
    (HEAD + "\nbcdfg,4.5,1,1,1,1,1,1,1\n", "factuality is '4.5'"),
    (HEAD + "\nbcdfg,nan,1,1,1,1,1,1,1\n", "factuality is 'nan'"),
    (HEAD + "\nbcdfg,=1+1,1,1,1,1,1,1,1\n", "factuality is '=1+1'"),
    (HEAD + "\nbcdfg,٣,1,1,1,1,1,1,1\n", r"factuality is '\u0663'"),
    (HEAD + f"\nbcdfg,{'9' * 5000},1,1,1,1,1,1,1\n", f"factuality is '{'9' * 40}' (expected"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,1\nhjkmn,2,,,,,,,\nbcdfg,1,1,1,1,1,1,1,1\n", "line 4: item bcdfg a second time"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,1,5\n", "line 2 has more cells than there are columns"),
    (HEAD + "\nbcdfg,,,,,,,,\n", "no rating in it"),
    ((HEAD + "\nbcdfg,1,1,1,1,1,1,1,1\n").encode("utf-16"), "not UTF-8 text"),
    ((HEAD + ",é\nbcdfg,1,1,1,1,1,1,1,1,\n").encode("latin-1"), "not UTF-8 text"),
    (HEAD + "\nbcdfg,1,1,1\0,1,1,1,1,1\n", "NUL characters"),
    (HEAD + f'\nbcdfg,"{"x" * 200_000}",1,1,1,1,1,1,1\n', "line 2 is no CSV (field larger"),
    (HEAD + '\nbcdfg,"1,1,1,1,1,1,1,1\n', "no CSV"),
    (b" " * (2**24 + 1), "larger than 16 MiB"),
])  # fmt: skip
def test_a_bad_file_of_ratings_ends_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "ratings-ann.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        ratings.read_ratings(path, NAMES)
    assert sentence in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_spreadsheets_do_to_a_good_file_is_read_over(tmp_path):
    """A byte order mark, other line ends and order, spaces, cut-off blank cells, blank lines and further columns."""
    path = tmp_path / "r.csv"
    path.write_bytes(("\ufeffnotes,readability: how? (1 to 5)," + ",".join(ASPECTS[:7]) + ",item\r\r\n,,,,,,,,,\r"
                      '"well, yes", 5 ,1,1,1,1,1,1,1,hjkmn\r,2,3,,,,,,,bcdfg\r').encode())  # fmt: skip
    found = ratings.read_ratings(path, NAMES)
    assert found[1].tolist() == [1, 1, 1, 1, 1, 1, 1, 5]
    assert found[0][[0, 7]].tolist() == [3, 2] and np.isnan(found[0][1:7]).all()
    path.write_text(HEAD + "\nbcdfg,4\n")
    assert ratings.read_ratings(path, NAMES)[0, 0] == 4


@pytest.mark.parametrize("command, sentence", [
    ([], "say export, or import KEY FILE.csv"),
    (["import", "{key}"], "say export, or import"),
    (["export", "--run", "{here}/none"], "none is no run folder of eval.py"),
    (["export", "--run", "{here}/run", "--questions", "9", "--out", "{here}/new"], "has 3 questions, fewer than the 9"),
    (["export", "--run", "{here}/kd only", "--out", "{here}/new"], "no rationales of LM-guided, RL and CoT"),
    (["export", "--run", "{here}/unfinished", "--out", "{here}/new"], "has not ended: give its command once more"),
    (["export", "--run", "{here}/moved", "--questions", "3", "--out", "{here}/new"], "is not in the data of its"),
    (["import", "{here}/none.json", "{here}/a.csv"], "No such file"),
    (["import", "{here}/run/settings.json", "{here}/a.csv"], "no key that `ratings.py export` wrote"),
    (["import", "{here}/run/answers.jsonl", "{here}/a.csv"], "not JSON"),
    (["import", "{key}", "{here}/none.csv"], "there is no such file"),
    (["import", "{key}", "{here}"], "there is no such file"),
    (["import", "{key}", "{here}/a.csv", "{here}/a (1).csv"], "a second file of the rater a"),
])  # fmt: skip
def test_a_wrong_command_ends_in_one_sentence(tmp_path, capsys, command, sentence):
    items, folder = exported(tmp_path, plain(3))
    scores = {item["item"]: [3] * 8 for item in items}
    for name in ("a.csv", "a (1).csv"):
        (tmp_path / name).write_text(filled(folder / "sheet.csv", scores))
    answers = (tmp_path / "run" / "answers.jsonl").read_text()
    write_run(tmp_path / "kd only", plain(3))
    (tmp_path / "kd only" / "answers.jsonl").write_text(answers.partition("\n")[0] + "\n")
    (write_run(tmp_path / "unfinished", plain(3)) / "results.json").unlink()
    write_run(tmp_path / "moved", plain(2))
    (tmp_path / "moved" / "answers.jsonl").write_text(answers)
    capsys.readouterr()
    given = [part.format(here=tmp_path, key=tmp_path / "sheet" / "key.json") for part in command]
    assert call(*given) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "sheet" / "results.md").exists()


@pytest.mark.parametrize("change", [
    lambda key: key.pop("items"), lambda key: key.update(items={}), lambda key: key.update(items=[]),
    lambda key: key["items"].pop(), lambda key: key["items"].append(7), lambda key: key["items"][0].pop("item"),
    lambda key: key["items"][0].update(sources=["x"]), lambda key: key["items"][0].update(sources=[[], {}]),
    lambda key: key["items"][0].update(rationale=None), lambda key: key["items"][0].update(question_id=3),
    lambda key: key["items"].append(key["items"][0]), lambda key: key["items"][0].update(item=key["items"][1]["item"]),
])  # fmt: skip
def test_a_damaged_key_ends_in_one_sentence(tmp_path, change):
    exported(tmp_path, plain(2))
    path = tmp_path / "sheet" / "key.json"
    key = json.loads(path.read_text())
    change(key)
    path.write_text(json.dumps(key))
    with pytest.raises(UserError, match="no key that"):
        ratings.read_key(path)


@given(st.text(alphabet="=+-@＝ab;,\"'\t\r\n ", max_size=12))
def test_no_cell_of_the_sheet_is_a_formula(text):
    """In whichever locale it is opened: parted at commas as it should be, or wrongly at semicolons or tabs."""
    item = {"item": "bcdfg", "question": ratings.clean(text), "context": "c", "rationale": ratings.clean(text)}
    sheet = ratings.as_csv([item]).decode("utf-8-sig")
    for delimiter in ",;\t":
        for row in csv.reader(io.StringIO(sheet, newline=""), delimiter=delimiter):
            assert not any(value.strip()[:1] in tuple("=+-@＝") for value in row)
    kept = next(itertools.islice(csv.reader(io.StringIO(sheet, newline="")), 1, None))[3]
    assert kept.replace("'", "") == (ratings.clean(text) or "(nothing was written)").replace("'", "")


def fuzz(tmp_path, count):
    """Mutated files of ratings: a UserError, or ratings of 1 to 5; nothing else, and each in moments."""
    rng = random.Random(0)
    good = (HEAD + "\r\nbcdfg,1,2,3,4,5,,1,2\r\nhjkmn,5,5,5,5,5,5,5,5\r\n").encode()
    parts = [b"\0", b'"', b",", b";", b"\t", b"\r", b"\n", b"\xff", b"\xef\xbb\xbf", b"item", b"bcdfg", b"6", b"=1",
             b":", "\u2028".encode(), "３".encode(), b"9" * 50, b'"' * 7, b"x" * 140_000]  # fmt: skip
    path, read = tmp_path / "fuzz.csv", 0
    for i in range(count):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(raw) + 1)
            match rng.randrange(4):
                case 0:
                    raw[at:at] = rng.choice(parts[:-1] if i % 50 else parts)
                case 1:
                    del raw[at : at + rng.randint(1, 40)]
                case 2:
                    raw[at : at + 1] = bytes([rng.randrange(256)])
                case 3:
                    raw[at:at] = raw[rng.randrange(len(raw) + 1) :][: rng.randint(1, 60)]
        path.write_bytes(raw)
        begun = time.process_time()
        try:
            found = ratings.read_ratings(path, NAMES)
            read += 1
            assert found.shape == (2, 8) and set(found[~np.isnan(found)]) <= {1, 2, 3, 4, 5}
        except UserError as error:
            assert "\n" not in str(error)
        assert time.process_time() - begun < 1
    assert 0 < read < count


def test_mutated_files_of_ratings(tmp_path):
    fuzz(tmp_path, 500)


@pytest.mark.slow
def test_ten_thousand_mutated_files_of_ratings(tmp_path):
    fuzz(tmp_path, 10_000)


# ---- The page --------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Browser:
    """Headless Chromium by the WebDriver protocol: JSON over HTTP on this machine, which needs no package."""

    def __init__(self, downloads):
        self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        line = next(line for line in self.driver.stdout if "successfully on port" in line)
        port = re.search(r"on port (\d+)", line)[1]
        self.url = f"http://127.0.0.1:{port}/session"
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {"binary": CHROMIUM, "args": flags, "prefs": {"download.default_directory": str(downloads)}}
        answer = self.ask("", capabilities={"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}})
        self.url += f"/{answer['sessionId']}"

    def ask(self, path, **body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, path):
        self.ask("/url", url=path.as_uri())

    def js(self, script):
        return self.ask("/execute/sync", script=f"return {script}", args=[])

    def click(self, selector):
        """As a person does it: scrolls there, and hits only what nothing covers."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        element = self.ask("/element", using="css selector", value=selector)
        self.ask(f"/element/{next(iter(element.values()))}/click")

    def press(self, *keys):
        """Real key presses; "\\ue007" is Enter, "\\ue008" Shift."""
        steps = [(kind, key) for key in keys for kind in ("keyDown", "keyUp")]
        if keys[0] == "\ue008":
            steps = [*(("keyDown", key) for key in keys), *(("keyUp", key) for key in keys)]
        actions = [{"type": kind, "value": key} for kind, key in steps]
        self.ask("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def size(self, width, height):
        self.ask("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params={
            "width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500})  # fmt: skip

    def scheme(self, name):
        self.ask("/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={
            "features": [{"name": "prefers-color-scheme", "value": name}]})  # fmt: skip

    def shot(self, name):
        if folder := os.environ.get("RATINGS_SHOTS"):
            found = self.ask("/goog/cdp/execute", cmd="Page.captureScreenshot", params={})
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(found["data"]))

    def close(self):
        try:
            urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE"), timeout=60).close()
        finally:
            self.driver.terminate()
            self.driver.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with chromedriver here")
    folder = tmp_path_factory.mktemp("downloads")
    browser = Browser(folder)
    browser.downloads = folder
    yield browser
    browser.close()


def begin(browser, sheet, rater="ann"):
    browser.size(1100, 800)
    browser.scheme("light")
    browser.open(sheet)
    browser.js(f"document.getElementById('rater').value = '{rater}'")
    browser.click("#who button")


def wait_for(path):
    for _ in range(300):
        if path.exists() and path.stat().st_size:
            return path
        time.sleep(0.1)
    raise AssertionError(f"{path.name} was not downloaded: {list(path.parent.iterdir())}")


def test_rating_by_clicks_and_keys_survives_a_reload_and_comes_back_by_import(browser, tmp_path, quick):
    items, folder = exported(tmp_path, plain(2))
    level = {KD: 2, RL: 4, COT: 1}
    begin(browser, folder / "sheet.html")
    assert browser.js("performance.getEntriesByType('resource').length") == 0
    for k, item in enumerate(items):
        assert browser.js("document.getElementById('where').textContent") == f"Reasoning {k + 1} of 6"
        value = level[item["sources"][0]]
        if k == 1:  # by keys alone; the third line is left as "can't say"
            browser.press(*[str(value), str(value), "0", *[str(value)] * 5])
        else:
            for aspect in ASPECTS[: 8 if k < 5 else 3]:  # the last item is left half done
                browser.click(f"#{aspect} input[value='{value}']")
        if k == 2:  # closed and opened again in the middle of an item
            browser.open(folder / "sheet.html")
            assert browser.js("document.getElementById('where').textContent") == "Reasoning 3 of 6"
            assert browser.js("document.querySelectorAll('input:checked').length") == 8
            assert browser.js("document.getElementById('bar').value") == 3
        if k == 3:  # there and back again
            browser.press("\ue008", "\ue007")
            browser.click("#next")
        if k % 2:
            browser.press("\ue007")
        else:
            browser.click("#next")
    assert browser.js("document.getElementById('thanks').textContent") == "5 of 6 are complete"
    assert browser.js("document.getElementById('list').textContent") == "6"
    browser.click("#download")
    file = wait_for(browser.downloads / "ratings-ann.csv")
    assert call("import", tmp_path / "sheet" / "key.json", file) == 0
    found = ratings.read_ratings(file, [item["item"] for item in items])
    for k, item in enumerate(items):
        expected = [float(level[item["sources"][0]])] * 8
        if k == 1:
            expected[2] = NAN
        if k == 5:
            expected[3:] = [NAN] * 5
        assert found[k].tolist() == pytest.approx(expected, nan_ok=True)
    table = json.loads((tmp_path / "sheet" / "results.json").read_text())
    assert [table["columns"]["factuality"][s]["mean"] for s in (KD, RL, COT)] == [2, 4, 1]


def test_two_raters_and_two_sheets_in_one_browser_do_not_mix(browser, tmp_path):
    _, folder = exported(tmp_path / "a", plain(2))
    _, other = exported(tmp_path / "b", plain(2))
    checked = "document.querySelectorAll('input:checked').length"
    begin(browser, folder / "sheet.html")
    browser.press("5", "5")
    browser.click("#help")
    browser.js("document.getElementById('rater').value = 'bo'")
    browser.click("#who button")
    assert browser.js(checked) == 0
    browser.press("4")
    browser.open(folder / "sheet.html")  # the last rater goes on
    assert browser.js(checked) == 1
    begin(browser, other / "sheet.html", "bo")
    assert browser.js(checked) == 0
    browser.open(folder / "sheet.html")
    browser.click("#help")
    browser.js("document.getElementById('rater').value = 'ann'")
    browser.click("#who button")
    assert browser.js(checked) == 2


def test_hostile_texts_are_shown_as_text(browser, tmp_path):
    items, folder = exported(tmp_path, [[a, b, c] for a, b, c in zip(HOSTILE, HOSTILE[1:], HOSTILE[2:], strict=False)])
    begin(browser, folder / "sheet.html")
    for item in items:
        assert browser.js("document.getElementById('rationale').textContent") == item["rationale"]
        assert browser.js("[document.title, document.scripts.length, document.images.length]") == ["Rating sheet", 2, 0]
        browser.click("#next")
    assert {item["rationale"] for item in items} == {ratings.clean(text) for text in HOSTILE}


CONTRASTS = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(":disabled")) continue;
    let behind = element;
    while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
      .map((c) => light(rgb(c))).sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), element.outerHTML.slice(0, 80)]);
  }
  return found;
})()"""


SMALL = """(e) => {
  const {width, height} = e.getBoundingClientRect();
  return e.checkVisibility() && (width < 44 || height < 44);
}"""


@pytest.mark.parametrize("width", [375, 1100])
def test_the_page_fits_reads_and_can_be_touched(browser, tmp_path, width):
    """No scrolling sideways, contrast of 4.5 in both schemes, targets of 44 pixels, and a name for every control."""
    long = ["Pneumonoultramicroscopicsilicovolcanoconiosis" * 3 + " is a word. " * 40, *HOSTILE[3:5]]
    _, folder = exported(tmp_path, [long])
    begin(browser, folder / "sheet.html")
    browser.size(width, 700)
    for view in ("rate", "rate", "rate", "end", "start"):
        if view == "rate":
            browser.click("#fluency input[value='0']")
        browser.js("document.getElementById('where').scrollIntoView()")
        for scheme in ("dark", "light"):
            browser.scheme(scheme)
            browser.shot(f"{view}-{width}-{scheme}")
            contrasts = browser.js(CONTRASTS)
            assert len(contrasts) > 5 and min(contrasts)[0] >= 4.5, min(contrasts)
        assert browser.js("document.documentElement.scrollWidth") <= width
        assert browser.js(f"[...document.querySelectorAll('.main, #foot button, input')].filter({SMALL})") == []
        if view != "start":
            browser.click("#next" if view == "rate" else "#help")
    assert browser.js("[...document.querySelectorAll('input')].filter((e) => !e.labels[0]?.textContent.trim())") == []
    assert browser.js("document.querySelectorAll('fieldset > legend').length") == 8
