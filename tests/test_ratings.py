"""
Proofs for lab/ratings.py: agreement by Krippendorff's own example and by brute force, intervals by how often they hold
the truth, blinding by what the sheet depends on, import after export, raters' damaged files, and the page in a real
browser (Chromium through chromedriver; skipped where there is none).
"""

import csv
import io
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter

import harness
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train_kd
import train_rl
from lab import ratings
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


def raters_who_know(rng, p, raters, items):
    """Each rating is the item's own value with probability p, else a random one; a fifth is missing. Two raters then
    differ as two random ratings do, unless both have the item's value, and so α = p²."""
    shares = [0.1, 0.2, 0.3, 0.3, 0.1]
    own, other = rng.choice(5, items, p=shares), rng.choice(5, (raters, items), p=shares)
    rows = np.where(rng.random((raters, items)) < p, own, other) + 1.0
    rows[rng.random(rows.shape) < 0.2] = NAN
    return rows


@pytest.mark.parametrize("p", [0, 0.8, 1])
def test_alpha_of_raters_whose_agreement_is_known(p):
    rows = raters_who_know(np.random.default_rng(0), p, 3, 6000)
    assert ratings.alpha(rows) == pytest.approx(p**2, abs=1e-12 if p == 1 else 0.025)


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
def test_intervals_of_few_raters_hold_the_truth_as_often_as_the_docstring_says(raters, of_means, monkeypatch):
    """1,000 intervals of a difference and of a mean, 300 of α."""
    monkeypatch.setattr(ratings, "BOOTSTRAPS", 500)
    rng, held = np.random.default_rng(raters), {"difference": [], "mean": [], "alpha": []}
    questions = [np.array([question]) for question in range(20)]

    def note(name, cell, truth):
        held[name].append(cell["interval"][0] <= truth <= cell["interval"][1])

    for i in range(1000):
        one, two = two_sources(rng, raters, 0.5)
        note("difference", ratings.mean(one - two), 0.4)
        note("mean", ratings.mean(one), 3.4)
        if i < 300:
            rows = raters_who_know(rng, 0.8, raters, 20)
            note("alpha", ratings.estimate(lambda at, rows=rows: ratings.alpha(rows[:, at]), questions), 0.8**2)
    shares = {name: np.mean(each) for name, each in held.items()}
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


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder, texts, seeds=1, right=()):
    """A folder as eval.py leaves it; texts: for each question a rationale for each of KD, RL and CoT; right: the
    questions that everybody answers rightly."""
    folder.mkdir(parents=True)
    write_lines(folder / "data.jsonl", [
        {"id": f"q{i}", "question": f"Who wrote book {i}?", "context": f"Book {i} was written by Ann {i}.",
         "answer": f"Ann {i}"} for i in range(len(texts))])  # fmt: skip
    settings = {"data": str(folder / "data.jsonl"), "split": "test", "limit": 1000, "context": "gold"}
    (folder / "settings.json").write_text(json.dumps(settings))
    rows = []
    for k, source in enumerate(ratings.SOURCES):
        for seed in range(1 if source == COT else seeds):
            answers = [{"id": f"q{i}", "prediction": f"Ann {i}" if i in right else "nobody", "parsed": True,
                        "rationale": of[k] + (f" {seed}" if seed else "")} for i, of in enumerate(texts)]  # fmt: skip
            rows.append({"method": source, "seed": seed, "answers": answers})
    write_lines(folder / "answers.jsonl", rows)
    (folder / "results.json").write_text("{}")
    return folder


def call(*arguments):
    """`python lab/ratings.py …` in this process → exit status."""
    with pytest.MonkeyPatch.context() as patch:
        return harness.call(patch, ratings.main, *arguments)


def exported(place, texts, **run):
    """Exports all of a run of these texts → (items of the key, folder for raters)."""
    write_run(place / "run", texts, **run)
    assert call("export", "--run", place / "run", "--questions", len(texts), "--out", place / "sheet") == 0
    return json.loads((place / "sheet" / "key.json").read_text())["items"], place / "sheet" / "for_raters"


