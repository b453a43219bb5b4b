"""lab/report.py: what its page says is what the run folders hold, and nothing in them can change the page itself.

The run folders are made by the three scripts, with a random M_S and a scripted M_L, or are written by hand.
"""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from harness import (
    ScriptedLM,
    call,
    example_of,
    in_chromium,
    lines,
    run_script,
    save_random_small,
    seen_in_chromium,
    write_run,
)

import data
import eval as evaluation
import rewards
import train_kd
import train_rl
from eval import number, with_interval
from lab import report, svg
from plumbing.markup import split
from tiny import pretrain

SIZES = {"train": 16, "dev": 8, "test": 4}
HOSTILE = "<script>alert('&')</script> \u202egnp.exe\" onload='x' @KD@ {x} \ud800 \x00"
SHOWN = HOSTILE.replace("\ud800", "?").replace("\x00", "\ufffd")  # what a browser makes of it


# ---- Reading a page --------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """What a browser would make of a page: its text and the part of it that is not isolated, its tags, its tables, and
    its questions, each with its rows."""

    def __init__(self, page):
        super().__init__()
        self.tree, self.closed = ElementTree.TreeBuilder(), None
        self.feed(page)
        root = self.tree.close()
        assert self.closed is root  # every tag is closed
        self.tags = [(element.tag, element.attrib) for element in root.iter()]
        self.text = text_of(root)
        self.questions = list(map(text_of, root.iter("h4")))
        self.looks = [list(map(text_of, rows.findall("li"))) for rows in root.iter("ol")]
        self.tables = [[list(map(text_of, row)) for row in table.iter("tr")] for table in root.iter("table")]
        for isolated in (*root.iter("bdi"), *root.iter("text")):
            isolated.text = ""
        self.bare = text_of(root)

    def handle_starttag(self, tag, attributes):
        self.tree.start(tag, dict(attributes))
        if tag == "meta":  # the only one that has no end
            self.tree.end(tag)

    def handle_endtag(self, tag):
        self.closed = self.tree.end(tag)
        assert self.closed.tag == tag

    def handle_data(self, text):
        self.tree.data(text.replace("\x00", "\ufffd"))

    def table(self, first_cell):
        (found,) = [table for table in self.tables if table[0][0] == first_cell]
        return found


def text_of(element):
    return "".join(element.itertext())


def run(patch, *arguments):
    return call(patch, report.main, *arguments)


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """Run folders → the page that the command makes of them."""

    def make(*places):
        assert run(monkeypatch, *places, "--out", tmp_path / "new" / "page.html") == 0
        return Reader((tmp_path / "new" / "page.html").read_text())

    return make


# ---- Run folders -----------------------------------------------------------------------------------------------------


EXAMPLES = [example for split, size in SIZES.items() for example in data.load("tiny", split, size)]


def large_says(prompt, _=0):
    """M_L as a script: its chains of thought are good, its answers from rationales of an even number of words, too."""
    example = example_of(prompt, EXAMPLES)
    if prompt.endswith("step by step."):
        return f"{' '.join(example.supporting_sentences)} So the answer is {example.answer}."
    rationale = prompt.rpartition("Reasoning: ")[2].removesuffix("\nAnswer:")
    return example.answer if len(rationale.split()) % 2 == 0 else f"{example.answer} perhaps"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What train_kd.py, train_rl.py and eval.py leave."""
    place = tmp_path_factory.mktemp("runs")
    save_random_small(place / "small", pretrain.make_tokenizer())
    kd, rl, compared = place / "kd", place / "rl", place / "eval"
    pair = {"--small": place / "small", "--large": "teacher", "--samples": 2, "--max-new-tokens": 60}
    few = {"--epochs": 2, "--batch-size": 4, "--lr": 3e-3, "--test-limit": 4}
    ppo = {"--samples": 2, "--max-new-tokens": 12, "--steps": 4, "--questions": 4, "--samples-per-question": 2,
           "--eval-every": 2, "--test-limit": 4}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for script, flags in (
            (train_kd, pair | few | {"--out": kd}),
            (train_rl, ppo | {"--kd": kd, "--out": rl}),
            (evaluation, pair | {"--kd": kd, "--rl": rl, "--direct": "none", "--limit": 4, "--out": compared}),
        ):
            assert run_script(patch, script, SIZES, lambda **_: ScriptedLM(large_says), flags, []) == 0
    return kd, rl, compared


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """The page of all three, and the folder of its pictures."""
    out = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *folders, "--out", out / "page.html", "--pictures", out / "pictures") == 0
    return Reader((out / "page.html").read_text()), out / "pictures"


