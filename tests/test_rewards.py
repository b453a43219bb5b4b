"""
Proofs for rewards.py and lab/validity.py: scores worked by hand from the definitions in the docstrings, properties that
any score must have, numpy for the running moments, and real rationales with one property broken.
"""

import json
import random
import re

import harness
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import rewards
from lab import validity
from plumbing.command import parse_weights
from plumbing.errors import UserError
from plumbing.markup import split
from rewards import ASPECTS, Combination, aspects, read

# Six sentences; "vega" stands in two of them ("It" is Vega), "direc" in two, "born" in two.
CONTEXT = (
    "Vega is a 1950 film. It was directed by Ann Lie. Ann Lie was born in Oslo. "
    "Bo Nyman was born in Bergen. Lyra is a new film. Lyra was directed by Bo Nyman."
)
QUESTION = "Where was the director of Vega born?"
DIRECTED, BORN = "Vega was directed by Ann Lie.", "Ann Lie was born in Oslo."
CLEAN = f"{DIRECTED} {BORN}"


# ---- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ["D. P. Varma lives in St. Louis.", "He sings."],
        ["Is it so?", "Yes!", "It is."],
        ["1. Ann won.", "2. Bo won.", "Step 3. Cy won."],
        [],
    ],
)
def test_sentences_end_at_stops_and_lines_but_not_at_abbreviations_and_numbers(sentences):
    assert split(" ".join(sentences) + " . ") == split("\n".join(sentences)) == sentences


def test_names_are_capitals_and_numbers_and_forms_of_another_word_are_one_term():
    sentence = rewards.read_sentence("The film Moon River was made in 1950, for Lyra's owner, who owned it.")
    assert sentence.mentions == [{"moon", "river"}, {"1950"}, {"lyra"}]
    assert sentence.terms == {"moon", "river", "1950", "lyra", "film", "made", "owne"}


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Ann Lie was born in Oslo.", "ann lie"),
        ("Ann Lie works for Acme.", "ann lie"),
        ("The film Vega, by Ann Lie, came out in Oslo.", "vega ann lie"),
        ("In 1950 Ann Lie left Oslo.", "ann lie"),
        ("Was Ann Lie born in Oslo?", "ann lie"),  # no name before the verb
    ],
)
def test_the_subject_is_what_is_named_before_the_verb(text, subject):
    assert rewards.read_sentence(text).subject == set(subject.split())


def test_a_sentence_points_back_where_it_names_nobody_first():
    texts = ["He was born.", "The album peaked.", "The birth year of Ann is 1950.", "Ann won."]
    assert [rewards.read_sentence(text).points_back for text in texts] == [True, True, False, False]


def test_the_subject_of_a_sentence_that_points_back_is_that_of_the_one_before():
    vega, ann, bo, lyra = {"vega"}, {"ann", "lie"}, {"bo", "nyman"}, {"lyra"}
    assert rewards.read_context(CONTEXT).subjects == [vega, vega, ann, bo, lyra, lyra]


# ---- The aspects, by hand --------------------------------------------------------------------------------------------


def test_a_clean_rationale_is_perfect_but_for_its_length():
    found = aspects(CLEAN, QUESTION, CONTEXT, "Oslo")
    assert [found[a] for a in ASPECTS[:7]] == [1.0] * 7
    assert found["readability"] == pytest.approx(1 / (1 + (6 / 30) ** 2))  # two sentences of six words


