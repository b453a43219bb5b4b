"""
Proofs for lab/ratings.py: agreement by Krippendorff's own example and by brute force, intervals by how often they hold
the truth, blinding by what the sheet depends on, import after export, raters' damaged files, and the page in Chromium
(skipped where there is none).
"""

import csv
import io
import itertools
import json
import re
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


@given(st.lists(st.tuples(st.sampled_from([NAN, 0, 0.2, 0.5, 1]), st.sampled_from([NAN, 1, 2, 2.5, 4])), max_size=9))
def test_spearman_is_the_correlation_of_ranks_that_are_counted(pairs):
    both = [(x, y) for x, y in pairs if x == x and y == y]
    ranks = [[sum(w < v for w in side) + sum(w == v for w in side) / 2 for v in side]
             for side in zip(*both, strict=True)]  # fmt: skip
    varies = both and all(len(set(side)) > 1 for side in ranks)
    expected = np.corrcoef(ranks)[0, 1] if varies else NAN
    x, y = (np.array([pair[i] for pair in pairs], float) for i in (0, 1))
    assert ratings.spearman(x, y) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def two_sources(rng, raters):
    """Ratings (raters, 20 questions) of two sources whose true means are 3.4 and 3: raters differ in severity,
    questions in difficulty, and a fifth of the ratings is missing."""
    shared = rng.normal(3, 0.5, (raters, 1)) + rng.normal(0, 0.5, 20)
    rows = [shared + effect + rng.normal(0, 0.6, 20) + rng.normal(0, 0.7, (raters, 20)) for effect in (0.4, 0)]
    for each in rows:
        each[rng.random(each.shape) < 0.2] = NAN
    return rows


@pytest.mark.parametrize("raters, of_means", [(2, 0.84), (3, 0.88), (5, 0.93)])
def test_intervals_hold_the_truth_as_often_as_the_docstring_says(raters, of_means, monkeypatch):
    monkeypatch.setattr(ratings, "BOOTSTRAPS", 500)
    rng = np.random.default_rng(raters)
    held = {"mean": 0, "difference": 0}
    widths = []
    for _ in range(500):
        one, two = two_sources(rng, raters)
        for name, ratings_of, truth in (("mean", one, 3.4), ("difference", one - two, 0.4)):
            low, high = ratings.mean(ratings_of)["interval"]
            held[name] += low <= truth <= high
        widths.append(high - low)
    assert held["mean"] / 500 == pytest.approx(of_means, abs=0.05)  # three standard errors
    assert held["difference"] / 500 > 0.94
    standard_error = (2 * 0.6**2 / 20 + 2 * 0.7**2 / (0.64 * 20 * raters)) ** 0.5
    assert np.mean(widths) < 1.4 * 2 * 1.96 * standard_error  # not much wider than theory asks


def test_intervals_over_questions_are_those_of_the_normal_approximation():
    """Two items of each question with the same value: a draw of items instead of questions would be too sure."""
    of_questions = np.random.default_rng(0).normal(3, 1, 200)
    values, items = of_questions.repeat(2), np.arange(400).reshape(200, 2)
    found = ratings.estimate(lambda at: values[at].mean(), list(items))
    half = 1.96 * of_questions.std() / 200**0.5
    assert found["interval"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.03)


# ---- A run to export from --------------------------------------------------------------------------------------------

MARKUP = [  # what a model may write, and a sheet must show as it is
    "</script><img src=x onerror=\"document.title='broken in'\"> &lt;b&gt; &amp; <!-- ]]> @SHEET@",
    "one line\u2028another\nthird \u202eright to left\u202c שלום 👩‍🚀",
    "=HYPERLINK(\"http://example.com\")",
    "+1;=2+5\n-3\t=4, \"quoted\"",
]


