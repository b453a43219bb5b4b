"""
Proofs for data.py. The truths are independent of it: values worked by hand from the official rules, properties that
any right implementation has, counts from a data set's own description, and files broken on purpose.
"""

import json
import os
import subprocess
import sys

import harness
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data
from data import Example, Paragraph, load
from plumbing.errors import UserError

SAMPLES = {  # counts and question types as the samples' README gives them
    "hotpotqa_dev_sample.json": {"bridge": 231, "comparison": 69},
    "hotpotqa_train_sample.json": {"bridge": 120, "comparison": 30},
    "2wikimultihop_dev_sample.json": {"compositional": 35, "comparison": 28, "bridge_comparison": 29, "inference": 8},
    "2wikimultihop_train_sample.json": {"compositional": 84, "comparison": 66, "bridge_comparison": 42, "inference": 8},
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


@pytest.fixture(params=SAMPLES)
def sample(request):
    path = harness.SAMPLES / request.param
    if not path.exists():
        pytest.skip("the sample files are not at hand")
    return path


def test_every_record_of_the_real_samples_loads_with_the_documented_counts(sample):
    examples = load(sample, context="all")
    raw = json.loads(sample.read_text(encoding="utf-8"))
    assert [e.id for e in examples] == [r["_id"] for r in raw]
    types = [e.type for e in examples]
    assert {t: types.count(t) for t in types} == SAMPLES[sample.name]
    for example, r in zip(examples, raw, strict=True):
        assert (example.question, example.answer) == (r["question"], r["answer"])
        assert [(p.title, list(p.sentences)) for p in example.paragraphs] == [(t, s) for t, s in r["context"]]
        for metric in (data.exact_match, data.token_f1, data.answer_inclusion):
            assert metric(example.answer, example.answers) == 1.0


def test_gold_context_keeps_the_supporting_paragraphs_in_order_and_their_sentences(sample):
    raw = json.loads(sample.read_text(encoding="utf-8"))
    for gold, everything, r in zip(load(sample), load(sample, context="all"), raw, strict=True):
        supporting = {title for title, _ in r["supporting_facts"]}
        # No supporting title of the samples occurs twice in its context, so titles settle it here.
        assert [p.title for p in gold.paragraphs] == [t for t, _ in r["context"] if t in supporting]
        by_title = {t: s for t, s in reversed(r["context"])}
        expected = [by_title[t][i].strip() for t, i in r["supporting_facts"]]
        assert gold.supporting_sentences == everything.supporting_sentences == expected
        assert all(sentence in gold.context for sentence in expected)


def test_the_hubs_dictionary_form_of_the_real_samples_gives_the_same_examples(sample, tmp_path):
    raw = json.loads(sample.read_text(encoding="utf-8"))
    for r in raw:  # as `datasets` writes a table of columns
        r["id"] = r.pop("_id")
        facts, context = r["supporting_facts"], r["context"]
        r["supporting_facts"] = {"title": [title for title, _ in facts], "sent_id": [index for _, index in facts]}
        r["context"] = {"title": [title for title, _ in context], "sentences": [sentences for _, sentences in context]}
    for write in (write_json, write_jsonl):
        path = write(tmp_path, *raw)
        assert load(path) == load(sample) and load(path, "dev", context="all") == load(sample, "dev", context="all")


def test_the_context_is_plain_text_and_gold_keeps_and_renumbers_what_supports(tmp_path):
    (example,) = load(write_json(tmp_path, RECORD), context="all")
    text = "Nothing here. Nothing there. Ann Lie is a maker. She was born in Oslo. Vega was made by Ann Lie."
    assert example.context == text and example.supporting_facts == ((2, 0), (1, 2))
    (gold,) = load(write_json(tmp_path, RECORD))
    assert [p.title for p in gold.paragraphs] == ["Ann Lie", "Vega"] and gold.supporting_facts == ((1, 0), (0, 2))
    supporting = ["Vega was made by Ann Lie.", "She was born in Oslo."]
    assert example.supporting_sentences == gold.supporting_sentences == supporting


def test_a_fact_under_a_doubled_title_goes_to_the_first_paragraph_that_has_the_sentence(tmp_path):
    doubled = record(
        context=[["T", ["a0"]], ["T", ["b0", "b1"]], ["T", ["c0", "c1", "c2"]]], supporting_facts=[["T", 1], ["T", 0]]
    )
    (example,) = load(write_json(tmp_path, doubled), context="all")
    assert example.supporting_sentences == ["b1", "a0"]
    (gold,) = load(write_json(tmp_path, doubled))
    assert [p.sentences for p in gold.paragraphs] == [("a0",), ("b0", "b1")]


@pytest.mark.parametrize(
    ("facts", "kept", "renumbered"),
    [
        ([["Vega", 1], ["Vega", 0]], ["Vega"], ((0, 0),)),
        ([["Vega", 0], ["Ann Lie", 7]], ["Ann Lie", "Vega"], ((1, 0),)),  # Ann Lie is named, so she stays
        ([], ["Noise", "Ann Lie", "Vega"], ()),
    ],
)
def test_a_fact_beyond_its_paragraph_is_left_out_and_without_facts_all_is_kept(tmp_path, facts, kept, renumbered):
    (example,) = load(write_json(tmp_path, record(supporting_facts=facts)))
    assert [paragraph.title for paragraph in example.paragraphs] == kept and example.supporting_facts == renumbered


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
    "question_decomposition": [
        {"id": 1, "question": "Vega >> maker", "answer": "Lie Ltd", "paragraph_support_idx": 2},
        {"id": 2, "question": "Who founded #1?", "answer": "Ann Lie", "paragraph_support_idx": 0},
    ],
}
STRATEGY = {
    "qid": "s1",
    "term": "Space Race",
    "question": "Did Al Unser Jr. win the Space Race?",
    "answer": False,
    "facts": ["Al Unser Jr. is a race car driver", " The Space Race was about space. "],
    "decomposition": ["Who took part?", "Is he one of #1?"],
}