BY_HAND = {
    "factuality": [
        (f"{DIRECTED} Ann Lie was born in Bergen.", (0.5 + 0) / 2),  # no sentence has both names
        (f"{DIRECTED} Ann Holm was born in Oslo.", (0.75 + 0.5) / 2),  # half of one mention is found
        ("The director of Lyra is Bo Nyman.", 1.0),  # a paraphrase: the words found are all it says
        ("Bo Nyman was directed by Lyra.", 1.0),  # blind to places within a sentence, as the docstring admits
        ("Ann Lie directed Vega in 1950.", 0.0),  # no single sentence says it
        # Behind an opener the truth costs nothing, and a lie still does.
        (f"First, {DIRECTED}", 1.0),
        ("First, Vega was directed by Bo Nyman.", 0.0),
        ("First, Zelda directed Vega.", 0.0),
        # Two statements in one sentence are two steps.
        ("Since Vega was directed by Ann Lie, Ann Lie was born in Oslo.", 1.0),
        ("Vega was directed by Ann Lie, so Ann Lie was born in Oslo.", 1.0),
        ("Vega was directed by Ann Lie; therefore, Ann Lie was born in Oslo.", 1.0),
        ("Since Vega was directed by Ann Lie, Ann Lie was born in Bergen.", (0.5 + 0) / 2),
        ("Vega was directed by Ann Lie, Ann Lie was born in Oslo.", 0.0),  # a comma alone joins no statements
    ],
    "relevance": [
        (DIRECTED, 2 / 3),  # the question's terms vega, direc, born are equally rare here
        (f"{CLEAN} Bo Nyman was born in Bergen.", 2 / 3),  # one step of three hangs on nothing
        ("Lyra was directed by Bo Nyman.", 0.0),
        (CONTEXT, 0.0),  # copied whole
    ],
    "consistency": [
        (f"{BORN} Ann Lie was born in Bergen.", 0.5),
        (f"{BORN} Ann Lie was not born in Oslo.", 0.5),
        (f"{BORN} Ann Lie was never born in Oslo.", 0.5),
        ("Ann Lie works for Acme. Bo Nyman works for Acme.", 1.0),  # two subjects, whatever follows the verb
        ("Ann Lie works for Acme. Ann Lie works for Bolt.", 0.5),
        (f"{BORN} Bo Nyman was born in Oslo.", 1.0),  # another subject
        (f"{BORN} Ann Lie was born in 1950.", 1.0),  # another kind of thing
        (f"{BORN} {BORN}", 1.0),  # a repetition is no contradiction
        (f"{BORN} Ann Lie was born in Bergen. Ann Lie was born in Rome.", 0.25),  # three pairs
    ],
    "coherence": [
        (f"{BORN} {DIRECTED}", 0.5),
        (f"{DIRECTED} Bo Nyman was born in Bergen.", 0.5),
        ("Vega is a 1950 film. It was directed by Ann Lie.", 1.0),
        ("It was directed by Ann Lie. Ann Lie was born in Oslo.", 0.75),  # "It" (Vega) has no step before it
        ("Ann Lie directed Vega. Lyra is a new film. It was directed by Ann Lie.", (1 + 0 + 0.5) / 3),
    ],
    "fluency": [  # the square of the mean over neighbouring words
        ("Ann Lie was born in Oslo.", 1.0),  # every pair is in the context
        ("Oslo in is the.", np.mean([1, 1, 0, 1, 0]) ** 2),  # no verb after a preposition, no end after a determiner
        ("Lyra pleased the Oslo crowd.", np.mean([1, 0.5, 0.5, 1, 0.5, 1]) ** 2),  # open words in a row: half likely
        ("ann Lie was the owner.", np.mean([0, 1, 1, 1, 1, 1]) ** 2),  # no capital at the start
    ],
    "naturalness": [
        (f"{BORN} {BORN} {BORN}", 1 / 3),
        ("Ann Lie was born in was born in Oslo.", (1 - 1 / 9) ** 2),  # one phrase of three words comes again
        (f"As an AI language model, I know this. {BORN}", 1 / 2),
        (f"{BORN} Anyway, it goes with everything else.", 1 / 2),  # names nothing that the context or question knows
        (CONTEXT, 0.0),
        ("Vega is a 1950 film. It was directed by Ann Lie. Ann Lie was born in Oslo.", 1.0),  # half of it
        (CONTEXT.replace(" Lyra is a new film.", ""), 2 - 2 * 5 / 6),
    ],
    "readability": [
        ("Ann was " + "very " * 27 + "happy.", 1 / 2),  # one sentence of 30 words
        ("Ann (Lie) was born in Oslo.", 1 / (1 + (6 / 30) ** 2 + (2 / 6 / 0.15) ** 2)),
    ],
}


@pytest.mark.parametrize(
    ("aspect", "rationale", "expected"), [(aspect, *case) for aspect, cases in BY_HAND.items() for case in cases]
)
def test_an_aspect_by_hand(aspect, rationale, expected):
    # The measure itself, because a text without a statement gets 0 from `aspects`.
    assert getattr(rewards, aspect)(read(rationale, QUESTION, CONTEXT)) == pytest.approx(expected)


