"""Proofs for tiny/world.py and its tokenizer: a reader that knows only names and words solves every question from its
sentences, and a scan of all texts finds no pair of names that two splits share."""

import random
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import data
import lmcot
from model import load_tokenizer
from plumbing.errors import UserError
from tiny import pretrain, world

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "dev", "test", "ood")
NAMES = {name for kind, names in world.NAMES.items() if kind != "year" for name in names}
TASKS = ("bind", "recite", "ask", "lookup", "follow-up", "single answer", "cot", "guided", "compare", "ranks")
TOKENIZER = pretrain.make_tokenizer()

# What a text about a relation says, in our words: sentences and questions alike hold one of these.
CUES = {
    "director": "direct", "composer": "music|compos", "release year": "released|came out", "author": "author|wr[io]t",
    "publisher": "publish", "publication year": "published|appeared", "mother": "mother", "father": "father",
    "spouse": "spouse|married", "birthplace": "born|birthplace", "residence": "live|home", "birth year": "born|birth",
    "employer": "work|employ", "headquarters": "based|seat", "founder": "found", "founding year": "founded|existed",
    "country": "country|city in|lies", "mayor": "mayor", "city year": "built|city",
}  # fmt: skip
INFERENCES = {  # the same for kinship words
    "maternal grandmother": ["mother", "mother"], "maternal grandfather": ["mother", "father"],
    "paternal grandmother": ["father", "mother"], "paternal grandfather": ["father", "father"],
    "mother-in-law": ["spouse", "mother"], "father-in-law": ["spouse", "father"],
}  # fmt: skip


@cache
def things(text):
    """The names and years of a text, in order."""
    return [word for word in re.findall(r"\w+", text) if word in NAMES or re.fullmatch(r"19\d\d", word)]


def pairs(texts):
    """Every pair of names that stands in one sentence or question of the texts."""
    found = set()
    for text in texts:
        for sentence in re.split(r"[.?]", text):
            names = [thing for thing in things(sentence) if thing in NAMES]
            found |= {frozenset(pair) for pair in combinations(set(names), 2)}
    return found


def follow(start, sentences):
    """From a name through sentences of two things each: the other thing every time. None where the thread is lost."""
    for sentence in sentences:
        two = things(sentence)
        if len(two) != 2 or start not in two:
            return None
        start = two[1 - two.index(start)]
    return start


def solve(question, sentences):
    """The answer, by reading alone: chains are followed, comparisons compare what the two names lead to."""
    names = things(question)
    if len(names) == 1:
        return follow(names[0], sentences)
    a, b = names
    half = len(sentences) // 2
    ends = follow(a, sentences[:half]), follow(b, sentences[half:])
    if None in ends:
        return None
    if re.match(r"(Were|Do|Are) ", question):
        return "yes" if ends[0] == ends[1] else "no"
    if not all(end.isdigit() for end in ends) or ends[0] == ends[1]:
        return None
    (earlier, later) = (a, b) if int(ends[0]) < int(ends[1]) else (b, a)
    return {"first": earlier, "later": later}[re.search("first|later", question)[0]]


@pytest.fixture(scope="module")
def wiki():
    """The records of every split, of train the first 3,000."""
    return {split: world.records(split, size=min(3000, world.SIZES[split])) for split in SPLITS}


@pytest.fixture(scope="module")
def every(wiki):
    return [record for records in wiki.values() for record in records]


@pytest.fixture(scope="module")
def pairs_of(wiki):
    return {split: pairs(all_texts(records)) for split, records in wiki.items()}


def supporting(record):
    texts = dict(record["context"])
    return [texts[title][i] for title, i in record["supporting_facts"]]


def all_texts(records):
    for record in records:
        yield record["question"]
        for _, sentences in record["context"]:
            yield from sentences


# ------------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("split", SPLITS)
def test_data_load_reads_every_record_with_all_its_supporting_facts(split, wiki, monkeypatch):
    monkeypatch.setattr(world, "records", lambda wanted, **_: wiki[wanted])  # generated once; the rest is data.py
    examples = data.load("tiny", split, context="all")
    assert len(examples) >= 500
    for example, record in zip(examples, wiki[split], strict=True):
        assert (example.id, example.question, example.answer) == (record["_id"], record["question"], record["answer"])
        assert example.supporting_sentences == supporting(record)


def test_ids_and_questions_are_unique_and_titles_are_unique_within_a_record(wiki):
    for records in wiki.values():
        assert len({r["_id"] for r in records}) == len({r["question"] for r in records}) == len(records)
        assert all(len(dict(r["context"])) == len(r["context"]) for r in records)


def test_a_seed_always_gives_the_same_records_and_another_seed_others(wiki):
    assert world.records("test", world.SEED, 60) == wiki["test"][:60]
    others = world.records("test", world.SEED + 1, 60)
    assert len({r["question"] for r in others} & {r["question"] for r in wiki["test"][:60]}) < 6