BORN = {"Ann Lie": "Rome", "Bob Ray": "Oslo", "Cy Dow": "Lima", "Di Fox": "Bern", "Ed Orr": "Kyiv"}
HOTPOTQA = []
for name, town in BORN.items():
    context = [[name, [f"{name} was born in {town}.", f" {name} is a singer."]], ["X", ["X."]]]
    HOTPOTQA.append({"_id": f"q{len(HOTPOTQA)}", "question": f"Where was {name} born?", "answer": town,
                     "context": context, "supporting_facts": [[name, 0]]})  # fmt: skip
# M_L's answers from rationales of each M_S, to these five questions
ANSWERS = {report.UNTRAINED: ("Rome", "x", "x", "Bern", "x"), report.KD: ("Rome", "x", "Lima", "Bern", "x"),
           report.RL: ("Rome", "x", "Lima", "x", "Kyiv")}  # fmt: skip


def hotpotqa_run(folder, texts=("He was born in Mars.", "Ann Lie was born in Rome.", "")):
    """A comparison on records of HotpotQA's form, with the table that eval.py's `summarise` makes of it."""
    folder.mkdir(parents=True)
    file = folder / "records.json"
    file.write_text(json.dumps(HOTPOTQA))
    rows = {}
    for (method, predictions), text in zip(ANSWERS.items(), texts, strict=True):
        answers = [vars(evaluation.Answer(f"q{i}", said, text)) for i, said in enumerate(predictions)]
        rows[method] = [{"method": method, "seed": 0, "answers": answers, **dict.fromkeys(evaluation.COSTS, 1)}]
    (folder / "results.json").write_text(json.dumps(evaluation.summarise(data.load(file), rows)))
    settings = {"data": str(file), "split": "test", "limit": 9, "context": "gold", "kd": HOSTILE, "max_new_tokens": 64}
    return write_run(folder, settings, answers=sum(rows.values(), []))


# ---- What the page says ----------------------------------------------------------------------------------------------


def test_the_page_has_its_parts_in_order_and_says_what_was_trained_on_what(whole):
    text = whole[0].text
    parts = ("What was trained on what", "What M_S learned from", "Distillation, epoch by epoch", "PPO, step by step",
             "Signs of failure", "The methods side by side", "The same six questions")  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and "Left out" not in text
    assert "Data: tiny, at most 8000 training questions, read at most 2 times, 4 at once." in text
    assert "4 times it writes 2 rationales for each of 4 questions" in text
    assert "So far: 2 epochs. It has ended." in text and "So far: 4 steps. It has ended." in text
    assert ["--beta", "0.05", "KL coefficient"] in [row for table in whole[0].tables for row in table]
    assert len(whole[0].looks) >= 3 and all("PPO, step 4" in rows[-1] for rows in whole[0].looks)


def test_the_counts_of_the_filter_are_shares_of_all_or_of_what_was_kept(folders, tmp_path, page_of):
    kd = write_run(tmp_path / "kd", json.loads((folders[0] / "settings.json").read_text()))
    counts = [{"asked": 1600, "kept": 800, "kept: verbatim": 200, "wrong answer": 400}, {"asked": 0}]
    (kd / "filter.json").write_text(json.dumps(counts))
    assert page_of(kd).table("rationales of M_L")[1:] == [
        ["asked", "1,600 (100 %)", "0 (0 %)"], ["kept", "800 (50 %)", "0 (0 %)"],
        ["kept: verbatim", "200 (25 %)", "0 (0 %)"], ["wrong answer", "400 (25 %)", "0 (0 %)"]]  # fmt: skip


