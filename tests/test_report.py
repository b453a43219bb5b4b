"""lab/report.py: what its page says is what the run folders hold, and nothing in them can change the page itself.

The run folders are made by the three scripts, with a random M_S and a scripted M_L, or are written by hand.
"""

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from harness import SAMPLES, ScriptedLM, call, lines, run_script, save_random_small, write_run

import data
import eval as evaluation
import rewards
import train_kd
import train_rl
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
        self.text, self.bare, self.tags, self.open = "", "", [], []
        self.tables, self.questions, self.looks = [], [], []
        self.feed(page)
        assert not self.open  # every tag is closed

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":  # the only one that has no end
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h4":
            self.questions.append("")
            self.looks.append([])
        elif tag == "li" and self.open[-2] == "ol":
            self.looks[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        text = text.replace("\x00", "\ufffd")
        self.text += text
        if not {"bdi", "text"} & set(self.open):
            self.bare += text
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text
        if "h4" in self.open:
            self.questions[-1] += text
        if "ol" in self.open:
            self.looks[-1][-1] += text

    def table(self, first_cell):
        (found,) = [table for table in self.tables if table[0][0] == first_cell]
        return found


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


KNOWN = {e.question: e for split, n in SIZES.items() for e in data.load("tiny", split, n)}


def large_says(prompt, _=0):
    """M_L as a script: its chains of thought are good, its answers from rationales of an even number of words, too."""
    example = KNOWN[re.search(r"Question: (.*)\n", prompt)[1]]
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


HOTPOTQA = [  # question, answer, context, supporting facts
    (f"Where was {name} born?", town, [[name, [f"{name} was born in {town}.", f" {name} is a singer."]], ["X", ["X."]]],
     [[name, 0]])
    for name, town in (("Ann Lie", "Rome"), ("Bob Ray", "Oslo"), ("Cy Dow", "Lima"), ("Di Fox", "Bern"),
                       ("Ed Orr", "Kyiv"))
]  # fmt: skip
#          untrained, KD and RL: M_L's answers from them
ANSWERS = [("Rome", "Rome", "Rome"), ("x", "x", "x"), ("x", "Lima", "Lima"), ("Bern", "Bern", "x"), ("x", "x", "Kyiv")]


def hotpotqa_run(folder, texts=("He was born in Mars.", "Ann Lie was born in Rome.", "")):
    """A comparison on records of HotpotQA's form, with the table that eval.py's `summarise` makes of it."""
    names = ("question", "answer", "context", "supporting_facts")
    folder.mkdir(parents=True)
    records = [{"_id": f"q{i}", **dict(zip(names, row, strict=True))} for i, row in enumerate(HOTPOTQA)]
    (folder / "records.json").write_text(json.dumps(records))
    stages = (report.UNTRAINED, report.KD, report.RL)
    rows = {}
    for stage, text, predictions in zip(stages, texts, zip(*ANSWERS, strict=True), strict=True):
        answers = [vars(evaluation.Answer(f"q{i}", said, text)) for i, said in enumerate(predictions)]
        costs = dict.fromkeys(evaluation.COSTS, 0) | {"seconds": 0.25 * len(answers), "tokens": 7.5 * len(answers)}
        rows[stage] = [{"method": stage, "seed": 0, "answers": answers, **costs}]
    table = evaluation.summarise(data.load(folder / "records.json"), rows)
    (folder / "results.json").write_text(json.dumps(table))
    settings = {"data": str(folder / "records.json"), "split": "test", "limit": 9, "context": "gold", "kd": HOSTILE,
                "max_new_tokens": 64}  # fmt: skip
    return write_run(folder, settings, answers=[row for row, in rows.values()])


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


def test_the_counts_of_the_page_are_those_of_the_filter(whole, folders):
    head, *rows = whole[0].table("rationales of M_L")
    counts = json.loads((folders[0] / "filter.json").read_text())
    assert [row[0] for row in rows] == sorted(counts[0] | counts[1]) and counts[0]["asked"] == 16
    for what, *cells in rows:
        for cell, of in zip(cells, counts, strict=True):
            assert cell == f"{of.get(what, 0)} ({100 * of.get(what, 0) / of['asked']:.0f} %)"


def test_the_numbers_of_the_page_are_those_of_the_table(whole, folders):
    head, *rows = whole[0].table("method")
    methods = json.loads((folders[2] / "results.json").read_text())["methods"]
    assert [row[0] for row in rows] == list(methods) and len(rows) > 9
    assert any(row["EM"]["mean"] < row["F1"]["mean"] < row["AI"]["mean"] for row in methods.values())  # they differ
    for name, *cells in rows:
        row = methods[name]
        cell = dict(zip(head[1:], ([float(x) for x in re.findall(r"[-+]?[\d.]+", c.replace("−", "-"))] for c in cells),
                        strict=True))  # fmt: skip
        for column, measure, unit, digits in (("EM [95 %]", "EM", 100, 1), ("quality [95 %]", "R_aspect", 1, 2)):
            if measure in row:
                expected = [row[measure]["mean"], *row[measure]["interval"]]
                assert cell[column] == [round(unit * x, digits) for x in expected]
        assert (cell["F1"], cell["AI"]) == tuple([round(100 * row[measure]["mean"], 1)] for measure in ("F1", "AI"))
        gain = row["EM"].get("minus CoT")
        assert cell["EM minus CoT"] == ([round(100 * x, 1) for x in (gain["mean"], *gain["interval"])] if gain else [])


def test_the_picture_of_the_methods_has_the_numbers_of_the_table(folders, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "dots", lambda title, cells: drawn.append(cells) or [])
    report.results_picture(report.find(folders[2]), "results")
    methods = json.loads((folders[2] / "results.json").read_text())["methods"]
    for cells, measure, unit in zip(drawn, ("EM", "R_aspect"), (100, 1), strict=True):
        assert list(cells) == [name for name, row in methods.items() if measure in row]
        for name, (_, *numbers) in cells.items():
            cell = methods[name][measure]
            assert numbers == [unit * x for x in (cell["mean"], *cell["interval"])]


def test_each_look_shows_the_text_and_the_answer_that_the_run_kept_then(whole, folders):
    page, (kd, rl, _) = whole[0], folders
    losses = [row["held_out_loss"] for row in lines(kd / "metrics.jsonl")]
    epochs = lines(kd / "texts.jsonl")[: losses.index(min(losses))]  # with the best PPO begins
    times = ["before training", "distillation, epoch 1"][: len(epochs)]
    times += ["after distillation", "PPO, step 2", "PPO, step 4"]
    examples = {example.question: example.id for example in data.load("tiny", "dev", 8)}
    assert len(page.questions) >= 3
    for question, looks in zip(page.questions, page.looks, strict=True):
        expected = []
        for when, row in zip(times, epochs + lines(rl / "texts.jsonl"), strict=True):
            (answer,) = [answer for answer in row["answers"] if answer["id"] == examples[question]]
            same = (answer["rationale"], answer["prediction"])
            if expected and expected[-1][1:] == same:
                expected[-1] = (f"{expected[-1][0].split(' to ')[0]} to {when}", *same)
            else:
                expected.append((when, *same))
        for look, (when, rationale, prediction) in zip(looks, expected, strict=True):
            told, _, rest = look.removeprefix(when).partition("M_L answers ")
            assert look.startswith(when) and rest.startswith(prediction)
            told = re.sub("[✓≈✗·] (.*?) × (\\d+) ", lambda said: f"{said[1]} " * int(said[2]), told)
            assert re.sub("[✓≈✗·] ", "", told).split() == (rationale or "(nothing)").split()


def test_six_questions_two_of_each_kind_the_first_of_each(page_of, tmp_path):
    page = page_of(hotpotqa_run(tmp_path / "a"))
    assert "Wrong, then right: 2. Right, then wrong: 1. Right, and stays so: 1. Wrong, and stays so: 1" in page.text
    assert re.findall(r"M_L's answer: (.*?)Where was (\w+)", page.text) == [
        ("right, and stays so", "Ann"), ("wrong, and stays so", "Bob"), ("wrong, then right", "Cy"),
        ("right, then wrong", "Di")]  # fmt: skip


def test_what_changed_is_one_gained_and_one_lost_or_two_of_the_kind_that_there_is():
    examples = data.load("tiny", "dev", 8)
    looks = []
    for right in ((3, 4, 5), range(6)):
        answers = {}
        for i, e in enumerate(examples):
            answers[e.id] = {"id": e.id, "rationale": "x", "prediction": e.answer if i in right else "?"}
        looks.append(("then", answers))
    story = report.Story("t", {e.id: e for e in examples}, looks)
    ids = [e.id for e in examples]
    assert list(report.fates_of(story).values()) == [ids[:3], [], ids[3:6], ids[6:]]
    assert Reader(report.six_questions(story, True)).questions == [examples[i].question for i in (3, 4, 6, 7, 0, 1)]


def test_times_with_the_same_text_and_answer_are_one_row():
    (example,) = data.load("tiny", "dev", 1)

    def look(text, said):
        return {example.id: {"id": example.id, "rationale": text, "prediction": said}}

    times = [("t1", look("A.", "x")), ("t2", look("A.", "x")), ("t3", look("A.", "y")), ("t4", look("A.", "x"))]
    page = Reader(report.question(report.Story("s", {example.id: example}, times), example.id, "fate"))
    assert [re.match(r"t\d( to t\d)?", row)[0] for row in page.looks[0]] == ["t1 to t2", "t3", "t4"]


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


def test_bars_are_as_long_as_the_aspects(tmp_path, page_of):
    page = page_of(hotpotqa_run(tmp_path / "a"))
    widths = [attributes["style"] for tag, attributes in page.tags if tag == "i" and "style" in attributes]
    assert len(widths) == 8 * sum(map(len, page.looks))
    (ann, *_) = data.load(tmp_path / "a" / "records.json")
    scores = rewards.quality("Ann Lie was born in Rome.", ann, "Rome")
    assert page.questions[0] == ann.question and page.looks[0][1].startswith("LM-guided, KD")
    assert widths[8:16] == [f"width: {100 * scores[name]:.0f}%" for name in rewards.ASPECTS]


# ---- Strangers' texts ------------------------------------------------------------------------------------------------


def test_nothing_of_data_models_or_names_becomes_markup_or_turns_the_text_around(folders, tmp_path, page_of):
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
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "link", "form", "img", "a"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_any_text_in_a_picture_is_xml_and_text():
    (text,) = drawn(svg.Panel("", "", 9, svg.words(0, 0, HOSTILE)), "text", lambda element: element.text)
    assert text == "".join("?" if letter in "\u202e\ud800\x00" else letter for letter in HOSTILE)


def test_the_page_loads_nothing(whole):
    page, _ = whole
    policy = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object") and not attributes.keys() & {"src", "href"}


# ---- What is missing, unfinished or damaged --------------------------------------------------------------------------


@pytest.mark.parametrize("kept, said", [
    ([], ["has no filter.json yet", "no epoch has ended yet", "keeps no texts of M_S", "no run has a table"]),
    (["filter.json"], ["no epoch has ended yet", "keeps no texts of M_S", "no run has a table"]),
    (["filter.json", "metrics.jsonl", "texts.jsonl"], ["no run has a table"]),
])  # fmt: skip
def test_an_unfinished_distillation_shows_what_there_is(folders, tmp_path, page_of, kept, said):
    (tmp_path / "kd").mkdir()
    for name in ["settings.json", *kept]:
        shutil.copy(folders[0] / name, tmp_path / "kd" / name)
    page = page_of(tmp_path / "kd")
    text = page.text
    assert "It has not ended: the same command goes on." in text
    assert text.count("Left out: ") == len(said) + 1 and "no folder of train_rl.py was given" in text
    assert all(sentence in text for sentence in said)
    assert ("Loss of kd, by epoch" in text) == ("metrics.jsonl" in kept) == bool(page.looks)


@pytest.mark.parametrize("kept, left_out", [([], 5), (["metrics.jsonl"], 4), (["dev.jsonl", "texts.jsonl"], 3)])
def test_an_unfinished_refinement_shows_what_there_is(folders, tmp_path, page_of, kept, left_out):
    (tmp_path / "rl").mkdir()
    for name in ["settings.json", *kept]:
        shutil.copy(folders[1] / name, tmp_path / "rl" / name)
    page = page_of(tmp_path / "rl")
    assert page.text.count("Left out: ") == left_out
    assert bool(page.looks) == ("texts.jsonl" in kept)
    assert ("Entropy" in page.text) == ("metrics.jsonl" in kept)


def test_a_page_of_texts_whose_distillation_or_data_are_gone_says_so(folders, tmp_path, page_of):
    rl = tmp_path / "rl"
    shutil.copytree(folders[1], rl)
    settings = json.loads((rl / "settings.json").read_text())
    (rl / "settings.json").write_text(json.dumps(settings | {"kd": "gone"}))
    assert "gone is no run folder" in page_of(rl).text
    compared = hotpotqa_run(tmp_path / "a")
    (compared / "records.json").write_text(json.dumps(json.loads((compared / "records.json").read_text())[:1]))
    text = page_of(compared).text
    assert "are to other questions than its settings name" in text and "LM-guided, KD" in text


def test_a_number_that_is_none_leaves_a_gap(folders, tmp_path, page_of):
    kd = tmp_path / "kd"
    shutil.copytree(folders[0], kd)
    losses = (kd / "metrics.jsonl").read_text()
    (kd / "metrics.jsonl").write_text(losses.replace('"train_loss": ', '"train_loss": NaN, "x": '))
    ways = [attributes["points"] for tag, attributes in page_of(kd).tags if tag == "polyline"]
    assert len(ways[0].split()) == 3 and "nan" not in " ".join(ways)


@pytest.mark.parametrize("file, content, sentence", [
    ("settings.json", '{"editor.fontSize": 12}', "is no run folder"),
    ("results.json", '{"methods": {}}', "no run of this version writes"),
    ("results.json", '{"methods": {"x": 3}, "questions": 1, "seeds": 1}', "no run of this version writes"),
    ("results.json", "[", "not JSON"),
    ("metrics.jsonl", '{"epoch": 0}\noops\n', "line 2: not JSON"),
    ("metrics.jsonl", '{"epoch": 0}\n', "no run of this version writes"),
    ("texts.jsonl", '{"epoch": 0, "answers": 3}\n', "no run of this version writes"),
    ("filter.json", "[3, 4]", "no run of this version writes"),
])  # fmt: skip
def test_a_damaged_folder_ends_in_one_sentence(folders, tmp_path, monkeypatch, capsys, file, content, sentence):
    shutil.copytree(folders[0], tmp_path / "kd")
    (tmp_path / "kd" / file).write_text(content)
    assert run(monkeypatch, tmp_path / "kd", "--out", tmp_path / "page.html") == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("place", ["nowhere", "a file"])
def test_no_folder_ends_in_one_sentence(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "a file").write_text("x")
    assert run(monkeypatch, tmp_path / place, "--out", tmp_path / "page.html") == 2
    assert "is no run folder" in capsys.readouterr().err


# ---- HotpotQA --------------------------------------------------------------------------------------------------------


def test_records_of_hotpotqa_form_are_shown_as_those_of_tinywiki(tmp_path, page_of):
    page = page_of(hotpotqa_run(tmp_path / "a"))
    ann = page.looks[0]
    assert "✗ He was born in Mars." in ann[0] and "✓ Ann Lie was born in Rome." in ann[1] and "(nothing)" in ann[2]
    assert "M_L answers Rome ✓ right" in ann[0] and "Ann Lie was born in Rome. Ann Lie is a singer." in page.text


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs real records")
def test_a_training_on_hotpotqa_is_shown_with_its_held_out_questions(folders, tmp_path, page_of):
    file = SAMPLES / "hotpotqa_train_sample.json"
    held_out = data.load(file, "dev", 6)
    rows = []
    for epoch in (0, 1):
        said = [e.answer if (i + epoch) % 2 else "?" for i, e in enumerate(held_out)]
        answers = [{"id": e.id, "prediction": p, "rationale": " ".join(e.supporting_sentences)}
                   for e, p in zip(held_out, said, strict=True)]  # fmt: skip
        rows.append({"epoch": epoch, "answers": answers})
    settings = json.loads((folders[0] / "settings.json").read_text()) | {"data": str(file)}
    losses = [{"epoch": 0, "held_out_loss": 2.0}, {"epoch": 1, "held_out_loss": 1.0, "train_loss": 1.5}]
    page = page_of(write_run(tmp_path / "kd", settings, texts=rows, metrics=losses))
    assert "Wrong, then right: 3. Right, then wrong: 3." in page.text
    assert page.questions == [held_out[0].question, held_out[1].question]
    first, second = page.looks[0]
    assert first.startswith("before training✓") and second.startswith("distillation, epoch 1✓")


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

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("width, scheme, ground", [
    (390, "light", "rgb(255, 255, 255)"), (390, "dark", "rgb(13, 17, 23)"), (1280, "dark", "rgb(13, 17, 23)"),
])  # fmt: skip
def test_in_chromium_nothing_is_cut_off_or_too_small_and_the_colours_follow_the_system(
    folders, tmp_path, page_of, width, scheme, ground
):
    long = tmp_path / ("long-" * 20)
    shutil.copytree(folders[0], long)
    page_of(*folders, hotpotqa_run(tmp_path / "a", (HOSTILE, "word" * 90, "Ann Lie was born in Rome. " * 20)), long)
    (tmp_path / "new" / "look.html").write_text(LOOK.replace("WIDTH", str(width)))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--allow-file-access-from-files",
               "--hide-scrollbars", f"--window-size={width + 100},1000",
               f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]  # fmt: skip
    command.append((tmp_path / "new" / "look.html").as_uri())
    page = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = json.loads(html.unescape(re.search("<pre>(.*)</pre>", page.stdout, re.S)[1]))
    assert seen["width"] == width == seen["scroll"] and seen["outside"] == []
    assert seen["smallest"] > 11 and seen["focusable"] and seen["ground"] == ground
