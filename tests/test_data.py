"""
Proofs for data.py. The truths are independent of it: values worked by hand from the official rules, properties that
any right implementation has, counts from a data set's own description, and files broken on purpose.
"""

import json
import re
from collections import Counter

import harness
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data
from data import Example, Paragraph, load
from plumbing.errors import UserError

SAMPLES = {  # question types and their numbers as the samples' README gives them
    "hotpotqa_dev_sample.json": {"bridge": 231, "comparison": 69},
    "hotpotqa_train_sample.json": {"bridge": 120, "comparison": 30},
    "2wikimultihop_dev_sample.json": {"compositional": 35, "comparison": 28, "bridge_comparison": 29, "inference": 8},
    "2wikimultihop_train_sample.json": {"compositional": 84, "comparison": 66, "bridge_comparison": 42, "inference": 8},
    "musique_dev_sample.json": {"": 60},
    "strategyqa_sample.json": {"": 100},
}

RECORD = {
    "_id": "r1",
    "question": "Where was the maker of Vega born?",
    "answer": "Oslo",
    "type": "bridge",
    "supporting_facts": [["Vega", 0], ["Ann Lie", 2]],  # 2: the blank sentence counts
    "context": [
        ["Noise", ["Nothing here.", " Nothing there."]],
        ["Ann Lie", ["Ann Lie is a maker.", " ", " She was born in Oslo."]],
        ["Vega", [" Vega was made by Ann Lie. "]],
    ],
}


def record(**changes):
    return {**RECORD, **changes}


def write_json(folder, *records):
    path = folder / "x.json"
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return path