def test_the_numbers_of_the_page_and_of_its_picture_are_those_of_the_table(whole, folders, monkeypatch):
    methods = json.loads((folders[2] / "results.json").read_text())["methods"]
    assert any(row["EM"]["mean"] < row["F1"]["mean"] < row["AI"]["mean"] for row in methods.values())  # they differ
    drawn = []
    monkeypatch.setattr(report, "dots", lambda title, cells: drawn.append(cells) or [])
    report.results_picture(report.find(folders[2]), "results")
    head, *rows = whole[0].table("method")
    assert [row[0] for row in rows] == list(drawn[0]) == list(methods) and len(rows) > 9
    assert list(drawn[1]) == [name for name, row in methods.items() if "R_aspect" in row]
    for name, *cells in rows:
        row, cell = methods[name], dict(zip(head[1:], cells, strict=True))
        em, quality = row["EM"], row.get("R_aspect")
        expected = {
            "EM [95 %]": with_interval(em, "EM"),
            "F1": number(row["F1"]["mean"], "F1"),
            "AI": number(row["AI"]["mean"], "AI"),
            "quality [95 %]": with_interval(quality, "R_aspect"),
            "EM minus CoT": with_interval(em.get("minus CoT"), "EM", "+").replace("-", "−"),
        }
        assert {column: cell[column] for column in expected} == expected
        assert drawn[0][name][1:] == tuple(100 * x for x in (em["mean"], *em["interval"]))
        if quality:
            assert drawn[1][name][1:] == (quality["mean"], *quality["interval"])


def test_the_story_of_a_training_by_hand(folders, tmp_path, page_of):
    """All eight held-out questions have the same text at a time; PPO begins with epoch 1, whose loss is the lowest."""
    examples = data.load("tiny", "dev", 8)

    def look(text, right, **when):
        answers = []
        for i, example in enumerate(examples):
            answers.append({"id": example.id, "rationale": text, "prediction": example.answer if i in right else "?"})
        return when | {"answers": answers}

    kd, rl = [json.loads((folder / "settings.json").read_text()) for folder in folders[:2]]
    losses = [{"epoch": epoch, "held_out_loss": loss} for epoch, loss in enumerate((3.0, 1.0, 2.0))]
    texts = [look("One.", (3, 4, 5), epoch=0), look("Two.", (3, 4, 5), epoch=1), look("Worse.", (), epoch=2)]
    write_run(tmp_path / "kd", kd, metrics=losses, texts=texts)
    texts = [look("Two.", (3, 4, 5), step=0), look("Two.", (3, 4, 5), step=2), look("Two.", range(6), step=4)]
    page = page_of(write_run(tmp_path / "rl", rl | {"kd": str(tmp_path / "kd")}, texts=texts))
    assert "Wrong, then right: 3. Right, then wrong: 0. Right, and stays so: 3. Wrong, and stays so: 2." in page.text
    assert page.questions == [examples[i].question for i in (3, 4, 6, 7, 0, 1)]
    for i, rows in zip((3, 4, 6, 7, 0, 1), page.looks, strict=True):
        right = f"M_L answers {examples[i].answer} ✓ right"
        says = right if i in (3, 4) else "M_L answers ? ✗ wrong"
        expected = [f"before training· One. {says}", f"after distillation to PPO, step 4· Two. {says}"]
        if i in (0, 1):  # its answer is another one at the last step
            expected[1:] = [f"after distillation to PPO, step 2· Two. {says}", f"PPO, step 4· Two. {right}"]
        assert [row.partition("quality")[0] for row in rows] == expected


def test_a_comparison_on_records_of_hotpotqas_form_by_hand(tmp_path, page_of):
    page = page_of(hotpotqa_run(tmp_path / "a"))
    assert "Wrong, then right: 2. Right, then wrong: 1. Right, and stays so: 1. Wrong, and stays so: 1" in page.text
    assert re.findall(r"M_L's answer: (.*?)Where was (\w+)", page.text) == [
        ("right, and stays so", "Ann"), ("wrong, and stays so", "Bob"), ("wrong, then right", "Cy"),
        ("right, then wrong", "Di")]  # fmt: skip
    untrained, kd, rl = page.looks[0]
    assert "✗ He was born in Mars." in untrained and "M_L answers Rome ✓ right" in untrained
    assert kd.startswith("LM-guided, KD") and "✓ Ann Lie was born in Rome." in kd and "(nothing)" in rl
    assert "Ann Lie was born in Rome. Ann Lie is a singer." in page.text

    bars = [attributes["style"] for tag, attributes in page.tags if tag == "i" and "style" in attributes]
    (ann, *_) = data.load(tmp_path / "a" / "records.json")
    scores = rewards.quality("Ann Lie was born in Rome.", ann, "Rome")
    assert bars[8:16] == [f"width: {100 * scores[name]:.0f}%" for name in rewards.ASPECTS]


# ---- Signs before sentences ------------------------------------------------------------------------------------------

PARAGRAPH = data.Paragraph("", ("Ann Lie was born in Rome.", "Bob Ray is a singer."))


