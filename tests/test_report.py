"""lab/report.py: what its page says is what the run folders hold, and nothing in them can change the page itself."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from harness import call

import data
import eval as comparison
from rewards import ASPECTS

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

from lab import report  # noqa: E402

HOSTILE = "<script>alert('&')</script> $x_1$"
# question, gold answer, M_L's answers from the rationales of KD and of RL
ASKED = [
    ("Where was Ann born?", "Rome", "Rome", "Rome"),
    ("Where was Bob born?", "Oslo", "Rome", "Oslo"),
    (f"Who is {HOSTILE}?", "Cleo", HOSTILE, HOSTILE),
    ("Where was Dan born?", "Bern", "Bern", "Rome"),
    ("Where was Eve born?", "Lima", "Oslo", "Lima"),
    ("Where was Fay born?", "Kiev", "Oslo", "Lima"),
]
RATIONALES = {"LM-guided, KD": [f"Somebody was born in Rome. {HOSTILE}"] * 6,
              "LM-guided, RL": [f"{q.split()[2]} was born in {gold}." for q, gold, _, _ in ASKED]}  # fmt: skip


def write(folder, settings, results=None, **logs):
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    for name, rows in logs.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def kd_run(folder, seed=0, lr=1e-3, losses=((None, 2.0), (1.5, 1.0), (1.0, 1.25))):
    rows = [{"epoch": i, "held_out_loss": held} | ({"train_loss": train} if train else {})
            for i, (train, held) in enumerate(losses)]  # fmt: skip
    settings = {"target": "rationale", "lr": lr, "seed": seed, "out": str(folder), "data": "tiny", "test_data": "",
                "context": "gold", "test_limit": 6, "max_new_tokens": 64}  # fmt: skip
    return write(folder, settings, metrics=rows)


def rl_run(folder, seed=0, rewards=(5.0, 6.0, 7.0, 8.0), **last):
    row = dict.fromkeys(("kl", "length", "ended", "clip_fraction", "approx_kl", "explained_variance", *ASPECTS), 0.5)
    row |= {"R_task": 0.5, "entropy": 0.2, "ratio_max": 2.0}
    rows = [{"step": i + 1, **row, "reward": reward} for i, reward in enumerate(rewards)]
    rows[-1] |= last
    settings = {"ppo_epochs": 2, "eval_every": 2, "max_new_tokens": 64, "seed": seed, "test_limit": 6,
                "kd": f"{folder.parent}/kd{seed}"}  # fmt: skip
    return write(folder, settings, metrics=rows, dev=[{"step": 0, "reward": 5.0}, {"step": 4, "reward": 6.0}])


def comparison_run(folder, questions):
    """A folder as eval.py leaves it, by its own `summarise`, of two methods that answer ASKED."""
    rows = [{"id": str(i), "question": q, "context": f"{q.split()[2]} was born in {gold}.", "answer": gold}
            for i, (q, gold, _, _) in enumerate(ASKED)]  # fmt: skip
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, outcomes = data.load(questions), {}
    for method, texts in RATIONALES.items():
        answers = [row[2 if method.endswith("KD") else 3] for row in ASKED]
        ids = [example.id for example in examples]
        outcomes[method] = [[comparison.Answer(*each) for each in zip(ids, answers, texts, strict=True)]]
    costs = {method: {"seconds per question": 0.25, "tokens per question": 7.5} for method in outcomes}
    settings = {"data": str(questions), "split": "test", "limit": 6, "context": "gold", "samples": 5,
                "max_new_tokens": 64}  # fmt: skip
    answers = [{"method": method, "seed": 0, "answers": list(map(vars, outcome))}
               for method, (outcome,) in outcomes.items()]  # fmt: skip
    return write(folder, settings, comparison.summarise(examples, outcomes, costs), answers=answers)


def run(patch, *arguments):
    return call(patch, report.main, *arguments)


class Reader(HTMLParser):
    """What a browser would make of a page: tags with their attributes, texts, and tables by their id."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.tables = [], [], {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attributes)["id"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, text):
        self.texts.append(text)
        if self.tags and self.tags[-1][0] in ("td", "th"):
            self.rows[-1][-1] += text


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """Runs → the page that the command makes of them, without the time that pictures take."""
    monkeypatch.setattr(report.Picture, "svg", lambda picture, panel: "")
    monkeypatch.setattr(report.Picture, "png", lambda picture, colours: b"")

    def make(*runs):
        assert run(monkeypatch, *runs, "--out", tmp_path / "report") == 0
        return Reader((tmp_path / "report" / "report.html").read_text())

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report of everything, with names and texts that would like to be markup → (page, its folder, runs)."""
    place = tmp_path_factory.mktemp("runs")
    runs = [kd_run(place / "kd"), kd_run(place / "kd1", 1, losses=((None, 4.0), (2.5, 3.0))),
            kd_run(place / "<b>x", lr=1e-4), rl_run(place / "rl0"), rl_run(place / "rl1", 1, ratio_max=123.0),
            comparison_run(place / "<i>&$eval$", place / "q.jsonl")]  # fmt: skip
    cell = {"mean": 61.23456, "interval": [58.0, -64.5]}
    result = {"question": f"Is {HOSTILE} true?", "command": "python …", "seeds": 3, "cpu_minutes": 4.4, "tables": [
        {"title": HOSTILE, "columns": ["arm", "EM %", "R minus KD", "n"],
         "rows": [[HOSTILE, cell, 0.126, 7], ["other", None, None, 8]]}]}  # fmt: skip
    (place / "x.json").write_text(json.dumps(result))
    with pytest.MonkeyPatch.context() as patch:
        png = report.Picture.png  # drawn for one of the two grounds, which takes half the time
        patch.setattr(report.Picture, "png", lambda self, c: png(self, c) if c is report.DARK else b"")
        assert run(patch, *runs, place / "x.json", "--out", place / "report") == 0
    return (place / "report" / "report.html").read_text(), place / "report", runs


def test_the_numbers_of_the_page_are_those_of_results_json(whole):
    page, _, runs = whole
    head, *rows = Reader(page).tables["numbers"]
    methods = json.loads((runs[-1] / "results.json").read_text())["methods"]
    assert [row[0] for row in rows] == list(methods) and len(rows) == 2
    for name, *cells in rows:
        for column, cell in zip(head[1:5], cells, strict=False):
            measure = column.split()[0]
            told, (low, high) = methods[name][measure]["mean"], methods[name][measure]["interval"]
            scale, digits = (1, 2) if measure == "R_aspect" else (100, 1)
            found = [float(x.replace("−", "-")) for x in re.findall(r"[−\d.]+", cell)]
            assert found == [round(scale * x, digits) for x in (told, low, high)]
        assert cells[4:] == ["0.250", "7.5"]


def test_claims_are_judged_by_their_intervals(whole):
    def judged(low, high):
        methods = {"LM-guided, RL": {"EM": {"minus LM-guided, KD": {"mean": 0.0, "interval": [low, high]}}}}
        found = report.Found(None, "eval", {}, {"questions": 1, "seeds": 1, "methods": methods}, [], [])
        return Reader(report.claims(found)).tables["claims"][1][-1]

    assert (judged(0.01, 0.02), judged(-0.02, -0.01)) == ("above 0", "below 0")
    assert judged(-0.01, 0.02) == judged(0.0, 0.02) == "holds 0: not decided"
    # 2 of 6 right by KD and 3 of 6 by RL
    row = next(r for r in Reader(whole[0]).tables["claims"] if r[0] == "RL leads to more right answers than KD")
    assert row[2].startswith("+16.7 [")


def test_quality_curve_against_a_case_by_hand():
    scores = np.array([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    right = np.array([[0, 0, 1, 0, 1], [1, 1, 0, 1, 1]], bool)
    rows = report.by_quality(scores, right, parts=5)
    assert [row["score"] for row in rows] == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert [row["right"] for row in rows] == [0.0, 0.5, 1.0, 0.5, 1.0]
    assert [row["n"] for row in rows] == [2] * 5
    assert rows[0]["interval"] == [0.0, 0.0] and rows[4]["interval"] == [1.0, 1.0]
    assert rows[1]["interval"] == [0.0, 1.0]  # a draw may hold only the wrong one, or only the right one


def test_equal_scores_stay_in_one_part():
    scores = np.array([[1.0, 5, 5, 5, 5, 5, 5, 9]])
    right = np.array([[1, 1, 0, 0, 0, 0, 1, 1]], bool)
    parts = {row["score"]: (row["right"], row["n"]) for row in report.by_quality(scores, right, parts=4)}
    assert parts == {31 / 7: (3 / 7, 7), 9.0: (1.0, 1)}  # all borders lie at 5: what is at most 5, and what is above
    assert [row["n"] for row in report.by_quality(np.full((2, 3), 4.0), np.ones((2, 3), bool))] == [6]


def test_thick_line_is_the_mean_as_far_as_all_runs_go_and_the_lowest_point_is_marked():
    ax = Figure().add_subplot()
    runs = [[(0, 4.0), (1, 2.0), (2, 9.0)], [(0, 2.0), (1, 4.0)], []]
    report.curves("x", [("blue", runs)], kept="blue")(ax, report.LIGHT)
    drawn = [(line.get_linewidth(), line.get_xydata().tolist()) for line in ax.lines if line.get_marker() == "None"]
    assert max(drawn)[1] == [[0, 3.0], [1, 3.0]]
    assert [xy for width, xy in drawn if width < 1] == [[[0, 4.0], [1, 2.0], [2, 9.0]], [[0, 2.0], [1, 4.0]]]
    assert [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"] == [[[1, 2.0]], [[0, 2.0]]]


def test_runs_that_differ_only_in_seed_are_one_curve(whole):
    groups = report.by_setting([report.find(place) for place in whole[2] if "kd" in place.name or "x" in place.name])
    assert {name: [run.place.name for run in group] for name, group in groups.items()} == {
        "kd": ["kd", "kd1"], "<b>x": ["<b>x"]}  # fmt: skip
    assert "kd: 2 runs; <b>x: 1 run" in "".join(Reader(whole[0]).texts)


def test_every_group_of_runs_has_a_name_and_a_curve_of_its_own(tmp_path):
    places = [kd_run(tmp_path / f"{i}" / "kd", lr=10.0**-i) for i in range(8)]
    groups = report.by_setting([report.find(place) for place in places])
    assert [group[0].place for group in groups.values()] == places
    ax = Figure().add_subplot()
    report.curves("x", [(report.SERIES[i % 6], [[(0, i), (1, i)]]) for i in range(8)])(ax, report.LIGHT)
    assert [line.get_ydata()[0] for line in ax.lines] == list(range(8))


def test_nothing_of_data_models_or_names_becomes_markup(whole):
    reader = Reader(whole[0])
    assert not {tag for tag, _ in reader.tags} & {"script", "iframe", "object", "link", "form"}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    texts = "".join(reader.texts)
    assert texts.count("<script>alert('&')</script> $x_1$") >= 6  # question, rationale, prediction, experiment
    assert "<i>&$eval$: 6 questions" in texts and "<b>x: loss on the rationale" in texts


def test_page_loads_nothing_and_its_pictures_are_in_it(whole):
    page, folder, _ = whole
    reader = Reader(page)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/svg+xml;base64,")), (tag, attributes)
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", page))
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    method = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1]).decode()
    assert "http" not in method.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert sum(tag == "svg" for tag, _ in reader.tags) == 2 + 1 + 2 + 1 + 2 + 12 + 8  # panels of the seven pictures
    names = ["aspects", "differences", "kd", "quality", "results", "rl", "rl-aspects"]
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == sorted(f"{name}{ground}.png" for name in names for ground in ("", "-dark"))
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in folder.glob("*-dark.png"))
    unknown = set(re.findall(r"var\((--\w+)\)", page)) - set(re.findall(r"(--\w+):", page))
    assert not unknown and "#1f2328" not in page.split("</style>")[1]  # no colour is of one ground only


def test_samples_are_counted_and_shown_by_what_changed(whole):
    texts = "".join(Reader(whole[0]).texts)
    for title, count in (("Wrong before, right after", 2), ("Right before, wrong after", 1),
                         ("Right before and after", 1), ("Wrong before and after", 2)):  # fmt: skip
        assert f"{title}: {count} of 6" in texts
    assert "Bob was born in Oslo.M_L: Oslo, right ✓" in texts and "M_L: Rome, wrong ✗" in texts


def test_warnings_of_ppo_are_named_with_run_and_step(whole):
    rows = Reader(whole[0]).tables["signs"][1:]
    assert [row[:2] for row in rows if "a ratio of 123" in row[2]] == [[str(whole[2][4]), "4"]]


def test_failures_that_a_table_or_a_run_shows_are_named(tmp_path, page_of):
    """METHOD.md's four signatures, each provoked; the rules themselves are proved in test_experiments.py."""
    folder = comparison_run(tmp_path / "eval", tmp_path / "q.jsonl")
    results = json.loads((folder / "results.json").read_text())
    kd, rl = (results["methods"][f"LM-guided, {name}"] for name in ("KD", "RL"))
    results["methods"]["CoT"] = json.loads(json.dumps(kd))
    kd["EM"]["minus CoT"] = {"mean": -0.25, "interval": [-0.5, -0.125]}
    kd["seconds per question"] = 1.0  # CoT has 0.25
    rl["R_aspect"]["minus LM-guided, KD"] = {"mean": 2.0, "interval": [1.0, 3.0]}
    rl["EM"]["minus LM-guided, KD"] = {"mean": 0.0, "interval": [-0.5, 0.5]}
    (folder / "results.json").write_text(json.dumps(results))
    unsteady = rl_run(tmp_path / "rl", rewards=[5.0, 6.0] * 10)
    found = page_of(folder, unsteady).tables["signs"][1:]
    for place, words in ((folder, "low accuracy despite high rationale scores: against KD, LM-guided, RL"),
                         (folder, "LM-guided worse than CoT: LM-guided, KD by 25.0 EM"),
                         (folder, "long inference times: LM-guided, KD takes 4.0 times"),
                         (unsteady, "high variance of rewards")):  # fmt: skip
        assert [row[0] for row in found if words in row[2]] == [str(place)], words