FIRST, YOUNGER = "Who was born first, Ann Lie or Bo Nyman?", "Who is younger, Ann Lie or Bo Nyman?"
SAME = "Were Ann Lie and Bo Nyman born in the same city?"
YEARS = "Ann Lie was born in 1950. Bo Nyman was born in 1940."
APART = "Ann Lie was born in Oslo. Bo Nyman was born in Bergen."
TOGETHER = "Ann Lie was born in Oslo. Oslo bred Bo Nyman."


@pytest.mark.parametrize(
    ("question", "rationale", "prediction", "expected"),
    [
        (QUESTION, CLEAN, "Oslo", 1.0),
        (QUESTION, CLEAN, None, 1.0),
        (QUESTION, CLEAN, "Bergen", 0.0),
        (QUESTION, CLEAN, "yes", 0.5),  # nothing can be told
        (QUESTION, DIRECTED, None, 0.25),
        (QUESTION, BORN, None, 0.0),  # nothing leads from Vega to Ann Lie
        (QUESTION, f"{CLEAN} Bo Nyman was born in Bergen.", "Oslo", (2 / 3) ** 2),  # a side remark
        (QUESTION, f"{CLEAN} So the answer is Bergen.", "Oslo", 0.0),  # the text's own conclusion comes first
        (FIRST, YEARS, "Bo Nyman", 1.0),
        (FIRST, YEARS, "Ann Lie", 0.0),
        (FIRST, "Ann Lie was born in 1950. Bo Nyman lives in Oslo.", None, 0.5),  # one year of two
        ("Who was born first, Ann Lie or Bo Lie?", YEARS.replace("Nyman", "Lie"), "Ann Lie", 0.0),  # a shared name
        ("Who was born first, Ann Lie or Bo Lie?", YEARS.replace("Nyman", "Lie"), "Bo Lie", 1.0),
        (YOUNGER, YEARS, "Ann Lie", 1.0),
        (SAME, APART, "no", 1.0),
        (SAME, APART, "yes", 0.0),
        (SAME, TOGETHER, "yes", 1.0),
        ("Are both Ann Lie and Bo Nyman actors?", YEARS, "yes", 0.5),  # nothing can be told
    ],
)
def test_logicality_by_hand(question, rationale, prediction, expected):
    context = CONTEXT if question == QUESTION else f"{CONTEXT} {rationale}"
    assert aspects(rationale, question, context, prediction)["logicality"] == pytest.approx(expected)


# ---- Real text: openers and letters that M_S cannot write ------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("First, Ann Lie was born.", "Ann Lie was born."),
        ("Then Ann Lie was born.", "Ann Lie was born."),
        ("Next the film was made.", "The film was made."),
        ("Step 2: Ann Lie was born.", "Ann Lie was born."),
        ("(b) Therefore, Ann Lie was born.", "Ann Lie was born."),
        ("3. Ann Lie was born.", "Ann Lie was born."),
        ("- As we can see here, Ann Lie was born.", "Ann Lie was born."),
        ("We know that Ann Lie was born.", "Ann Lie was born."),
        ("We know that the film was made.", "The film was made."),
        ("We can see that it was made.", "It was made."),
        ("It is known that the film was made.", "The film was made."),
        ("It is the film that he made.", "It is the film that he made."),  # a statement, with its own "that"
        ("In 1950, Ann Lie was born.", "In 1950, Ann Lie was born."),  # a year says something
        ("Vega, a film, was made.", "Vega, a film, was made."),  # the context knows the name
        ("Zelda Lie was born.", "Zelda Lie was born."),  # in the context Lie never begins a name
        ("Zelda was born.", "Zelda was born."),
    ],
)
def test_an_opener_is_cut_and_a_name_is_not(written, read_as):
    context = rewards.Context(CONTEXT + " In 1950 the film Vega won. So Ann Lie did.")
    assert rewards.without_opener(written, context) == read_as


def test_a_clause_before_the_conclusion_is_a_step():
    told = f"{DIRECTED} Since Ann Lie was born in Oslo, the answer is Oslo."
    assert [step.support for step in read(told, QUESTION, CONTEXT).steps] == [1.0, 1.0]
    assert len(read(told, QUESTION, CONTEXT).sentences) == 3


@pytest.mark.parametrize(
    "statement",
    [
        "Ann Lie, the daughter of Bo Nyman, was born in Oslo.",
        "Ann Lie, who directed Vega, was born in Oslo.",
        "Ann Lie was born in Oslo, Norway.",
        "Lyra is a new film, directed by Bo Nyman.",
    ],
)
def test_one_statement_with_commas_is_one_step(statement):
    assert len(read(statement, QUESTION, CONTEXT).steps) == 1