@pytest.mark.parametrize("sentence, kind, sign", [
    ("Ann Lie was born in Rome.", "full", "✓"),
    ("Ann Ray was born in Rome.", "part", "≈"),  # half of a name
    ("Ann Lie was born in Oslo.", "no", "✗"),
    ("So the answer is Rome.", "none", "·"),
    ("Where was Ann Lie born?", "none", "·"),
])  # fmt: skip
def test_the_sign_of_a_sentence_by_hand(sentence, kind, sign):
    example = data.Example("i", "Where was Ann Lie born?", (PARAGRAPH,), "Rome")
    expected = f'<span class="sentence {kind}"><b>{sign}</b> <bdi>{sentence}</bdi></span> '
    assert report.marked(sentence, example) == expected
    looping = expected.replace("</bdi>", "</bdi> × 3")
    assert report.marked(f"{sentence} " * 3 + "Oslo. " + sentence, example).count(looping) == 1


def test_the_signs_are_those_that_factuality_is_made_of():
    """Halfway between the mean and the least of the supports, which the page takes sentence by sentence."""
    examples = data.load("tiny", "dev", 30)
    for example, other in zip(examples, examples[1:], strict=False):
        rationale = " ".join(example.supporting_sentences + other.supporting_sentences[:1] + ["So it is Ann."])
        supports = [report.support_of(sentence, example) for sentence in split(rationale)]
        supports = [support for support in supports if support is not None]
        scores = rewards.quality(rationale, example)
        assert scores["factuality"] == pytest.approx((np.mean(supports) + min(supports)) / 2)
        assert max(supports) >= 0.9


# ---- Strangers' texts ------------------------------------------------------------------------------------------------


def test_no_text_of_a_stranger_becomes_markup_turns_the_page_around_or_loads_anything(folders, tmp_path, page_of):
    kd = tmp_path / "<i>&kd"
    shutil.copytree(folders[0], kd)

    def change(name, content):
        (kd / name).write_text(json.dumps(content) + "\n")

    answers = lines(kd / "texts.jsonl")[0]["answers"]
    answers = [answer | {"rationale": HOSTILE, "prediction": HOSTILE} for answer in answers]
    change("texts.jsonl", {"epoch": 0, "answers": answers})
    change("settings.json", json.loads((kd / "settings.json").read_text()) | {"small": HOSTILE})
    change("filter.json", [{HOSTILE: 3, "asked": 4}, {"asked": 5}])
    results = json.loads((kd / "results.json").read_text())
    results["methods"][HOSTILE] = results["methods"].pop("CoT")
    change("results.json", results)

    page = page_of(kd, hotpotqa_run(tmp_path / "a", (HOSTILE, "Ann.", HOSTILE)))
    assert page.text.count(SHOWN) > 6 and "<i>&kd" in page.text
    assert "\u202e" not in page.bare and "alert" not in page.bare
    policy = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "link", "form", "img", "a")
        assert not [name for name in attributes if name in ("src", "href") or name.startswith("on")]


def test_any_text_in_a_picture_is_xml_and_text():
    (text,) = drawn(svg.Panel("", "", 9, svg.words(0, 0, HOSTILE)), "text", lambda element: element.text)
    assert text == "".join("?" if letter in "\u202e\ud800\x00" else letter for letter in HOSTILE)


# ---- What is missing, unfinished or damaged --------------------------------------------------------------------------


NO_KD = ["train_kd.py was given"] * 2  # no counts of a filter, and no losses


@pytest.mark.parametrize("number, kept, left_out", [
    (0, [], ["no filter.json yet", "no epoch", "train_rl.py was given", "no run has a table", "keeps no texts"]),
    (0, ["filter.json"], ["no epoch", "train_rl.py was given", "no run has a table", "keeps no texts"]),
    (0, ["filter.json", "metrics.jsonl", "texts.jsonl"], ["train_rl.py was given", "no run has a table"]),
    (1, [], [*NO_KD, "no step", "no run has a table", "keeps no texts"]),
    (1, ["metrics.jsonl"], [*NO_KD, "no run has a table", "keeps no texts"]),
    (1, ["dev.jsonl", "texts.jsonl"], [*NO_KD, "no run has a table"]),
])  # fmt: skip
def test_an_unfinished_training_shows_what_there_is(folders, tmp_path, page_of, number, kept, left_out):
    (tmp_path / "here").mkdir()
    for name in ["settings.json", *kept]:
        shutil.copy(folders[number] / name, tmp_path / "here" / name)
    page = page_of(tmp_path / "here")
    first, *said = page.text.split("Left out: ")
    assert "It has not ended: the same command goes on." in first
    assert [words in sentence for words, sentence in zip(left_out, said, strict=True)] == [True] * len(left_out)
    assert ("Loss of here, by epoch" in page.text) == (number == 0 and "metrics.jsonl" in kept)
    assert ("Entropy" in page.text) == (number == 1 and "metrics.jsonl" in kept)
    assert bool(page.looks) == ("texts.jsonl" in kept)