def test_reading_the_supporting_sentences_gives_the_answer(every):
    for record in every:
        assert solve(record["question"], supporting(record)) == record["answer"], record


def test_each_evidence_is_what_its_supporting_sentence_states_in_one_of_several_ways(every):
    forms = defaultdict(set)
    for record in every:
        titles = [title for title, _ in record["supporting_facts"]]
        for (s, relation, o), sentence, title in zip(record["evidences"], supporting(record), titles, strict=True):
            assert title == s and sorted(things(sentence)) == sorted((s, o)), record
            assert re.search(CUES[relation], sentence), (relation, sentence)
            forms[relation].add(sentence.replace(s, "S").replace(o, "O"))
    assert set(forms) == set(CUES)
    assert all(len(ways) >= 2 for ways in forms.values()), forms


HOPS = {"compositional": 2, "inference": 2, "unseen_pair": 2, "three_hops": 3, "comparison": 1, "bridge_comparison": 2}


def test_questions_ask_for_the_relations_of_their_evidences_and_have_the_hops_of_their_type(every):
    for record in every:
        question, relations = record["question"], [relation for _, relation, _ in record["evidences"]]
        subject, *others = things(question)
        hops = relations[: HOPS[record["type"]]]
        assert relations == hops * (1 + len(others)), record  # the two sides of a comparison ask for the same
        if record["type"] == "inference":
            assert [INFERENCES[word] for word in INFERENCES if word in question] == [hops], record
        else:
            assert all(re.search(CUES[relation], question) for relation in hops), record
        if not others:  # the C of the B of the A of X: read from X backwards
            assert question.startswith("When") == record["answer"].isdigit(), record
        if record["type"] in ("compositional", "unseen_pair", "three_hops"):
            words = question.replace(subject, "X")  # "Veworks" says nothing of work
            places = [max(m.start() for m in re.finditer(CUES[r], words)) for r in hops[:-1]]
            assert places == sorted(places, reverse=True), record


def test_no_paragraph_contradicts_the_gold_facts_of_its_record(every):
    """A paragraph says three different things of its subject, and who is married to X is the one X is married to."""
    for record in every:
        married = defaultdict(set)
        for title, sentences in record["context"]:
            assert len(set(sentences)) == len(sentences)
            assert all(len(things(s)) == 2 for s in sentences) and all(title in things(s) for s in sentences[:3])
            for a, b in [things(s) for s in sentences if re.search(CUES["spouse"], s)]:
                married[a].add(b)
                married[b].add(a)
        assert all(len(others) == 1 for others in married.values()), (record["_id"], dict(married))


def test_wherever_a_step_leads_on_the_same_is_said_of_somebody_else_with_another_answer(every):
    """No question is answered by looking for the one sentence of the gold paragraphs that has the asked relation."""
    others = Counter()
    for record in every:
        texts, steps = dict(record["context"]), record["evidences"]
        for (s, _, o), (then, asked, end) in pairwise(steps):
            if o != then:
                continue
            *own, aside = texts[s]
            assert len(own) == 3 and re.search(CUES[asked], aside)
            assert s not in things(aside) and then not in things(aside)
            assert end not in things(aside), (record, aside)
            others[asked, any(set(things(aside)) & set(things(sentence)) for sentence in own)] += 1
    for relation in {relation for relation, _ in others}:
        named, stranger = others[relation, True], others[relation, False]
        assert named + stranger > 50, relation
    assert sum(n for (_, named), n in others.items() if named) > 0.5 * others.total()


@pytest.mark.parametrize("split", ("train", "dev", "test"))
def test_a_split_holds_four_types_and_ten_relations_and_no_answer_is_right_by_habit(split, wiki):
    records = wiki[split]
    types = Counter(r["type"] for r in records)
    assert set(types) == {"compositional", "comparison", "bridge_comparison", "inference"}
    assert min(types.values()) >= 0.05 * len(records)
    assert len({relation for r in records for _, relation, _ in r["evidences"]}) >= 10
    answers = Counter(r["answer"] for r in records)
    n = answers["yes"] + answers["no"]
    assert n > 40 and abs(answers["yes"] - n / 2) < 3.5 * n**0.5 / 2 + 0.03 * n, (answers["yes"], n)
    words = Counter(word for r in records for word in re.findall("(first|later), ", r["question"]))
    assert 0.6 < words["first"] / words["later"] < 1.6
    order = [things(r["question"]).index(r["answer"]) for r in records if r["answer"] in things(r["question"])]
    assert 0.4 < sum(order) / len(order) < 0.6  # the first of the two names is no better a guess than the second


# ------------------------------------------------------------------------------------------------ splits