def write_run(folder, texts, seeds=1, right=()):
    """A folder as eval.py leaves it; texts: for each question a rationale for each of KD, RL and CoT; right: the
    questions that everybody answers rightly."""
    numbers = range(len(texts))
    questions = [(f"Who wrote book {i}?", f"Book {i} was written by Ann {i}.", f"Ann {i}") for i in numbers]
    predictions = [f"Ann {i}" if i in right else "nobody" for i in numbers]
    answers = {}
    for source, rationales in zip(ratings.SOURCES, zip(*texts, strict=True), strict=True):
        for seed in range(1 if source == COT else seeds):
            of_seed = [f"{text} {seed}" if seed else text for text in rationales]
            answers[source, seed] = list(zip(predictions, of_seed, strict=True))
    harness.write_comparison(folder, questions, answers)
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
    """The sheet and the page are byte for byte the same with all sources, seeds and questions' ids exchanged."""
    items, folder = exported(tmp_path, plain(6), seeds=3)
    sheet = json.loads((tmp_path / "sheet" / "key.json").read_text())["sheet"]
    for turned in itertools.permutations(ratings.SOURCES):
        names = dict(zip(ratings.SOURCES, turned, strict=True))
        other = [i | {"question_id": "x", "seed": 9, "sources": [names[s] for s in i["sources"]]} for i in items]
        files = {"sheet.csv": ratings.as_csv(other), "sheet.html": ratings.as_page(other, sheet).encode()}
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_order_and_names_of_items_tell_nothing():
    """In 3,000 sheets each order of the sources, and each half of the letters, is as frequent as chance has it."""
    rows = [{"sources": [source]} for source in ratings.SOURCES]
    orders, early = Counter(), Counter()
    for _ in range(3000):
        sheet = ratings.blind(rows)
        orders[tuple(row["sources"][0] for row in sheet)] += 1
        early.update(row["sources"][0] for row in sheet if row["item"][0] < "l")  # 8 of the 19 letters
    assert len(orders) == 6 and all(abs(n - 500) < 5 * 20.4 for n in orders.values())  # standard deviations
    assert all(abs(n - 3000 * 8 / 19) < 5 * 27 for n in early.values())


def test_a_seed_draws_the_same_questions_and_rationales_of_one_seed(tmp_path):
    folder = write_run(tmp_path / "run", plain(30), seeds=4)
    once, again, other = (ratings.collect(folder, 10, seed) for seed in (7, 7, 8))
    assert once == again != other
    for row in once:
        if row["sources"] != [COT]:  # M_L's chain ran once, and stands for all seeds
            assert row["rationale"].endswith(f" {row['seed']}" if row["seed"] else ".")


def test_same_words_are_rated_once_and_count_for_each_source(tmp_path):
    items, _ = exported(tmp_path, [["Same.", "Same.", "Other."], ["A.", "A. ", "A."], ["A.", "B.", "C."]])
    expected = [[KD, RL], [COT], [KD, RL, COT], [KD], [RL], [COT]]
    assert sorted(sorted(item["sources"]) for item in items) == sorted(map(sorted, expected))


def test_questions_of_a_ppo_run_are_those_of_its_kd_run(tmp_path):
    kd, rl = write_run(tmp_path / "kd", plain(4)), write_run(tmp_path / "rl", plain(4))
    questions = str(kd / "data.jsonl")
    harness.write_run(kd, vars(train_kd.Settings(data=questions, test_data=questions)))
    harness.write_run(rl, vars(train_rl.Settings(kd=str(kd))))
    assert {row["question"] for row in ratings.collect(rl, 4, 0)} == {f"Who wrote book {i}?" for i in range(4)}


# ---- Import after export ---------------------------------------------------------------------------------------------


def test_ratings_come_back_as_they_were_given(tmp_path, quick, capsys):
    """Three spreadsheets (commas, semicolons, tabs), hostile texts, blanks: means and differences worked by hand."""
    items, folder = exported(tmp_path, [[f"{a} {i}" for a in MARKUP[:3]] for i in range(6)])
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
    assert re.search(r"fluency +\| 2\.33 .*\| 4\.33 .*\| 1\.33 ", markdown)
    assert re.search(r"fluency +\| \+2\.00 \[\+2\.00, \+2\.00\] +\| \+1\.00 \[", markdown)
    assert re.search(rf"fluency +\| {alpha_by_coincidences(rows):.2f} \[", markdown)