def filled(sheet, scores, delimiter=","):
    """The sheet as a spreadsheet gives it back: item → eight ratings ("" for none) put into its last columns."""
    header, *rows = csv.reader(io.StringIO(sheet.read_text(encoding="utf-8-sig"), newline=""))
    file = io.StringIO(newline="")
    out = csv.writer(file, delimiter=delimiter)
    out.writerow(header)
    for row in rows:
        out.writerow([*row[:-8], *scores.get(row[0], [""] * 8)])
    return file.getvalue()


def imported(place, scores):
    """What `import` makes of one rater's scores, item → eight ratings."""
    (place / "ann.csv").write_text(filled(place / "sheet" / "for_raters" / "sheet.csv", scores))
    assert call("import", place / "sheet" / "key.json", place / "ann.csv") == 0
    return json.loads((place / "sheet" / "results.json").read_text())


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
    orders, early = Counter(), Counter()
    for _ in range(3000):
        sheet = ratings.blind(rows)
        assert len({row["item"] for row in sheet}) == 3
        orders[tuple(row["sources"][0] for row in sheet)] += 1
        early.update(row["sources"][0] for row in sheet if row["item"][0] < "l")  # 8 of the 19 letters
    for order in itertools.permutations(ratings.SOURCES):
        assert abs(orders[order] - 500) < 5 * (3000 * 1 / 6 * 5 / 6) ** 0.5
    for source in ratings.SOURCES:
        assert abs(early[source] - 3000 * 8 / 19) < 5 * (3000 * 8 / 19 * 11 / 19) ** 0.5


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
    expected = [[KD, RL], [COT], [KD, RL, COT], [KD], [RL], [COT]]
    assert sorted(sorted(item["sources"]) for item in items) == sorted(map(sorted, expected))


def test_questions_of_a_ppo_run_are_those_of_its_kd_run(tmp_path):
    kd, rl = write_run(tmp_path / "kd", plain(4)), write_run(tmp_path / "rl", plain(4))
    taught = vars(train_kd.Settings(data=str(kd / "data.jsonl"), test_data=str(kd / "data.jsonl")))
    (kd / "settings.json").write_text(json.dumps(taught))
    (rl / "settings.json").write_text(json.dumps(vars(train_rl.Settings(kd=str(kd)))))
    assert {row["question"] for row in ratings.collect(rl, 4, 0)} == {f"Who wrote book {i}?" for i in range(4)}


# ---- Import after export ---------------------------------------------------------------------------------------------


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
    assert table["raters"] == {f"ratings-{name}": 18 * 7 for name in ("ann", "bo", "cy")}
    rows = [[level[i["sources"][0]] + extra for i in items] for extra in (0, 1, 0)]
    for aspect in ASPECTS[:7]:
        row = table["columns"][aspect]
        assert [row[source]["mean"] for source in (KD, RL, COT)] == pytest.approx([2 + 1 / 3, 4 + 1 / 3, 1 + 1 / 3])
        assert row[f"{RL} minus {KD}"] == {"mean": pytest.approx(2), "interval": pytest.approx([2, 2])}
        assert row[f"{KD} minus {COT}"]["mean"] == pytest.approx(1)
        assert row["alpha, ordinal"]["mean"] == pytest.approx(alpha_by_coincidences(rows))
    for name in ("readability", "all eight"):  # nobody rated it, so nobody rated all eight
        assert set(table["columns"][name].values()) == {None}

    markdown = (tmp_path / "sheet" / "results.md").read_text()
    assert markdown in capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    assert [row for row in lines if row[0].startswith("mean")][0][1:] == [KD, RL, COT]
    means, differences, agreement = ([row for row in lines if row[0] == "fluency"][i] for i in range(3))
    assert [text[:4] for text in means[1:]] == ["2.33", "4.33", "1.33"]
    assert differences[1:] == ["+2.00 [+2.00, +2.00]", "+1.00 [+1.00, +1.00]"]
    assert agreement[1].startswith(f"{alpha_by_coincidences(rows):.2f} [") and agreement[2] == "fluency"