def test_no_pair_of_names_stands_in_sentences_or_questions_of_two_splits(pairs_of):
    assert all(len(found) > 500 for found in pairs_of.values())
    for a, b in combinations(SPLITS, 2):
        assert pairs_of[a].isdisjoint(pairs_of[b]), (a, b, list(pairs_of[a] & pairs_of[b])[:3])
    # The scan can find something: another seed's worlds of the same split do repeat pairs.
    assert len(pairs_of["test"] & pairs(all_texts(world.records("test", world.SEED + 1, 300)))) > 100


@pytest.mark.parametrize("task", TASKS)
def test_no_pretraining_text_holds_a_pair_of_names_of_dev_test_or_ood(task, pairs_of):
    rng = random.Random(f"pairs {task}")
    texts = [pretrain.make_text(task, rng) for _ in range(400)]
    # The target of "bind" is no sentence: it lists the pairs of the source.
    found = pairs(source if task == "bind" else f"{source} {target}" for source, target in texts)
    assert len(found) > 300
    for split in ("dev", "test", "ood"):
        assert found.isdisjoint(pairs_of[split])


def test_relation_pairs_of_ood_questions_are_in_no_other_split_and_in_no_two_hops_of_pretraining(wiki):
    def steps(records):  # two hops in a row, of chains and of each side of a comparison
        for record in records:
            for a, b in zip(record["evidences"], record["evidences"][1:], strict=False):
                if a[2] == b[0]:
                    yield a[1], b[1]

    unseen = set(steps(r for r in wiki["ood"] if r["type"] == "unseen_pair"))
    assert len(unseen) >= 5
    for split in ("train", "dev", "test"):
        seen = set(steps(r for r in wiki[split] if r["type"] != "bridge_comparison"))
        assert len(seen) > 20 and unseen.isdisjoint(seen)
    bridges = set(steps(r for r in wiki["train"] if r["type"] == "bridge_comparison"))
    assert bridges and unseen.isdisjoint(bridges)
    assert {r["type"] for r in wiki["ood"]} == {"unseen_pair", "three_hops"}
    assert any(len(r["evidences"]) == 3 for r in wiki["ood"])


# ------------------------------------------------------------------------------------------------ tokenizer


@settings(max_examples=100, deadline=None)
@given(st.text().filter(lambda text: not re.search("<pad>|</s>|<unk>", text)))  # special pieces are what they say
def test_no_text_is_unknown_and_each_comes_back_but_for_outer_white_space_and_breaks(text):
    ids = TOKENIZER.encode(text).ids
    assert 2 not in ids and 0 not in ids and ids.index(1) == len(ids) - 1
    expected = re.sub(r"[\n\t]", " ", text).strip()
    assert TOKENIZER.decode(ids).strip() == expected.replace("▁", " ").strip()


def test_each_name_year_and_word_of_the_world_is_one_piece(wiki):
    for name in [*NAMES, *(str(year) for year in range(1920, 1980)), "yes", "no"]:
        assert len(TOKENIZER.encode(name).ids) == 2, name  # itself and EOS
    words = {w for split in SPLITS for r in wiki[split][:300] for t in all_texts([r]) for w in re.findall(r"[\w-]+", t)}
    assert len(words) > 400
    assert [w for w in words if len(TOKENIZER.encode(w).ids) != 2] == []


def test_transformers_reads_the_embedded_tokenizer_as_we_do():
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(ROOT / "tiny" / "small")
    assert (theirs.pad_token_id, theirs.eos_token_id, TOKENIZER.token_to_id("<unk>")) == (0, 1, 2)
    for text in (lmcot.COT, "Who directed Stormgate?", "", "Ünï — \t no.", "line\nbreak", "東京 and <0x41>"):
        ids = TOKENIZER.encode(text).ids
        assert theirs(text).input_ids == ids
        assert theirs.decode(ids, skip_special_tokens=True) == TOKENIZER.decode(ids)


def test_only_the_embedded_pairs_tokenizer_refuses_words_and_names_those_that_it_has_never_read():
    embedded = SimpleNamespace(tokenizer=load_tokenizer(ROOT / "tiny" / "small"))
    others = [SimpleNamespace(tokenizer=Tokenizer(WordLevel({"who": 0}))), SimpleNamespace(name="a server's")]
    for example in data.load("tiny", "dev", limit=20):
        world.refuse_unknown_words("this", example, embedded, *others)
    english = data.Example("1", "Who wrote Hamlet?", (data.Paragraph("", ("Shakespeare wrote Hamlet.",)),), "")
    world.refuse_unknown_words("this", english, *others)
    with pytest.raises(UserError, match="^this is outside TinyWiki: .* never read 'Hamlet', 'Shakespeare' and could"):
        world.refuse_unknown_words("this", english, *others, embedded)