def write_jsonl(folder, *records):
    path = folder / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def refused(*arguments, **named):
    with pytest.raises(UserError) as caught:
        load(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Example and loading ---------------------------------------------------------------------------------------------


def gold_text(r):
    """The evidence of a raw record, in the order in which the record names it."""
    if "facts" in r:
        return " ".join(r["facts"])
    if "paragraphs" in r:
        order = [step["paragraph_support_idx"] for step in r["question_decomposition"]]
        return " ".join(r["paragraphs"][i]["paragraph_text"] for i in order)
    paragraphs = dict(r["context"])  # no supporting title of the samples occurs twice in its context
    return " ".join(paragraphs[title][i] for title, i in r["supporting_facts"])


def letters(text):
    """Without spaces and full stops: StrategyQA's facts often lack theirs."""
    return re.sub(r"[\s.]", "", text)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_record_of_the_real_samples_loads_with_its_evidence(name):
    path = harness.SAMPLES / name
    if not path.exists():
        pytest.skip("the sample files are not at hand")
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert Counter(example.type for example in load(path)) == SAMPLES[name]
    for gold, everything, r in zip(load(path), load(path, context="all"), raw, strict=True):
        assert gold.id == everything.id == r.get("_id", r.get("id", r.get("qid")))
        assert gold.question == r["question"]
        assert gold.answer == {True: "yes", False: "no"}.get(r["answer"], r["answer"])
        assert letters(" ".join(gold.supporting_sentences)) == letters(gold_text(r))
        assert everything.supporting_sentences == gold.supporting_sentences
        assert set(gold.supporting_sentences) <= set(gold.sentences) <= set(everything.sentences)
        for metric in (data.exact_match, data.token_f1, data.answer_inclusion):
            assert metric(gold.answer, gold.answers) == 1.0


def test_the_context_is_plain_text_and_blank_sentences_count(tmp_path):
    (example,) = load(write_json(tmp_path, RECORD), context="all")
    text = "Nothing here. Nothing there. Ann Lie is a maker. She was born in Oslo. Vega was made by Ann Lie."
    assert example.context == text and [p.title for p in example.paragraphs] == ["Noise", "Ann Lie", "Vega"]
    assert example.supporting_facts == ((2, 0), (1, 2))
    assert example.supporting_sentences == ["Vega was made by Ann Lie.", "She was born in Oslo."]


DOUBLED = [["T", ["a0"]], ["T", ["b0", "b1"]], ["T", ["c0", "c1", "c2"]]]


@pytest.mark.parametrize(
    ("changes", "kept", "facts"),
    [
        ({}, [1, 2], ((1, 0), (0, 2))),  # numbered anew, as the paragraph of noise is left out
        ({"supporting_facts": []}, [0, 1, 2], ()),
        ({"supporting_facts": [["Vega", 1], ["Vega", 0]]}, [2], ((0, 0),)),  # Vega has one sentence
        ({"supporting_facts": [["Vega", 0], ["Ann Lie", 7]]}, [1, 2], ((1, 0),)),  # Ann Lie is named, so she stays
        # a title that occurs several times: the first paragraph that has such a sentence
        ({"context": DOUBLED, "supporting_facts": [["T", 1], ["T", 0]]}, [0, 1], ((1, 1), (0, 0))),
    ],
)
def test_gold_keeps_the_paragraphs_of_the_facts_and_renumbers_them(tmp_path, changes, kept, facts):
    path = write_json(tmp_path, record(**changes))
    ((gold,), (everything,)) = load(path), load(path, context="all")
    assert list(gold.paragraphs) == [everything.paragraphs[p] for p in kept]
    assert gold.supporting_facts == facts
    assert gold.supporting_sentences == everything.supporting_sentences


def test_the_hubs_table_of_columns_gives_the_same_example(tmp_path):
    titles, sentences = zip(*RECORD["context"], strict=True)
    columns = record(
        supporting_facts={"title": ["Vega", "Ann Lie"], "sent_id": [0, 2]},
        context={"title": titles, "sentences": sentences},
    )
    columns["id"] = columns.pop("_id")
    expected = load(write_json(tmp_path, RECORD))
    assert load(write_jsonl(tmp_path, columns)) == expected


def test_aliases_follow_the_answer_once_each(tmp_path):
    path = write_json(tmp_path, record(answer_aliases=["Kristiania", "Oslo"], aliases=["Kristiania", "Christiania"]))
    assert load(path)[0].answers == ("Oslo", "Kristiania", "Christiania")


def test_own_jsonl_takes_a_string_or_paragraphs_and_needs_no_id(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [
        {"question": "Q1?", "context": "One. Two two!  Three\nFour", "answer": "yes"},
        {"question": "Q2?", "context": ["A b. C d.", "E\u2028f."], "answer": "E", "aliases": ["e f"], "id": 7},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text, encoding="utf-8-sig")  # with the byte order mark of editors on Windows
    first, second = load(path)
    assert first.paragraphs == (Paragraph("", ("One.", "Two two!", "Three", "Four")),)
    assert first.context == "One. Two two! Three Four" and first.type == ""
    assert second.paragraphs == (Paragraph("", ("A b.", "C d.")), Paragraph("", ("E\u2028f.",)))
    assert (second.id, second.answers) == ("7", ("E", "e f"))
    path.write_text("\n".join(reversed(text.split("\n"))), encoding="utf-8")
    assert load(path)[1].id == first.id  # the id made for a record does not depend on its place


# ---- MuSiQue and StrategyQA ------------------------------------------------------------------------------------------

MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who founded the maker of Vega?",
    "answer": "Ann Lie",
    "answer_aliases": ["A. Lie"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Lie", "paragraph_text": "Lie Ltd is a firm. Ann Lie founded it.", "is_supporting": True},
        {"idx": 1, "title": "Vega", "paragraph_text": "Vega is a star.", "is_supporting": False},
        {"idx": 2, "title": "Vega", "paragraph_text": "Vega is a car by Lie Ltd.", "is_supporting": True},
    ],
    "question_decomposition": [{"paragraph_support_idx": 2}, {"paragraph_support_idx": 0}],
}
STRATEGY = {
    "qid": "s1",
    "term": "Space Race",
    "question": "Did Al Unser Jr. win the Space Race?",
    "answer": False,
    "facts": ["Al Unser Jr. is a race car driver", " The Space Race was about space. "],
    "decomposition": ["Who took part?", "Is he one of #1?"],
}


def test_a_musique_record_has_its_text_paragraphs_and_aliases(tmp_path):
    path = write_json(tmp_path, MUSIQUE)
    ((gold,), (everything,)) = load(path), load(path, context="all")
    assert (gold.id, gold.question, gold.answers) == ("2hop__1_2", MUSIQUE["question"], ("Ann Lie", "A. Lie"))
    assert gold.context == "Lie Ltd is a firm. Ann Lie founded it. Vega is a car by Lie Ltd."
    assert [p.title for p in everything.paragraphs] == ["Lie", "Vega", "Vega"]


@pytest.mark.parametrize(
    ("steps", "order"),
    [([2, 0], [2, 0]), ([0, 2, 0], [0, 2]), ([2], [2, 0]), ([], [0, 2]), ([1, 2], [2, 0])],  # 1 supports nothing
)
def test_facts_of_musique_are_the_supporting_paragraphs_in_the_order_of_the_steps(tmp_path, steps, order):
    decomposition = [{"paragraph_support_idx": index} for index in steps]
    path = write_json(tmp_path, {**MUSIQUE, "question_decomposition": decomposition})
    texts = [MUSIQUE["paragraphs"][index]["paragraph_text"] for index in order]
    for context in ("gold", "all"):
        (example,) = load(path, context=context)
        assert " ".join(example.supporting_sentences) == " ".join(texts)


def test_a_strategyqa_record_has_its_facts_as_context_and_yes_or_no_as_answer(tmp_path):
    first, second = load(write_jsonl(tmp_path, STRATEGY, {**STRATEGY, "qid": "s2", "answer": True}))
    assert (first.id, first.answer, second.id, second.answer) == ("s1", "no", "s2", "yes")
    assert first.context == "Al Unser Jr. is a race car driver. The Space Race was about space."
    assert first.supporting_sentences == ["Al Unser Jr. is a race car driver.", "The Space Race was about space."]


def test_a_record_with_a_context_is_own_data_whatever_else_it_has(tmp_path):
    more = {"context": "C.", "paragraphs": 3, "facts": ["F."]}
    (example,) = load(write_jsonl(tmp_path, {"question": "Q?", "answer": "a", **more}))
    assert example.context == "C." and example.supporting_facts == ()


# ---- The hold-out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [range(60), range(59, -1, -1)])
def test_a_hash_of_the_id_alone_holds_out_a_tenth_as_dev_and_train_is_the_rest(tmp_path, order):
    """`printf id-7 | sha256sum` gives a number that ten divides."""
    path = write_json(tmp_path, *(record(_id=f"id-{i}") for i in order))

    def numbers(*arguments, **named):
        return [int(example.id.removeprefix("id-")) for example in load(path, *arguments, **named)]

    dev = [i for i in order if i in (7, 21, 25, 54)]
    assert numbers("dev") == dev and numbers("dev", limit=3) == dev[:3]
    assert numbers("train") == [i for i in order if i not in dev]
    assert numbers() == list(order) and numbers(limit=5) == list(order)[:5]


# ---- What a user's file can have wrong -------------------------------------------------------------------------------

OWN = {"question": "q?", "context": "c", "answer": "a"}
NO_TEXT = "(expected a text)"
NO_TEXTS = "(expected a list of texts)"
TWO = json.dumps(OWN) + "\n\n" + json.dumps(OWN)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # what Python would read without an error
        ([record(answer=None)], f"record 0 (id r1): field 'answer' holds null {NO_TEXT}"),
        ([RECORD, record(_id="r2", answer=" ")], f"record 1 (id r2): field 'answer' holds \" \" {NO_TEXT}"),
        ([record(answer=True)], "field 'answer' holds true"),
        ([record(aliases=[""])], f"field 'aliases' holds \"\" {NO_TEXT}"),
        ([record(context=[["T", "no list"]])], f"field 'context' holds \"no list\" {NO_TEXTS}"),
        ([record(context=[["T", ["s", 1]]])], f"field 'context' holds [\"s\", 1] {NO_TEXTS}"),
        ([{**STRATEGY, "facts": "F."}], f"field 'facts' holds \"F.\" {NO_TEXTS}"),
        ([record(supporting_facts=[["Nobody", 0]])], '"Nobody" (of HotpotQA, take the distractor file)'),
        ([record(supporting_facts=[["Vega", -1]])], 'supporting fact ["Vega", -1] names no sentence'),
        ([{**MUSIQUE, "answerable": False}], "(take MuSiQue-Ans, not MuSiQue-Full)"),
        ([record(question="\ud83d?")], "record 0 (id r1): 'utf-8' codec can't encode"),
        ([RECORD, record(question="?")], "record 1 (id r1): the id is taken already, by"),
        (TWO, "line 3: the id is taken already, by"),
        # what Python finds
        ([RECORD, {"_id": "r2", "question": "q?"}], "record 1 (id r2): field 'answer' is missing"),
        ([record(context={"title": ["T"], "sentences": []})], "shorter than argument 1"),
        ([record(aliases="Kristiania")], 'can only concatenate list (not "str") to list'),
        ([[]], "record 0: this is [] (expected an object)"),
    ],
)
def test_a_faulty_record_gets_one_sentence_with_its_file_place_and_fault(tmp_path, content, said):
    path = tmp_path / ("a.jsonl" if isinstance(content, str) else "a.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    message = refused(path)
    assert message.startswith(f"{path}: ") and said in message
    assert message.endswith("(for the forms of records see `load` in data.py)")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'{"data": []}', 'the top level is {"data": []} (expected a list of records)'),
        ("a.json", b" \n ", "not JSON (Expecting value"),
        ("a.json", '["é"]'.encode("latin-1"), "not JSON ('utf-8' codec can't decode"),
        ("a.jsonl", json.dumps(OWN).encode() + b'\n{"question', "line 2: not JSON ("),
        ("a.txt", b"x", "there is no such file that ends in .json or .jsonl (or take one of tiny, hotpotqa, 2wiki"),
    ],
)
def test_a_faulty_file_gets_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: {said}")


