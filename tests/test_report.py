"""lab/report.py: what its page says is what the run folders hold, and nothing in them can change the page itself."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from harness import call, write_comparison, write_run

import data
import eval as comparison
from rewards import ASPECTS

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

from lab import report  # noqa: E402

MARKUP = "<script>alert('&')</script> $x_1$"
# question, gold answer, M_L's answers from the rationales of KD and of RL
ASKED = [
    ("Where was Ann born?", "Rome", "Rome", "Rome"),
    ("Where was Bob born?", "Oslo", "Rome", "Oslo"),
    (f"Who is {MARKUP}?", "Cleo", MARKUP, MARKUP),
    ("Where was Dan born?", "Bern", "Bern", "Rome"),
    ("Where was Eve born?", "Lima", "Oslo", "Lima"),
    ("Where was Fay born?", "Kiev", "Oslo", "Lima"),
]


def kd_run(folder, seed=0, lr=1e-3):
    settings = {"target": "rationale", "lr": lr, "seed": seed, "out": str(folder), "data": "tiny", "test_data": "",
                "context": "gold", "test_limit": 6, "max_new_tokens": 64}  # fmt: skip
    losses = [{"epoch": 0, "held_out_loss": 2.0}, {"epoch": 1, "held_out_loss": 1.0, "train_loss": 1.5}]
    return write_run(folder, settings, metrics=losses)


def rl_run(folder, seed=0, rewards=(5.0, 6.0, 7.0, 8.0), **last):
    settings = {"ppo_epochs": 2, "eval_every": 2, "max_new_tokens": 64, "seed": seed, "test_limit": 6,
                "kd": f"{folder.parent}/kd{seed}"}  # fmt: skip
    row = dict.fromkeys(("kl", "length", "ended", "clip_fraction", "approx_kl", "explained_variance", *ASPECTS), 0.5)
    row |= {"R_task": 0.5, "entropy": 0.2, "ratio_max": 2.0}
    rows = [{"step": i + 1, **row, "reward": reward} for i, reward in enumerate(rewards)]
    rows[-1] |= last
    return write_run(folder, settings, metrics=rows, dev=[{"step": 0, "reward": 5.0}, {"step": 4, "reward": 6.0}])


def comparison_run(folder):
    """A comparison of KD and RL on ASKED, with the table that eval.py's own `summarise` makes of it."""
    born = [f"{question.split()[2]} was born in {gold}." for question, gold, _, _ in ASKED]
    answers = {
        "LM-guided, KD": [(kd, f"Somebody was born in Rome. {MARKUP}") for _, _, kd, _ in ASKED],
        "LM-guided, RL": [(rl, text) for (_, _, _, rl), text in zip(ASKED, born, strict=True)],
    }
    questions = [(question, text, gold) for (question, gold, _, _), text in zip(ASKED, born, strict=True)]
    write_comparison(folder, questions, {(method, 0): pairs for method, pairs in answers.items()})
    runs = {}
    for method, pairs in answers.items():
        runs[method] = [[comparison.Answer(str(i), *pair) for i, pair in enumerate(pairs)]]
    costs = {method: {"seconds per question": 0.25, "tokens per question": 7.5} for method in answers}
    table = comparison.summarise(data.load(folder / "data.jsonl"), runs, costs)
    (folder / "results.json").write_text(json.dumps(table))
    return folder


def run(patch, *arguments):
    return call(patch, report.main, *arguments)