@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_a_musique_record_has_its_supporting_paragraphs_as_facts_in_the_order_of_the_steps(tmp_path, write):
    (example,) = load(write(tmp_path, MUSIQUE))
    assert (example.id, example.question) == ("2hop__1_2", MUSIQUE["question"])
    assert example.answers == ("Ann Lie", "A. Lie")
    assert example.context == "Lie Ltd is a firm. Ann Lie founded it. Vega is a car by Lie Ltd."
    assert example.supporting_sentences == ["Vega is a car by Lie Ltd.", "Lie Ltd is a firm.", "Ann Lie founded it."]
    (everything,) = load(write(tmp_path, MUSIQUE), context="all")
    assert [p.title for p in everything.paragraphs] == ["Lie", "Vega", "Vega"]
    assert everything.supporting_sentences == example.supporting_sentences
    without = {name: value for name, value in MUSIQUE.items() if name not in ("question_decomposition", "answerable")}
    (example,) = load(write(tmp_path, without))
    assert example.supporting_sentences == ["Lie Ltd is a firm.", "Ann Lie founded it.", "Vega is a car by Lie Ltd."]


@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_a_strategyqa_record_has_its_facts_as_context_and_yes_or_no_as_answer(tmp_path, write):
    first, second = load(write(tmp_path, STRATEGY, {**STRATEGY, "qid": "s2", "answer": True}))
    assert (first.id, first.answer, second.id, second.answer) == ("s1", "no", "s2", "yes")
    assert first.context == "Al Unser Jr. is a race car driver. The Space Race was about space."
    assert first.supporting_sentences == ["Al Unser Jr. is a race car driver.", "The Space Race was about space."]


def test_a_record_with_a_context_is_own_data_whatever_else_it_has(tmp_path):
    more = {"context": "C.", "paragraphs": 3, "facts": ["F."]}
    (example,) = load(write_jsonl(tmp_path, {"question": "Q?", "answer": "a", **more}))
    assert example.context == "C." and example.supporting_facts == ()


@pytest.mark.parametrize("name", ["musique_dev_sample.json", "strategyqa_sample.json"])
@pytest.mark.parametrize("context", ["gold", "all"])
def test_the_real_samples_of_musique_and_strategyqa_load(name, context):
    path = harness.SAMPLES / name
    if not path.exists():
        pytest.skip("the sample files are not at hand")
    raw = json.loads(path.read_text(encoding="utf-8"))
    examples = load(path, context=context)
    assert [e.id for e in examples] == [r.get("id", r.get("qid")) for r in raw]
    for example, r in zip(examples, raw, strict=True):
        assert example.question == r["question"] and example.supporting_sentences
        assert all(sentence in example.context for sentence in example.supporting_sentences)
        gold = " ".join(example.supporting_sentences).split()
        if "facts" in r:
            assert example.answer == ("yes" if r["answer"] else "no")
            assert "".join(gold).replace(".", "") == "".join("".join(r["facts"]).split()).replace(".", "")
        else:  # one step, one paragraph, in the order of the steps
            order = [step["paragraph_support_idx"] for step in r["question_decomposition"]]
            assert gold == " ".join(r["paragraphs"][i]["paragraph_text"] for i in order).split()
            assert example.answers[0] == r["answer"] and set(example.answers[1:]) == set(r["answer_aliases"])