def test_metrics_and_right_answers_correlate_with_ratings_that_follow_them(tmp_path, quick):
    """A rater who knows the metric's ranks gets 1 for that aspect, one who turns them round −1; and one who gives 5 to
    what led to a right answer, and else 2, gets 1."""
    good = "Book 0 was written by Ann 0."
    items, _ = exported(tmp_path, [[good, f"{good} Cows were eating red Grass.", "Cows eat Grass."]] * 4, right=(1, 3))
    true = {i["item"]: aspects(i["rationale"], i["question"], i["context"])["factuality"] for i in items}
    ranks = sorted(set(true.values()))
    assert 3 <= len(ranks) <= 5
    for sign in (1, -1):
        found = imported(tmp_path, {item: [3 + sign * (ranks.index(v) - 2), *[""] * 7] for item, v in true.items()})
        assert found["Spearman"]["factuality"]["factuality"]["mean"] == pytest.approx(sign)
        assert found["columns"]["factuality"]["alpha, ordinal"] is None  # of one rater
    assert {item["question_id"] for item in items if item["right"]} == {"q1", "q3"}
    found = imported(tmp_path, {item["item"]: [5 if item["right"] else 2] * 8 for item in items})
    assert found["Spearman"]["EM"] == {"all eight": {"mean": pytest.approx(1), "interval": pytest.approx([1, 1])}}


# ---- What raters and spreadsheets do to files ------------------------------------------------------------------------

HEAD = "item," + ",".join(ASPECTS)
NAMES = ["bcdfg", "hjkmn"]


@pytest.mark.parametrize("content, sentence", [
    ("", "0 columns 'item'"),
    (HEAD.replace(",fluency", "") + "\nbcdfg,1,1,1,1,1,1,1\n", "0 columns 'fluency'"),
    (HEAD + "\nbcdfg,,,,,,,,\n", "no rating in it"),
    (HEAD + "\nzzzzz,1,1,1,1,1,1,1,1\n", "line 2: the key has no item 'zzzzz'"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,6\n", "line 2: readability is '6' (expected 1 to 5 or blank)"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,1\nhjkmn,2,,,,,,,\nbcdfg,1,1,1,1,1,1,1,1\n", "line 4: item bcdfg a second time"),
    (HEAD + "\nbcdfg,1,1,1,1,1,1,1,1,5\n", "line 2 has more cells than there are columns"),
    ((HEAD + "\nbcdfg,1,1,1,1,1,1,1,1\n").encode("utf-16"), "not UTF-8 text"),
    (HEAD + '\nbcdfg,"1,1,1,1,1,1,1,1\n', "no CSV"),
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
    (["export", "--run", "{here}/none"], "none is no run folder of eval.py"),
    (["export", "--run", "{here}/run", "--questions", "9", "--out", "{here}/new"], "has 3 questions, fewer than the 9"),
    (["export", "--run", "{here}/kd only", "--out", "{here}/new"], "no rationales of LM-guided, RL and CoT"),
    (["export", "--run", "{here}/unfinished", "--out", "{here}/new"], "has not ended: give its command once more"),
    (["export", "--run", "{here}/run", "--questions", "3", "--out", "{here}/sheet"], "ratings of its sheet need it"),
    (["import", "{here}/run/settings.json", "{here}/a.csv"], "no key that `ratings.py export` wrote"),
    (["import", "{key}", "{here}/none.csv"], "there is no such file"),
    (["import", "{key}", "{here}/a.csv", "{here}/a (1).csv"], "a second file of the rater a"),
])  # fmt: skip
def test_a_wrong_command_ends_in_one_sentence_and_replaces_nothing(tmp_path, capsys, command, sentence):
    items, folder = exported(tmp_path, plain(3))
    before = harness.files_of(tmp_path / "sheet")
    for name in ("a.csv", "a (1).csv"):
        (tmp_path / name).write_text(filled(folder / "sheet.csv", {item["item"]: [3] * 8 for item in items}))
    answers = (tmp_path / "run" / "answers.jsonl").read_text()
    (write_run(tmp_path / "kd only", plain(3)) / "answers.jsonl").write_text(answers.partition("\n")[0] + "\n")
    (write_run(tmp_path / "unfinished", plain(3)) / "results.json").unlink()
    capsys.readouterr()
    given = [part.format(here=tmp_path, key=tmp_path / "sheet" / "key.json") for part in command]
    assert call(*given) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: ") and said.count("\n") == 1
    assert harness.files_of(tmp_path / "sheet") == before