class Reader(HTMLParser):
    """What a browser would make of a page: its text, tags with their attributes, and tables by their id."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.tables = "", [], {}
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
        self.text += text
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
    """A report of everything, with names and texts that would like to be markup → (its folder, page as text, read)."""
    place = tmp_path_factory.mktemp("runs")
    runs = [kd_run(place / "kd"), kd_run(place / "kd1", seed=1), kd_run(place / "<b>x", lr=1e-4),
            rl_run(place / "rl0"), rl_run(place / "rl1", seed=1), comparison_run(place / "<i>&$eval$")]  # fmt: skip
    cell = {"mean": 61.23456, "interval": [58.0, -64.5]}
    table = {"title": MARKUP, "columns": ["arm", "EM %", "R minus KD", "n"],
             "rows": [[MARKUP, cell, 0.126, 7], ["other", None, None, 8]]}  # fmt: skip
    result = {"question": f"Is {MARKUP} true?", "command": "python …", "seeds": 3, "cpu_minutes": 4.4}
    (place / "x.json").write_text(json.dumps(result | {"tables": [table]}))
    with pytest.MonkeyPatch.context() as patch:
        png = report.Picture.png  # drawn for one of the two grounds, which takes half the time
        patch.setattr(report.Picture, "png", lambda self, c: png(self, c) if c is report.DARK else b"")
        assert run(patch, *runs, place / "x.json", "--out", place / "report") == 0
    page = (place / "report" / "report.html").read_text()
    return place / "report", page, Reader(page)


def test_the_numbers_of_the_page_are_those_of_results_json(tmp_path, page_of):
    folder = comparison_run(tmp_path / "eval")
    head, *rows = page_of(folder).tables["numbers"]
    methods = json.loads((folder / "results.json").read_text())["methods"]
    assert [row[0] for row in rows] == list(methods) and len(rows) == 2
    for name, *cells in rows:
        for column, cell in zip(head[1:5], cells, strict=False):
            measure = column.split()[0]
            told, (low, high) = methods[name][measure]["mean"], methods[name][measure]["interval"]
            scale, digits = (1, 2) if measure == "R_aspect" else (100, 1)
            found = [float(x.replace("−", "-")) for x in re.findall(r"[−\d.]+", cell)]
            assert found == [round(scale * x, digits) for x in (told, low, high)]
        assert cells[4:] == ["0.250", "7.5"]


@pytest.mark.parametrize("interval, verdict", [
    ((0.01, 0.02), "above 0"), ((-0.02, -0.01), "below 0"),
    ((-0.01, 0.02), "holds 0: not decided"), ((0.0, 0.02), "holds 0: not decided"),
])  # fmt: skip
def test_claims_are_judged_by_their_intervals(interval, verdict):
    gain = {"minus LM-guided, KD": {"mean": 0.015, "interval": interval}}
    results = {"questions": 1, "seeds": 1, "methods": {"LM-guided, RL": {"EM": gain}}}
    found = report.Found(None, "eval", {}, results, [], [])
    (row,) = Reader(report.claims(found)).tables["claims"][1:]
    assert row[0] == "RL leads to more right answers than KD"
    assert row[2].startswith("+1.5 [") and row[3] == verdict


def test_quality_curve_against_cases_by_hand():
    scores = np.array([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    right = np.array([[0, 0, 1, 0, 1], [1, 1, 0, 1, 1]], bool)
    rows = report.by_quality(scores, right, parts=5)
    assert [(row["score"], row["right"], row["n"]) for row in rows] == [
        (1.5, 0.0, 2), (3.5, 0.5, 2), (5.5, 1.0, 2), (7.5, 0.5, 2), (9.5, 1.0, 2)]  # fmt: skip
    assert rows[0]["interval"] == [0.0, 0.0]
    assert rows[1]["interval"] == [0.0, 1.0]  # a draw may hold only the wrong one, or only the right one
    equal = np.array([[1.0, 5, 5, 5, 5, 5, 5, 9]])  # all borders lie at 5: what is at most 5, and what is above
    right = np.array([[1, 1, 0, 0, 0, 0, 1, 1]], bool)
    rows = report.by_quality(equal, right, parts=4)
    assert [(row["score"], row["right"], row["n"]) for row in rows] == [(31 / 7, 3 / 7, 7), (9.0, 1.0, 1)]


def test_thick_line_is_the_mean_as_far_as_all_runs_go_and_the_lowest_point_is_marked():
    ax = Figure().add_subplot()
    runs = [[(0, 4.0), (1, 2.0), (2, 9.0)], [(0, 2.0), (1, 4.0)], []]
    report.curves("x", [("blue", runs)], kept="blue")(ax, report.LIGHT)
    drawn = {"thin": [], "thick": [], "mark": []}
    for line in ax.lines:
        kind = "mark" if line.get_marker() == "o" else "thin" if line.get_linewidth() < 1 else "thick"
        drawn[kind].append([tuple(point) for point in line.get_xydata().tolist()])
    assert drawn == {"thin": runs[:2], "thick": [[(0, 3.0), (1, 3.0)]], "mark": [[(1, 2.0)], [(0, 2.0)]]}


def test_runs_that_differ_only_in_seed_are_one_curve_and_every_group_has_a_name_of_its_own(tmp_path):
    seeds = [kd_run(tmp_path / "a" / "kd"), kd_run(tmp_path / "a" / "kd1", seed=1)]
    others = [kd_run(tmp_path / f"{i}" / "kd", lr=10.0**-i) for i in (4, 5, 6)]
    groups = report.by_setting([report.find(place) for place in seeds + others])
    assert [[run.place for run in group] for group in groups.values()] == [seeds, *([place] for place in others)]


def test_nothing_of_data_models_or_names_becomes_markup(whole):
    _, _, reader = whole
    assert reader.text.count(MARKUP) >= 6  # question, rationale, prediction, experiment
    assert "<i>&$eval$: 6 questions" in reader.text and "<b>x: loss on the rationale" in reader.text
    assert not {tag for tag, _ in reader.tags} & {"script", "iframe", "object", "link", "form"}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]


def test_page_loads_nothing_and_its_pictures_are_in_it_and_beside_it(whole):
    folder, page, reader = whole
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    for _, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/svg+xml;base64,"))
    panels = {"results": 2, "differences": 1, "aspects": 2, "quality": 1, "kd": 2, "rl": 12, "rl-aspects": 8}
    assert [tag for tag, _ in reader.tags].count("svg") == sum(panels.values())
    assert {path.stem for path in folder.glob("*.png")} == {*panels, *(f"{name}-dark" for name in panels)}


def test_samples_are_counted_and_shown_by_what_changed(whole):
    text = whole[2].text
    assert "Wrong before, right after: 2 of 6" in text and "Right before, wrong after: 1 of 6" in text
    assert "Right before and after: 1 of 6" in text and "Wrong before and after: 2 of 6" in text
    assert "Bob was born in Oslo.M_L: Oslo, right ✓" in text and "M_L: Rome, wrong ✗" in text


def test_signs_of_failure_are_named_with_their_run(tmp_path, page_of):
    """One of a table, one of a whole run, one while PPO runs; the rules are proved in test_experiments.py."""
    folder = comparison_run(tmp_path / "eval")
    results = json.loads((folder / "results.json").read_text())
    results["methods"]["LM-guided, KD"]["EM"]["minus CoT"] = {"mean": -0.25, "interval": [-0.5, -0.125]}
    (folder / "results.json").write_text(json.dumps(results))
    unsteady = rl_run(tmp_path / "rl", rewards=[5.0, 6.0] * 10)
    hacked = rl_run(tmp_path / "rl1", seed=1, ratio_max=123.0)
    signs = page_of(folder, unsteady, hacked).tables["signs"][1:]
    for place, step, words in (
        (folder, "end", "LM-guided worse than CoT: LM-guided, KD by 25.0 EM"),
        (unsteady, "end", "high variance of rewards"),
        (hacked, "4", "a ratio of 123"),
    ):
        assert [row[:2] for row in signs if words in row[2]] == [[str(place), step]], words


def test_experiments_are_told_as_their_files_have_them(whole):
    rows = whole[2].tables[""]
    assert rows == [["arm", "EM\N{NO-BREAK SPACE}%", "R minus KD", "n"],
                    [MARKUP, "61.2 [58.0,\N{NO-BREAK SPACE}−64.5]", "+0.13", "7"], ["other", "", "", "8"]]  # fmt: skip


@pytest.mark.parametrize("make, missing", [
    (kd_run, ["python eval.py makes one", "give the folder of a run of train_rl.py"]),
    (rl_run, ["python eval.py makes one", "give the folder of a run of train_kd.py"]),
    (comparison_run, ["give the folder of a run of train_kd.py", "give the folder of a run of train_rl.py"]),
])  # fmt: skip
def test_a_single_run_gives_a_page_that_says_what_to_run_for_the_rest(tmp_path, page_of, make, missing):
    text = page_of(make(tmp_path / "a")).text
    assert text.count("Left out: ") == 2 and all(sentence in text for sentence in missing)


@pytest.mark.parametrize("train", [kd_run, rl_run])
def test_a_training_that_has_ended_brings_its_own_table(tmp_path, page_of, train):
    folder = train(tmp_path / "a")
    (comparison_run(tmp_path / "table") / "results.json").rename(folder / "results.json")
    assert [row[0] for row in page_of(folder).tables["numbers"][1:]] == ["LM-guided, KD", "LM-guided, RL"]


def test_a_comparison_whose_data_have_changed_keeps_its_table(tmp_path, page_of):
    folder = comparison_run(tmp_path / "a")
    questions = folder / "data.jsonl"
    questions.write_text("".join(reversed(questions.read_text().splitlines(True))))
    page = page_of(folder)
    assert "are to other questions" in page.text and len(page.tables["numbers"]) == 3
    questions.unlink()
    page = page_of(folder)
    assert "there is no such file" in page.text and len(page.tables["numbers"]) == 3


@pytest.mark.parametrize("file, content, sentence", [
    ("settings.json", '{"editor.fontSize": 12}', "is neither a run folder"),
    ("results.json", "{}", "holds no table of methods"),
    ("results.json", '{"methods": {}}', "no run of this version writes"),
    ("metrics.jsonl", '{"epoch": 0}\noops\n', "line 2: not JSON"),
])  # fmt: skip
def test_a_damaged_folder_ends_in_one_sentence(tmp_path, monkeypatch, capsys, file, content, sentence):
    folder = comparison_run(tmp_path / "a")
    (folder / file).write_text(content)
    assert run(monkeypatch, folder, "--out", tmp_path / "report") == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "report").exists()


def test_without_matplotlib_one_sentence_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "matplotlib", None)
    assert run(monkeypatch, tmp_path) == 2
    assert "pip install -r requirements-lab.txt" in capsys.readouterr().err