def test_metrics_correlate_with_ratings_that_follow_them(tmp_path, quick):
    """A rater who knows the metric's ranks gets 1 for that aspect; one who turns them round gets −1."""
    texts = [[good := f"Book {i} was written by Ann {i}.", f"{good} Cows were eating red Grass.", "Cows eat Grass."]
             for i in range(4)]  # fmt: skip
    items, _ = exported(tmp_path, texts)
    true = {i["item"]: aspects(i["rationale"], i["question"], i["context"])["factuality"] for i in items}
    ranks = sorted(set(true.values()))
    assert 3 <= len(ranks) <= 5
    for sign in (1, -1):
        found = imported(tmp_path, {item: [3 + sign * (ranks.index(v) - 2), *[""] * 7] for item, v in true.items()})
        assert found["Spearman"]["factuality"]["factuality"]["mean"] == pytest.approx(sign)
        assert found["columns"]["factuality"]["alpha, ordinal"] is None  # of one rater


def test_ratings_that_foretell_right_answers_correlate_with_em(tmp_path, quick):
    """Two of six questions are answered right, whoever wrote; the rater gives what led there 5 in all and others 2."""
    items, folder = exported(tmp_path, plain(6), right=(1, 4))
    assert {item["question_id"] for item in items if item["right"]} == {"q1", "q4"}
    assert "right" not in (folder / "sheet.csv").read_text().partition("\n")[0]
    found = imported(tmp_path, {item["item"]: [5 if item["right"] else 2] * 8 for item in items})
    assert found["Spearman"]["EM"] == {"all eight": {"mean": pytest.approx(1), "interval": pytest.approx([1, 1])}}


def test_a_sheet_is_never_replaced(tmp_path, capsys):
    exported(tmp_path, plain(2))
    key = (tmp_path / "sheet" / "key.json").read_bytes()
    assert call("export", "--run", tmp_path / "run", "--questions", 2, "--out", tmp_path / "sheet") == 2
    assert "ratings of its sheet need it" in capsys.readouterr().err
    assert (tmp_path / "sheet" / "key.json").read_bytes() == key


# ---- What raters and spreadsheets do to files ------------------------------------------------------------------------

HEAD = "item," + ",".join(ASPECTS)
NAMES = ["bcdfg", "hjkmn"]