def test_letters_that_m_s_cannot_write_cost_nothing():
    assert rewards.fold("Łódź, Ångström, Strauß, smørrebrød") == "Lodz, Angstrom, Strauss, smorrebrod"
    accented = CONTEXT.replace("Bo Nyman", "Bø Nymán")
    question = "Where was the director of Lyra born?"
    told = "Lyra was directed by Bo Nyman. Bo Nyman was born in Bergen."
    assert aspects(told, question, accented, "Bergen") == aspects(told, question, CONTEXT, "Bergen")
    assert aspects(told.replace("Bo", "Bø"), question, accented)["factuality"] == 1.0


# ---- Properties ------------------------------------------------------------------------------------------------------

pieces = st.one_of(
    st.text(max_size=20), st.sampled_from([*CONTEXT.split(), *rewards.CLASS, "So the answer is", "\n", ". ", "İ", "ß"])
)
texts = st.lists(pieces, max_size=25).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(texts, texts, texts, st.none() | texts)
def test_every_score_of_any_text_is_in_its_range_and_always_the_same(rationale, question, context, prediction):
    found = aspects(rationale, question, context, prediction)
    assert tuple(found) == ASPECTS and all(type(v) is float and 0 <= v <= 1 for v in found.values())
    for cache in (rewards.read_sentence, rewards.fold, rewards.read_context):
        cache.cache_clear()
    assert aspects(rationale, question, context, prediction) == found


@pytest.mark.parametrize(
    "rationale",
    ["", "?!", QUESTION, QUESTION.replace("?", "."), "Oslo", "in Oslo, Norway.", "So the answer is Oslo."],
)
def test_without_a_statement_there_is_nothing_to_score(rationale):
    assert set(aspects(rationale, QUESTION, CONTEXT, "Oslo").values()) == {0.0}


# ---- TinyWiki: what the reward ranks ---------------------------------------------------------------------------------


def names_and_years(text):
    return sorted(set(re.findall(r"\b(?!The\b)[A-Z]\w*|\b\d+\b", text)))


def swapped_name(example, rng):
    """One name or year of one step becomes another of the context."""
    steps = list(example.supporting_sentences)
    i = rng.randrange(len(steps))
    old = rng.choice(names_and_years(steps[i]))
    others = [w for w in names_and_years(example.context) if w.isdigit() == old.isdigit() and w not in steps[i]]
    steps[i] = steps[i].replace(old, rng.choice(others))
    return " ".join(steps)


def off_support(example, rng):
    return rng.choice([s for s in example.sentences if s not in example.supporting_sentences])