def test_experiments_are_told_as_their_files_have_them(whole):
    rows = Reader(whole[0]).tables[""]
    assert rows == [["arm", "EM\N{NO-BREAK SPACE}%", "R minus KD", "n"],
                    [HOSTILE, "61.2 [58.0,\N{NO-BREAK SPACE}−64.5]", "+0.13", "7"], ["other", "", "", "8"]]  # fmt: skip


@pytest.mark.parametrize("train", [kd_run, rl_run])
def test_a_training_that_has_ended_brings_its_own_table(tmp_path, page_of, train):
    folder = train(tmp_path / "a")
    (comparison_run(tmp_path / "table", tmp_path / "q.jsonl") / "results.json").rename(folder / "results.json")
    assert [row[0] for row in page_of(folder).tables["numbers"][1:]] == list(RATIONALES)


@pytest.mark.parametrize("kind", ["kd", "rl", "eval"])
def test_a_single_run_gives_a_page_that_says_what_to_run_for_the_rest(tmp_path, page_of, kind):
    make = {"kd": lambda place: kd_run(place, losses=((None, 2.0),)), "rl": lambda place: rl_run(place, rewards=[5.0]),
            "eval": lambda place: comparison_run(place, tmp_path / "q.jsonl")}  # fmt: skip
    texts = "".join(page_of(make[kind](tmp_path / "a")).texts)
    said = {"kd": "give the folder of a run of train_kd.py", "rl": "give the folder of a run of train_rl.py",
            "eval": "python eval.py makes one"}  # fmt: skip
    assert {name for name, sentence in said.items() if sentence in texts} == set(said) - {kind}