sentence_texts = st.lists(st.sampled_from(["A b.", "C!", " ", "D e? F", "g\nh", "é."]), min_size=1, max_size=4)


@given(st.lists(st.tuples(sentence_texts, st.booleans()), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_every_supporting_sentence_of_musique_stands_in_the_context(given, random):
    paragraphs = [{"title": "T", "paragraph_text": " ".join(s), "is_supporting": supports} for s, supports in given]
    steps = [{"paragraph_support_idx": random.randrange(6)} for _ in range(random.randrange(4))]
    changed = {**MUSIQUE, "paragraphs": paragraphs, "question_decomposition": steps}
    for context in ("gold", "all"):
        example = data._example(changed, context)
        gold = example.supporting_sentences
        assert all(sentence in example.sentences for sentence in gold)
        expected = sorted(word for s, supports in given if supports for word in " ".join(s).split())
        assert sorted(word for sentence in gold for word in sentence.split()) == expected


# ---- The hold-out ----------------------------------------------------------------------------------------------------


def many(folder, order=range(400)):
    return write_json(folder, *(record(_id=f"id-{i}") for i in order))


def test_train_and_dev_partition_the_file_and_dev_is_about_a_tenth(tmp_path):
    path = many(tmp_path)
    train, dev = ({e.id for e in load(path, split)} for split in ("train", "dev"))
    assert not train & dev
    assert train | dev == {e.id for e in load(path)} == {f"id-{i}" for i in range(400)}
    assert 20 <= len(dev) <= 60  # 40 expected, standard deviation 6


def test_the_hold_out_depends_on_the_id_alone(tmp_path):
    dev = [e.id for e in load(many(tmp_path), "dev")]
    assert {e.id for e in load(many(tmp_path, range(399, -1, -1)), "dev")} == set(dev)
    assert [e.id for e in load(many(tmp_path, range(200)), "dev")] == [i for i in dev if int(i[3:]) < 200]
    assert [e.id for e in load(many(tmp_path), "dev", limit=5)] == dev[:5]
    assert [e.id for e in load(many(tmp_path), limit=3)] == ["id-0", "id-1", "id-2"]
    code = "import data, sys; print([data.held_out(f'id-{i}') for i in range(50)])"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == str([f"id-{i}" in dev for i in range(50)])


@pytest.mark.parametrize("split", ["train", "dev", "test", "ood"])
def test_tiny_wiki_loads_as_examples_whose_facts_are_in_their_context(split):
    pytest.importorskip("tiny.world")
    examples = load("tiny", split, limit=20)
    assert 0 < len(examples) <= 20
    for example in examples:
        assert example.question and example.answer and example.supporting_facts
        assert all(sentence in example.context for sentence in example.supporting_sentences)


OWN = {"question": "q?", "context": "c", "answer": "a"}
NO_TEXT = "(expected a text)"
NO_TEXTS = "(expected a list of texts)"
TWO = json.dumps(OWN) + "\n\n" + json.dumps(OWN)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # what Python itself would read without an error
        ([record(answer=None)], f"record 0 (id r1): field 'answer' holds null {NO_TEXT}"),
        ([RECORD, record(_id="r2", answer=" ")], f"record 1 (id r2): field 'answer' holds \" \" {NO_TEXT}"),
        ([record(answer=True)], "field 'answer' holds true"),
        ([{**STRATEGY, "answer": [1]}], "record 0 (id s1): field 'answer' holds [1]"),
        ([record(question=3)], f"field 'question' holds 3 {NO_TEXT}"),
        ([record(aliases=[""])], f"field 'aliases' holds \"\" {NO_TEXT}"),
        ([record(context=[["T", "no list"]])], f"field 'context' holds \"no list\" {NO_TEXTS}"),
        ([record(context=[["T", ["s", 1]]])], f"field 'context' holds [\"s\", 1] {NO_TEXTS}"),
        ([{**STRATEGY, "facts": "F."}], f"field 'facts' holds \"F.\" {NO_TEXTS}"),
        ([record(supporting_facts=[["Nobody", 0]])], '"Nobody" (of HotpotQA, take the distractor file)'),
        ([record(supporting_facts=[["Vega", -1]])], 'supporting fact ["Vega", -1] names no sentence'),
        ([record(supporting_facts=[["Vega", "0"]])], 'supporting fact ["Vega", "0"] names no sentence'),
        ([{**MUSIQUE, "answerable": False}], "(take MuSiQue-Ans, not MuSiQue-Full)"),
        ([record(question="\ud83d?")], "record 0 (id r1): 'utf-8' codec can't encode"),
        ([record(_id=[]), record(_id="")], f"record 1 (id ): field 'id' holds \"\" {NO_TEXT}"),
        ([RECORD, record(question="?")], "record 1 (id r1): the id is taken already, by"),
        (TWO, "line 3: the id is taken already, by"),
        # what Python finds
        ([RECORD, {"_id": "r2", "question": "q?"}], "record 1 (id r2): field 'answer' is missing"),
        ('{"id": "k", "question": "q?", "answer": "a"}', "line 1 (id k): field 'context' is missing"),
        ([record(context=None)], "record 0 (id r1): 'NoneType' object is not iterable"),
        ([record(context={"title": ["T"]})], "field 'sentences' is missing"),
        ([record(context={"title": ["T"], "sentences": []})], "shorter than argument 1"),
        ([record(supporting_facts=["Vega"])], "too many values to unpack"),
        ([record(aliases="Kristiania")], 'can only concatenate list (not "str") to list'),
        ([{**MUSIQUE, "paragraphs": [{"title": "T"}]}], "field 'paragraph_text' is missing"),
        ([{**MUSIQUE, "question_decomposition": [3]}], "'int' object is not subscriptable"),
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
        ("a.json", b"[]", "there are no records"),
        ("a.json", b" \n ", "not JSON (Expecting value"),
        ("a.json", b'[\n{"a": 1,\n}]', "not JSON ("),
        ("a.json", '["é"]'.encode("latin-1"), "not JSON ('utf-8' codec can't decode"),
        ("a.jsonl", json.dumps(OWN).encode() + b'\n{"question', "line 2: not JSON ("),
        ("a.txt", b"x", "there is no such file that ends in .json or .jsonl (or take one of tiny, hotpotqa, 2wiki"),
    ],
)
def test_a_faulty_file_gets_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name_or_path": "no/such.json"}, "no/such.json: there is no such file that ends in .json or .jsonl"),
        ({"name_or_path": "."}, ".: there is no such file that ends in .json or .jsonl"),
        ({"name_or_path": "x.json", "split": "ood"}, "there is no split 'ood' (expected one of train, dev, test)"),
        ({"name_or_path": "tiny", "split": "valid"}, "no split 'valid' (expected one of train, dev, test, ood)"),
        ({"name_or_path": "x.json", "context": "none"}, "there is no context 'none' (expected gold or all)"),
        ({"name_or_path": "x.json", "limit": 0}, "limit is 0 (expected at least 1"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(arguments, said):
    assert said in refused(**arguments)


# ---- Contexts that are too long --------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["a", "bb", "c d", "e f g"]), max_size=12)


@given(paragraphs=st.lists(words, max_size=4), max_tokens=st.integers(0, 40))
def test_fit_context_keeps_the_longest_run_of_whole_sentences_that_fits(paragraphs, max_tokens):
    def prompt_of(context):
        return f"Question: q Context: {context} Answer:"

    def count_tokens(text):
        return len(text.split())

    example = Example("i", "q", tuple(Paragraph("t", tuple(p)) for p in paragraphs), "a")
    sentences = [s for p in paragraphs for s in p]
    candidates = [" ".join(sentences[:n]) for n in range(len(sentences) + 1)]
    fitting = [c for c in candidates if count_tokens(prompt_of(c)) <= max_tokens]
    context, was_cut = data.fit_context(example, prompt_of, count_tokens, max_tokens)
    assert context == (fitting[-1] if fitting else "")
    assert was_cut == (candidates[-1] not in fitting)


def test_fit_context_asks_the_tokenizer_a_logarithmic_number_of_times():
    asked = []

    def count_tokens(text):
        asked.append(text)
        return len(text)

    example = Example("i", "q", (Paragraph("t", ("x",) * 1000),), "a")
    context, was_cut = data.fit_context(example, lambda context: context, count_tokens, 999)
    assert was_cut and context == " ".join("x" * 500) and len(asked) <= 12


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


answers = st.lists(st.sampled_from(["yes", "no", "the", "Ann", "ann.", "b", "c", "-", "é"]), max_size=5).map(" ".join)


@given(answers | st.text(max_size=20), answers | st.text(max_size=20))
def test_metrics_have_the_properties_of_their_definitions(x, y):
    em, f1, inclusion = data.exact_match(x, y), data.token_f1(x, y), data.answer_inclusion(x, y)
    assert em in (0, 1) and inclusion in (0, 1) and 0 <= f1 <= 1
    assert f1 == pytest.approx(data.token_f1(y, x)) and em == data.exact_match(y, x)
    if em:
        assert inclusion == 1 and (f1 == 1 or data.normalize_answer(y) == "")
    if f1 == 1:
        assert sorted(data.normalize_answer(x).split()) == sorted(data.normalize_answer(y).split())
    assert data.normalize_answer(data.normalize_answer(x)) == data.normalize_answer(x)