@pytest.mark.parametrize("text", ["=1", " -1", "+1;=2", "a\t=1", "a\n@b", '"=1', "＝1"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_cell_of_the_sheet_is_a_formula(text, delimiter):
    """In whichever locale it is opened: parted at commas as it should be, or wrongly at semicolons or tabs."""
    item = {"item": "bcdfg", "question": text, "context": "c", "rationale": text}
    sheet = io.StringIO(ratings.as_csv([item]).decode("utf-8-sig"), newline="")
    cells = [value for row in csv.reader(sheet, delimiter=delimiter) for value in row]
    assert not any(value.strip(' "')[:1] in tuple("=+-@＝") for value in cells)
    assert delimiter != "," or cells[-9].replace("'", "") == text  # nothing else has changed


# ---- The page --------------------------------------------------------------------------------------------------------

RATER = """<!doctype html><meta charset="utf-8"><iframe src="for_raters/sheet.html"></iframe><pre></pre><script>
const frame = document.querySelector("iframe");
const find = (selector) => frame.contentDocument.querySelector(selector);
const text = (selector) => find(selector).textContent;
const click = (selector) => find(selector).click();
const rate = (aspect, value) => click(`#${aspect} input[value="${value}"]`);
const type = (key) => find("body").dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const checked = () => frame.contentDocument.querySelectorAll("input:checked").length;
const begin = (name) => { find("#rater").value = name; click("#who button"); };
const reload = () => new Promise((done) => { frame.onload = done; frame.src += ""; });
const actions = async () => { @ACTIONS@ };
frame.onload = async () => {
  const result = await actions().catch(String);
  document.querySelector("pre").textContent = JSON.stringify(result);
};
</script>"""


def in_browser(sheet, actions):
    """What the JavaScript `actions` returns, which uses the sheet's page as a rater does."""
    page = sheet / "rater.html"
    page.write_text(RATER.replace("@ACTIONS@", actions))
    return harness.seen_in_chromium(page)


@harness.in_chromium
def test_rating_by_clicks_and_keys_survives_a_reload_and_comes_back_by_import(tmp_path, quick):
    items, _ = exported(tmp_path, plain(1))
    reloaded, end, other, file = in_browser(tmp_path / "sheet", f"""
        const aspects = {list(ASPECTS)};
        begin("ann");
        for (const aspect of aspects) rate(aspect, 5);
        await reload();
        const reloaded = [text("#where"), checked()];
        click("#next");
        for (const key of "44044444") type(key);  // the third line is left as "can't say"
        type("Enter");
        for (const aspect of aspects.slice(0, 3)) rate(aspect, 2);
        click("#next");
        const end = [text("#thanks"), text("#list")];
        let file;
        frame.contentWindow.URL.createObjectURL = (blob) => {{ file = blob; return "#"; }};
        click("#download");
        click("#back"); click("#help"); begin("bo");
        return [reloaded, end, checked(), await file.text()];""")
    assert reloaded == ["Reasoning 1 of 3", 8]
    assert end == ["2 of 3 are complete", "3"]
    assert other == 0  # what another rater of the same browser sees
    (tmp_path / "ann.csv").write_text(file)
    found = ratings.read_ratings(tmp_path / "ann.csv", [item["item"] for item in items])
    expected = [[5] * 8, [4, 4, NAN, 4, 4, 4, 4, 4], [2, 2, 2, NAN, NAN, NAN, NAN, NAN]]
    assert found == pytest.approx(np.array(expected), nan_ok=True)


@harness.in_chromium
def test_markup_in_texts_is_shown_as_text(tmp_path):
    items, _ = exported(tmp_path, [MARKUP[:3], MARKUP[1:]])
    shown, counts = in_browser(tmp_path / "sheet", f"""
        const shown = [];
        begin("ann");
        for (let i = 0; i < {len(items)}; i++) {{ shown.push(text("#rationale")); click("#next"); }}
        const page = frame.contentDocument;
        return [shown, [page.title, page.scripts.length, page.images.length]];""")
    assert shown == [item["rationale"] for item in items]
    assert counts == ["Rating sheet", 2, 0]