def test_a_comparison_whose_data_have_changed_keeps_its_table(tmp_path, page_of):
    questions = tmp_path / "q.jsonl"
    folder = comparison_run(tmp_path / "a", questions)
    reordered = "".join(reversed(questions.read_text().splitlines(True)))
    for change, sentence in ((lambda: questions.write_text(reordered), "are to other questions"),
                             (questions.unlink, "there is no such file")):  # fmt: skip
        change()
        reader = page_of(folder)
        assert sentence in "".join(reader.texts) and len(reader.tables["numbers"]) == 3


COMPARISON = '{"data": "tiny", "split": "test", "limit": 5, "context": "gold"}'


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"settings.json": '{"editor.fontSize": 12}'}, "is neither a run folder"),
        ({"settings.json": COMPARISON, "results.json": "{}"}, "holds no table of methods"),
        ({"settings.json": COMPARISON, "results.json": '{"methods": {}}'}, "no run of this version writes"),
        ({"settings.json": COMPARISON, "metrics.jsonl": '{"epoch": 0}\noops\n'}, "line 2: not JSON"),
        ({"x.json": "{}"}, "x.json is no result of lab/experiments.py"),
    ],
)
def test_what_is_no_run_ends_in_one_sentence(tmp_path, monkeypatch, capsys, files, sentence):
    (tmp_path / "a").mkdir()
    for name, text in files.items():
        (tmp_path / "a" / name).write_text(text)
    given = tmp_path / "a" / "x.json" if "x.json" in files else tmp_path / "a"
    assert run(monkeypatch, given, "--out", tmp_path / "report") == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "report").exists()


def test_without_matplotlib_one_sentence_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "matplotlib", None)
    assert run(monkeypatch, tmp_path) == 2
    assert "pip install -r requirements-lab.txt" in capsys.readouterr().err