def test_what_is_left_out_because_a_distillation_or_data_are_gone_is_said(folders, tmp_path, page_of):
    rl = shutil.copytree(folders[1], tmp_path / "rl")
    settings = json.loads((rl / "settings.json").read_text())
    (rl / "settings.json").write_text(json.dumps(settings | {"kd": "gone"}))
    assert "gone is no run folder" in page_of(rl).text
    kd = shutil.copytree(folders[0], tmp_path / "kd")
    settings = json.loads((kd / "settings.json").read_text())
    (kd / "settings.json").write_text(json.dumps(settings | {"data": "gone.json"}))
    assert page_of(kd).text.count("Left out: gone.json") == 2  # of its table, and of its held-out questions
    compared = hotpotqa_run(tmp_path / "a")
    (compared / "records.json").write_text(json.dumps(json.loads((compared / "records.json").read_text())[:1]))
    text = page_of(compared).text
    assert "are to other questions than its settings name" in text and "LM-guided, KD" in text


@pytest.mark.parametrize("file, content, sentence", [
    ("settings.json", '{"editor.fontSize": 12}', "is no run folder"),
    ("filter.json", "[", "not JSON"),
    ("metrics.jsonl", '{"epoch": 0}\noops\n', "line 2: not JSON"),
    ("metrics.jsonl", '{"epoch": 0}\n', "no run of this version writes"),
    ("results.json", '{"methods": {}}', "no run of this version writes"),
    ("results.json", '{"methods": {"x": 3}, "questions": 1, "seeds": 1}', "no run of this version writes"),
])  # fmt: skip
def test_a_damaged_folder_ends_in_one_sentence(folders, tmp_path, monkeypatch, capsys, file, content, sentence):
    shutil.copytree(folders[0], tmp_path / "kd")
    (tmp_path / "kd" / file).write_text(content)
    assert run(monkeypatch, tmp_path / "kd", "--out", tmp_path / "page.html") == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "page.html").exists()


# ---- Pictures --------------------------------------------------------------------------------------------------------


def drawn(panel, tag, what=lambda element: element.attrib):
    """Of the elements of a panel with this tag: their attributes."""
    return list(map(what, ElementTree.fromstring(f"<svg>{panel.svg}</svg>").iter(tag)))


def test_a_curve_goes_through_its_points_and_leaves_out_what_is_no_number():
    line = svg.Line("a", "blue", [(0, 4.0), (1, float("nan")), (2, 2.0), (4, 3.0)], ring=(2, 2.0))
    (panel,) = svg.curves("t", "c", [line, svg.Line("b", "green", [])])
    (way,) = drawn(panel, "polyline")
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point.split(","))) for point in way["points"].split()]
    assert x1 == (x0 + x2) / 2 and y2 == pytest.approx((y0 + y1) / 2) and y0 < y1  # up is less
    rings = [circle for circle in drawn(panel, "circle") if circle["fill"] == "none"]
    assert [(float(ring["cx"]), float(ring["cy"])) for ring in rings] == [(x1, y1)]
    assert svg.curves("t", "c", [svg.Line("a", "blue", [(1, float("inf"))])]) == []


def test_dots_stand_between_the_ends_of_their_intervals():
    (panel,) = svg.dots("t", {"a": ("blue", 50.0, 40.0, 80.0), "b" * 40: ("grey", 60.0, 60.0, 60.0)})
    first, second = [line for line in drawn(panel, "line") if line["stroke-width"] == "2"]
    dot = drawn(panel, "circle")[0]
    low, high = float(first["x1"]), float(first["x2"])
    assert float(dot["cx"]) == pytest.approx(low + 0.25 * (high - low), abs=0.1) and dot["cy"] == first["y1"]
    assert second["x1"] == second["x2"]
    assert "b" * 26 + "…" in panel.svg and "b" * 27 not in panel.svg