def test_a_wrong_split_or_context_gets_one_sentence():
    known = "train, dev, test"
    assert refused("x.json", "ood") == f"x.json: there is no split 'ood' (expected one of {known})"
    assert refused("tiny", "valid") == f"tiny: there is no split 'valid' (expected one of {known}, ood)"
    assert refused("tiny", context="none") == "tiny: there is no context 'none' (expected gold or all)"


# ---- Contexts that are too long --------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["a", "bb", "c d", "e f g"]), max_size=12)


@given(paragraphs=st.lists(words, max_size=4))
def test_fit_context_keeps_the_longest_run_of_whole_sentences_that_fits(paragraphs):
    def prompt_of(context):
        return f"Question: q Context: {context} Answer:"

    def count_tokens(text):
        return len(text.split())

    example = Example("i", "q", tuple(Paragraph("t", tuple(p)) for p in paragraphs), "a")
    sentences = [s for p in paragraphs for s in p]
    candidates = [" ".join(sentences[:n]) for n in range(len(sentences) + 1)]
    for max_tokens in range(count_tokens(prompt_of(example.context)) + 2):
        fitting = [c for c in candidates if count_tokens(prompt_of(c)) <= max_tokens]
        context, was_cut = data.fit_context(example, prompt_of, count_tokens, max_tokens)
        assert context == (fitting[-1] if fitting else "")
        assert was_cut == (candidates[-1] not in fitting)