EDITS = {
    "first half": lambda e, rng: " ".join(e.supporting_sentences[: len(e.supporting_sentences) // 2]),
    "second half": lambda e, rng: " ".join(e.supporting_sentences[len(e.supporting_sentences) // 2 :]),
    "last hop wrong": lambda e, rng: " ".join([*e.supporting_sentences[:-1], off_support(e, rng)]),
    "a name swapped": swapped_name,
    "one sentence twice": lambda e, rng: " ".join(e.supporting_sentences[:1] * 2),
    "a true sentence": off_support,
    "whole context": lambda e, rng: e.context,
}


@pytest.fixture(scope="module")
def tiny():
    return data.load("tiny", "dev", 150)


def totals(examples, of):
    rng = random.Random(0)
    return np.array([rewards.r_aspect(aspects(of(e, rng), e.question, e.context)) for e in examples])


@pytest.mark.parametrize("edit", EDITS)
def test_a_correct_rationale_ranks_above_its_edits_in_total(tiny, edit):
    gold = totals(tiny, lambda e, rng: " ".join(e.supporting_sentences))
    edited = totals(tiny, EDITS[edit])
    assert validity.auroc_with_interval(gold, edited, np.arange(len(tiny)))[0] >= 0.85
    assert gold.mean() > edited.mean() + 0.7 and gold.mean() > 7.5
    if edit == "whole context":
        assert edited.max() < gold.min()


# ---- The reward ------------------------------------------------------------------------------------------------------


def test_r_aspect_is_the_weighted_sum():
    scores = dict(zip(ASPECTS, [1, 0.5, 0.25, 0, 1, 1, 1, 0.125], strict=True))
    assert rewards.r_aspect(scores) == 4.875
    weights = parse_weights("factuality=2, fluency=0,relevance=-1", ASPECTS)
    assert rewards.r_aspect(scores, weights) == 2 - 0.5 + 0.25 + 0 + 1 + 0 + 1 + 0.125
    assert parse_weights("", ASPECTS) == parse_weights("1", ASPECTS) == dict.fromkeys(ASPECTS, 1.0)
    assert parse_weights("0,fluency=2", ASPECTS) == dict.fromkeys(ASPECTS, 0.0) | {"fluency": 2.0}


@pytest.mark.parametrize(("text", "said"), [("fluency", "no number"), ("fluency=x", "no number"), ("style=1", "style")])
def test_a_wrong_weight_gets_one_sentence(text, said):
    with pytest.raises(UserError, match=said):
        parse_weights(text, ASPECTS)


def test_r_task_is_exact_match_or_f1_with_the_best_gold_answer():
    assert rewards.r_task("the Oslo", ["Bergen", "Oslo"]) == 1.0
    assert rewards.r_task("Oslo city", ["Bergen", "Oslo"]) == 0.0
    assert rewards.r_task("Oslo city", ["Bergen", "Oslo"], metric="f1") == pytest.approx(2 / 3)


def test_the_sum_is_the_sum():
    assert Combination(task_weight=2.0)([1.0, 2.5], [0.0, 1.0]) == [1.0, 4.5]


pairs = st.tuples(st.floats(0, 8), st.sampled_from([0.0, 1.0]))  # R_aspect, R_taskAcc
batches = st.lists(st.lists(pairs, min_size=1, max_size=9), min_size=1, max_size=6)


@given(batches, st.floats(0, 3))
def test_the_standardized_combination_agrees_with_numpy_and_continues_from_its_state(given_batches, task_weight):
    combination = Combination("standardized", task_weight)
    for i, batch in enumerate(given_batches):
        combination = Combination(**json.loads(json.dumps(vars(combination))))  # as a resumed run does
        result = combination(*zip(*batch, strict=True))
        seen = np.array([pair for b in given_batches[: i + 1] for pair in b])
        scaled = (np.array(batch) - seen.mean(0)) / np.maximum(seen.std(0), 0.05)
        np.testing.assert_allclose(result, scaled[:, 0] + task_weight * scaled[:, 1], atol=1e-8)


# ---- Validity --------------------------------------------------------------------------------------------------------


def test_auroc_against_a_count_over_all_pairs():
    rng = np.random.default_rng(1)
    clean, corrupted = rng.integers(3, 9, 40) / 8, rng.integers(0, 7, 40) / 8
    brute = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in clean for b in corrupted])
    value, low, high = validity.auroc_with_interval(clean, corrupted, np.arange(40))
    assert value == pytest.approx(brute) and low < value < high
    resampled = []
    for _ in range(400):  # the textbook bootstrap: draw records, count again
        i = rng.integers(0, 40, 40)
        resampled.append(((clean[i][:, None] > corrupted[i]) + 0.5 * (clean[i][:, None] == corrupted[i])).mean())
    assert np.allclose([low, high], np.quantile(resampled, [0.025, 0.975]), atol=0.03)


def test_a_record_with_two_texts_widens_the_interval():
    rng = np.random.default_rng(2)
    clean, corrupted = rng.random(30) + 0.3, rng.random(30)
    twice = np.tile(clean, 2), np.tile(corrupted, 2)
    apart = validity.auroc_with_interval(*twice, np.arange(60))
    together = validity.auroc_with_interval(*twice, np.tile(np.arange(30), 2))
    assert together[0] == apart[0] and together[2] - together[1] > 1.2 * (apart[2] - apart[1])


def test_two_steps_are_joined_in_one_sentence():
    example = data.Example("i", "Where?", (), "Oslo")
    record = validity.Clean(example, ["Vega won.", "The film is by Ann.", "Her city is Oslo."], [], [])
    for name, joined in (
        ("Since A, B.", "Since the film is by Ann, her city is Oslo."),
        ("A, so B.", "The film is by Ann, so her city is Oslo."),
    ):
        assert validity.HARMLESS[name](record) == f"Vega won. {joined} So the answer is Oslo."


def test_corruptions_do_what_their_names_say():
    steps = ("Vega was directed by Ann Lie.", "Ann Lie was raised by Bo Nyman.", "Bo Nyman was born in Oslo.")
    lyra = ("Lyra is by Cy Dale now.", "Cy Dale lives in Rome now.", "Lyra is a film of Cy Dale.")
    paragraphs = (data.Paragraph("Vega", steps), data.Paragraph("Lyra", lyra))
    example = data.Example("i", "Where?", paragraphs, "Oslo", (), ((0, 0), (0, 1), (0, 2)), "bridge")
    record = validity.Clean(example, list(steps), ["Vega", "Ann Lie", "Bo Nyman"], ["Vega", "Ann Lie"])
    far_away = (data.Paragraph("Z", ("Zed Young saw Quito.", "Dee Wu saw Lima.")),)
    elsewhere = validity.Clean(data.Example("j", "Q?", far_away, "Lima"), [], [], [])

    def corrupt(aspect, variant):
        function, *_ = validity.CORRUPTIONS[aspect]
        one, again = (function(record, [elsewhere], random.Random(f"{aspect} {variant}"), variant) for _ in "12")
        assert one == again
        return one

    conclusion = " So the answer is Oslo."
    whole = record.text()
    assert whole == " ".join(steps) + conclusion
    assert any(name in corrupt("factuality", 0) for name in ("Lyra", "Cy Dale", "Rome"))
    assert any(name in corrupt("factuality", 1) for name in ("Zed Young", "Quito", "Dee Wu", "Lima"))
    assert [sum(step in corrupt("relevance", variant) for step in steps) for variant in (0, 1)] == [0, 2]
    assert corrupt("logicality", 0) == whole.removeprefix(f"{steps[0]} ")
    changed = corrupt("logicality", 1)
    assert changed.startswith(whole.removesuffix(conclusion)) and conclusion not in changed
    assert corrupt("consistency", 0).count(" was not ") == 1
    shuffled = corrupt("coherence", 0)
    assert all(step in shuffled for step in steps) and not shuffled.startswith(steps[0])
    assert sorted(corrupt("fluency", 0).split()) == sorted(whole.split())
    dropped = corrupt("fluency", 1).split()
    assert len(dropped) == len(whole.split()) - 6 and set(dropped) <= set(whole.split())
    assert corrupt("readability", 0).count(".") == 1
    assert len(corrupt("readability", 1)) > len(whole) + 8


# Where the rules do not reach .90 on the dev samples (lab/validity.py says why): floors set below what was measured, so
# here the test only guards against a loss.
BELOW = {("HotpotQA", "coherence"): 0.55, ("HotpotQA", "logicality"): 0.86, ("2WikiMultihopQA", "factuality"): 0.80}


@pytest.mark.parametrize(
    ("name", "file"),
    [("HotpotQA", "hotpotqa_dev_sample.json"), ("2WikiMultihopQA", "2wikimultihop_dev_sample.json")],
)
def test_each_aspect_falls_on_its_own_corruption_of_real_rationales(name, file, monkeypatch):
    if not (harness.SAMPLES / file).exists():
        pytest.skip("the sample files are not at hand")
    monkeypatch.setattr(validity, "BOOTSTRAPS", 2)
    listed = json.loads(validity.IDS.read_text(encoding="utf-8"))[name]
    assert not set(listed["dev"]) & set(listed["train"])
    records = validity.load(harness.SAMPLES / file, set(listed["dev"]))
    if name == "HotpotQA":
        monkeypatch.setattr(validity, "HACKS", {})
        changes = validity.guards(records[:60])["harmless"]
        assert len(changes) == 22  # openers of every kind change no aspect
        assert max(abs(row[a][0]) for row in changes.values() for a in ASPECTS) < 0.07
    found = validity.measure(records)
    reached = {aspect: found["matrix"][aspect][aspect][0] for aspect in ASPECTS}
    short = {a: v for a, v in reached.items() if v < BELOW.get((name, a), 0.9)}
    assert not short
    correlations = np.array(found["correlations"])
    assert np.abs(correlations - np.eye(8)).max() < 0.8  # eight things, not one
    trivial = {kind: mean for kind, (mean, _, _) in found["trivial"].items()}
    assert all(mean < trivial["clean"] - 0.7 for kind, mean in trivial.items() if kind != "clean")
    assert max(trivial[kind] for kind in ("empty", "the question repeated", "the bare answer")) < 0.5