@pytest.mark.parametrize("content, sentence", [
    ("", "0 columns 'item'"),
    (HEAD.replace(",fluency", "") + "\nbcdfg,1,1,1,1,1,1,1\n", "0 columns 'fluency'"),
    (HEAD + "\nzzzzz,1,1,1,1,1,1,1,1\n", "line 2: the key has no item 'zzzzz'"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,6\n", "line 2: readability is '6' (expected 1 to 5 or blank)"),
    (HEAD + "\nbcdfg,4.5,1,1,1,1,1,1,1\n", "factuality is '4.5'"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,1\nhjkmn,2,,,,,,,\nbcdfg,1,1,1,1,1,1,1,1\n", "line 4: item bcdfg a second time"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,1,5\n", "line 2 has more cells than there are columns"),
    (HEAD + "\nbcdfg,,,,,,,,\n", "no rating in it"),
    ((HEAD + "\nbcdfg,1,1,1,1,1,1,1,1\n").encode("utf-16"), "not UTF-8 text"),
    (HEAD + '\nbcdfg,"1,1,1,1,1,1,1,1\n', "no CSV"),
])  # fmt: skip
def test_a_bad_file_of_ratings_ends_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "ratings-ann.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        ratings.read_ratings(path, NAMES)
    assert sentence in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


GOOD = (HEAD + "\r\nbcdfg,1,2,3,4,5,,1,2\r\nhjkmn,5,5,5,5,5,5,5,5\r\n").encode()
PIECES = [b"\0", b'"', b",", b";", b"\t", b"\r", b"\n", b"\xff", b"\xef\xbb\xbf", b"item", b"6", b"=1", b":",
          "\u2028٣".encode(), b"x" * 140_000]  # fmt: skip


@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.lists(st.sampled_from(PIECES), max_size=4))
def test_any_damage_to_a_file_of_ratings_gives_ratings_of_1_to_5_or_one_sentence(tmp_path_factory, at, length, pieces):
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(GOOD[:at] + b"".join(pieces) + GOOD[at + length :])
    try:
        found = ratings.read_ratings(path, NAMES)
        assert found.shape == (2, 8) and set(found[~np.isnan(found)]) <= {1, 2, 3, 4, 5}
    except UserError as error:
        assert "\n" not in str(error)


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
    (["export", "--run", "{here}/none"], "none is no run folder of eval.py"),
    (["export", "--run", "{here}/run", "--questions", "9", "--out", "{here}/new"], "has 3 questions, fewer than the 9"),
    (["export", "--run", "{here}/kd only", "--out", "{here}/new"], "no rationales of LM-guided, RL and CoT"),
    (["export", "--run", "{here}/unfinished", "--out", "{here}/new"], "has not ended: give its command once more"),
    (["export", "--run", "{here}/moved", "--questions", "3", "--out", "{here}/new"], "is not in the data of its"),
    (["import", "{here}/run/settings.json", "{here}/a.csv"], "no key that `ratings.py export` wrote"),
    (["import", "{key}", "{here}/none.csv"], "there is no such file"),
    (["import", "{key}", "{here}/a.csv", "{here}/a (1).csv"], "a second file of the rater a"),
])  # fmt: skip
def test_a_wrong_command_ends_in_one_sentence(tmp_path, capsys, command, sentence):
    items, folder = exported(tmp_path, plain(3))
    for name in ("a.csv", "a (1).csv"):
        (tmp_path / name).write_text(filled(folder / "sheet.csv", {item["item"]: [3] * 8 for item in items}))
    answers = (tmp_path / "run" / "answers.jsonl").read_text()
    (write_run(tmp_path / "kd only", plain(3)) / "answers.jsonl").write_text(answers.partition("\n")[0] + "\n")
    (write_run(tmp_path / "unfinished", plain(3)) / "results.json").unlink()
    (write_run(tmp_path / "moved", plain(2)) / "answers.jsonl").write_text(answers)
    capsys.readouterr()
    given = [part.format(here=tmp_path, key=tmp_path / "sheet" / "key.json") for part in command]
    assert call(*given) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "sheet" / "results.md").exists()


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