# ---- Metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Beatles", "beatles"),
        ("an apple, a pear & the fig.", "apple pear fig"),
        ("theatre another A", "theatre another"),  # articles are whole words
        ("A.N. Other", "other"),  # punctuation goes first, and an article may appear
        ("Jay-Z's", "jayzs"),  # it leaves no space behind
        ("«Élan»\u00a0vital", "«élan» vital"),  # only ASCII punctuation goes; any white space is white space
        ("the", ""),
        ("?!", ""),
    ],
)
def test_normalisation_follows_the_official_order_of_steps(text, normalised):
    assert data.normalize_answer(text) == normalised


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "f1", "inclusion"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1, 1, 1),
        ("in New York City", "York", 0, 2 * (1 / 4) / (1 / 4 + 1), 1),
        ("party", "art", 0, 0, 0),
        ("York", "New York", 0, 2 / 3, 0),
        ("b b c", "b c c", 0, 2 / 3, 0),  # two tokens in common, as multisets
        ("Chapel Hill of North", "North Chapel", 0, 2 / 3, 0),  # tokens in common, but not in a row
        ("yes", "Yes", 1, 1, 1),
        ("yes", "no", 0, 0, 0),
        ("no, he did not", "no", 0, 0, 1),
        ("no", "no man", 0, 0, 0),
        ("noanswer", "noanswer here", 0, 0, 0),
        ("", "Oslo", 0, 0, 0),
        ("Oslo", "The", 0, 0, 0),
        ("a", "The", 1, 0, 1),  # both empty after normalisation: equal, without a token in common
    ],
)
def test_scores_equal_the_values_worked_by_hand_from_the_official_rules(prediction, answer, em, f1, inclusion):
    assert data.exact_match(prediction, answer) == em
    assert data.token_f1(prediction, answer) == pytest.approx(f1)
    assert data.answer_inclusion(prediction, answer) == inclusion


def test_the_best_alias_counts():
    assert data.exact_match("NYC", ("New York City", "NYC")) == 1.0
    assert data.token_f1("New York", ["NYC", "New York City"]) == pytest.approx(0.8)
    assert data.answer_inclusion("it is NYC now", ("New York City", "N.Y.C.")) == 1.0