@pytest.mark.parametrize("low, high, marks", [
    (0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.41, [0.2, 0.3, 0.4]), (-3, 4, [-2, 0, 2, 4]),
    (7, 7, [6.8, 7, 7.2]), (0, 0, [-0.04, -0.02, 0, 0.02, 0.04]), (1e-9, 5e-9, [1e-9, 2e-9, 3e-9, 4e-9, 5e-9]),
])  # fmt: skip
def test_marks_are_round_numbers_inside_the_picture(low, high, marks):
    place, found = svg.scale([low, high], 10, 110)
    assert found == pytest.approx(marks)
    assert place(low) == (10 if high > low else 60) and place(high) == (110 if high > low else 60)


def test_quality_curve_against_cases_by_hand():
    scores = np.array([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    right = np.array([[0, 0, 1, 0, 1], [1, 1, 0, 1, 1]], bool)
    points, intervals = report.by_quality(scores, right, parts=5)
    assert points == [(1.5, 0), (3.5, 50), (5.5, 100), (7.5, 50), (9.5, 100)]
    assert intervals[0] == (0, 0)
    assert intervals[1] == (0, 100)  # a draw may hold only the wrong one, or only the right one
    equal = np.array([[1.0, 5, 5, 5, 5, 5, 5, 9]])  # all borders lie at 5: what is at most 5, and what is above
    right = np.array([[1, 1, 0, 0, 0, 0, 1, 1]], bool)
    points, _ = report.by_quality(equal, right, parts=4)
    assert points == [(31 / 7, pytest.approx(300 / 7)), (9.0, 100)]


def test_pictures_are_files_with_fixed_colours_for_both_grounds(whole):
    _, folder = whole
    names = {"results", "rl", "rl-aspects", "kd", "quality"}
    assert {path.name for path in folder.iterdir()} == {f"{name}{dark}.svg" for name in names for dark in ("", "-dark")}
    for path in folder.iterdir():
        text = path.read_text()
        ground = ElementTree.fromstring(text).find("{*}rect").attrib["fill"]
        assert ground == (svg.DARK if "dark" in path.name else svg.LIGHT)["ground"]
        assert "var(" not in text and text.count("http") == 1  # that of its name space


def luminance(colour):
    """Of WCAG 2: a colour "#rrggbb" → its relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize("colours", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_every_colour_of_text_can_be_read_on_its_ground(colours):
    assert luminance("#ffffff") == pytest.approx(1) and luminance("#000000") == 0
    for name in colours.keys() - {"ground", "rule"}:
        lighter, darker = sorted([luminance(colours[name]), luminance(colours["ground"])], reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, name


# ---- In a browser ----------------------------------------------------------------------------------------------------

LOOK = """<!doctype html><meta charset="utf-8"><iframe src="page.html" style="width: WIDTHpx; height: 900px; border: 0">
</iframe><pre></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, width = page.documentElement.clientWidth;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const outside = [...page.body.querySelectorAll("*")].filter((each) => !each.closest(".wide")
    && each.getBoundingClientRect().right > width + 1).map((each) => each.tagName + " " + each.className);
  const small = [...page.querySelectorAll("svg text")].map((text) => 12 * text.getScreenCTM().a);
  const focusable = [...page.querySelectorAll("summary, .wide")].every((each) => each.tabIndex === 0);
  document.querySelector("pre").textContent = JSON.stringify({
    width, scroll: page.documentElement.scrollWidth, outside, smallest: Math.min(...small), focusable,
    ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor});
};
</script>"""


@in_chromium
@pytest.mark.parametrize("width, scheme, ground", [
    (390, "light", "rgb(255, 255, 255)"), (390, "dark", "rgb(13, 17, 23)"), (1280, "dark", "rgb(13, 17, 23)"),
])  # fmt: skip
def test_in_chromium_nothing_is_cut_off_or_too_small_and_the_colours_follow_the_system(
    folders, tmp_path, page_of, width, scheme, ground
):
    long = tmp_path / ("long-" * 20)
    shutil.copytree(folders[0], long)
    page_of(*folders, hotpotqa_run(tmp_path / "a", (HOSTILE, "word" * 90, "Ann Lie was born in Rome. " * 20)), long)
    look = tmp_path / "new" / "look.html"
    look.write_text(LOOK.replace("WIDTH", str(width)))
    seen = seen_in_chromium(look, "--hide-scrollbars", f"--window-size={width + 100},1000",
                            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")  # fmt: skip
    assert seen["width"] == width == seen["scroll"] and seen["outside"] == []
    assert seen["smallest"] > 11 and seen["focusable"] and seen["ground"] == ground