# ---- The page --------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Browser:
    """Headless Chromium by the WebDriver protocol: JSON over HTTP on this machine, which needs no package."""

    def __init__(self, downloads):
        self.downloads = downloads
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

    def emulate(self, what, **how):
        self.ask("/goog/cdp/execute", cmd=f"Emulation.set{what}", params=how)

    def size(self, width, height):
        self.emulate("DeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 500)

    def open(self, path):
        self.ask("/url", url=path.as_uri())

    def begin(self, sheet, rater="ann"):
        self.size(1100, 800)
        self.open(sheet)
        self.name(rater)

    def name(self, rater):
        self.js(f"document.getElementById('rater').value = '{rater}'")
        self.click("#who button")

    def js(self, script):
        return self.ask("/execute/sync", script=f"return {script}", args=[])

    def text(self, name):
        return self.js(f"document.getElementById('{name}').textContent")

    def checked(self):
        return self.js("document.querySelectorAll('input:checked').length")

    def click(self, selector):
        """As a person does it: scrolls there, and hits only what nothing covers."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        element = self.ask("/element", using="css selector", value=selector)
        self.ask(f"/element/{next(iter(element.values()))}/click")

    def press(self, *keys):
        """Real key presses; "\\ue007" is Enter, and "\\ue008" Shift, which stays down for those after it."""
        steps = []
        for key in keys:
            steps += [("keyDown", key)] if key == "\ue008" else [("keyDown", key), ("keyUp", key)]
        steps += [("keyUp", "\ue008")]
        actions = [{"type": kind, "value": key} for kind, key in steps]
        self.ask("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def download(self, name):
        self.click("#download")
        for _ in range(300):
            if (self.downloads / name).exists() and (self.downloads / name).stat().st_size:
                return self.downloads / name
            time.sleep(0.1)
        raise AssertionError(f"{name} was not downloaded: {list(self.downloads.iterdir())}")

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
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.close()


def test_rating_by_clicks_and_keys_survives_a_reload_and_comes_back_by_import(browser, tmp_path, quick):
    items, folder = exported(tmp_path, plain(1))
    level = {KD: 2, RL: 4, COT: 1}
    one, two, three = (level[item["sources"][0]] for item in items)
    browser.begin(folder / "sheet.html")
    assert browser.js("performance.getEntriesByType('resource').length") == 0  # it loads nothing
    for aspect in ASPECTS:
        browser.click(f"#{aspect} input[value='{one}']")
    browser.open(folder / "sheet.html")  # closed and opened again in the middle of an item
    assert (browser.text("where"), browser.checked()) == ("Reasoning 1 of 3", 8)
    browser.click("#next")
    browser.press(str(two), str(two), "0", *[str(two)] * 5)  # by keys alone; the third line is left as "can't say"
    browser.press("\ue008", "\ue007")
    assert browser.text("where") == "Reasoning 1 of 3"  # there and back again
    browser.click("#next")
    assert browser.text("where") == "Reasoning 2 of 3" and browser.js("document.getElementById('bar').value") == 2
    browser.press("\ue007")
    for aspect in ASPECTS[:3]:  # left half done
        browser.click(f"#{aspect} input[value='{three}']")
    browser.click("#next")
    assert (browser.text("thanks"), browser.text("list")) == ("2 of 3 are complete", "3")

    file = browser.download("ratings-ann.csv")
    expected = [[one] * 8, [two, two, NAN, *[two] * 5], [three] * 3 + [NAN] * 5]
    found = ratings.read_ratings(file, [item["item"] for item in items])
    assert found == pytest.approx(np.array(expected, float), nan_ok=True)
    assert call("import", tmp_path / "sheet" / "key.json", file) == 0
    table = json.loads((tmp_path / "sheet" / "results.json").read_text())
    assert [table["columns"]["factuality"][s]["mean"] for s in (KD, RL, COT)] == [2, 4, 1]


def test_two_raters_and_two_sheets_in_one_browser_do_not_mix(browser, tmp_path):
    _, folder = exported(tmp_path / "a", plain(2))
    _, other = exported(tmp_path / "b", plain(2))
    browser.begin(folder / "sheet.html")
    browser.press("5", "5")
    browser.click("#help")
    browser.name("bo")
    assert browser.checked() == 0
    browser.press("4")
    browser.open(folder / "sheet.html")  # the last rater goes on
    assert browser.checked() == 1
    browser.begin(other / "sheet.html", "bo")
    assert browser.checked() == 0
    browser.open(folder / "sheet.html")
    browser.click("#help")
    browser.name("ann")
    assert browser.checked() == 2


def test_hostile_texts_are_shown_as_text(browser, tmp_path):
    items, folder = exported(tmp_path, [HOSTILE[0:3], HOSTILE[3:6], HOSTILE[5:8]])
    browser.begin(folder / "sheet.html")
    for item in items:
        assert browser.text("rationale") == item["rationale"]
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
    browser.begin(folder / "sheet.html")
    browser.size(width, 700)
    for view in ("rate", "rate", "rate", "end", "start"):
        if view == "rate":
            browser.click("#fluency input[value='0']")
        for scheme in ("dark", "light"):
            browser.emulate("EmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            contrasts = browser.js(CONTRASTS)
            assert len(contrasts) > 5 and min(contrasts)[0] >= 4.5, min(contrasts)
        assert browser.js("document.documentElement.scrollWidth") <= width
        assert browser.js(f"[...document.querySelectorAll('.main, #foot button, input')].filter({SMALL})") == []
        if view != "start":
            browser.click("#next" if view == "rate" else "#help")
    assert browser.js("[...document.querySelectorAll('input')].filter((e) => !e.labels[0]?.textContent.trim())") == []
    assert browser.js("document.querySelectorAll('fieldset > legend').length") == 8
