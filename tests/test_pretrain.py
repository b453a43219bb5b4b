"""Proofs for tiny/pretrain.py and tiny/probe.py: what the two LMs are taught, and how their reading is measured."""

import random
import re

import harness
import pytest
import torch
from test_world import solve

import lmcot
from model import T5, load_tokenizer
from plumbing.errors import UserError
from plumbing.server import Completion
from tiny import pretrain, probe, world

TOKENIZER = pretrain.make_tokenizer()
NAMES = {name for names in world.NAMES.values() for name in names}  # years, too


def names_of(text):
    return [word for word in re.findall(r"\w+", text) if word in NAMES]


def sentences_of(text):
    return [sentence.strip() for sentence in re.findall(r"[^.]+\.", text)]


def questions_of(text):
    return re.findall(r"\w[^?]+\?", text)


def parts(prompt):
    """What stands behind "Question:", "Context:" and "Reasoning:"; the last two as sentences."""
    pattern = r"(?s).*?Question: (.*?)\s+Context: (.*?)(?:\s+Reasoning:(.*?))?\s*(?:Answer:|Let's .*)?"
    question, context, rationale = re.fullmatch(pattern, prompt).groups()
    return question, sentences_of(context), sentences_of(rationale or "")


def named(wording, text):
    """The names that stand in a text where its wording has {s} and {o}; None if it is worded otherwise."""
    form = re.escape(wording).replace(r"\{s\}", r"(?P<s>(that )?\w+)").replace(r"\{o\}", r"(?P<o>\w+)")
    found = re.fullmatch(form, text)
    return found and found.groupdict()


def stated(sentence):
    """Relation, subject and object of a sentence. test_world.py shows that its words say this."""
    for name, relation in world.RELATIONS.items():
        for wording in relation.sentences:
            if found := named(wording, sentence):
                return name, found["s"], found["o"]


def asked(question):
    """Relation and subject of a single question."""
    for name, relation in world.RELATIONS.items():
        if found := named(relation.question, question):
            return name, found["s"]


def texts(task, number):
    """Source and target of texts of a task, and the pieces of the target that are lessons, as text."""
    rng = random.Random(task)
    for _ in range(number):
        source, target = pretrain.make_text(task, rng)
        encoded = TOKENIZER.encode(target)
        lessons = pretrain.lessons_of(task, encoded.tokens)
        taught = [piece for piece, is_lesson in zip(encoded.ids, lessons, strict=True) if is_lesson]
        yield source, target, TOKENIZER.decode(taught).strip()


# ---- Texts -----------------------------------------------------------------------------------------------------------


def test_a_text_to_bind_gives_the_pairs_that_its_sentences_state_and_its_lessons_are_the_objects():
    for source, target, taught in texts("bind", 50):
        subjects, objects = target.split()[::2], target.split()[1::2]
        facts = [stated(sentence) for sentence in sentences_of(source)]
        assert sorted(zip(subjects, objects, strict=True)) == sorted(fact[1:] for fact in facts)
        assert len(facts) == 8 and len({relation for relation, _, _ in facts}) == 1
        assert taught.split() == objects


def test_the_lessons_of_a_recitation_are_the_second_names_of_sentences_of_the_context():
    for source, target, taught in texts("recite", 100):
        recited = sentences_of(target)
        assert set(recited) <= set(sentences_of(source)) and len(recited) <= 10
        assert taught.split() == [names_of(sentence)[1] for sentence in recited]


def test_sentences_that_are_asked_for_answer_the_question_about_the_name_before_them_and_only_they_are_lessons():
    numbers = set()
    for source, target, taught in texts("ask", 100):
        questions, context, _ = parts(source)
        questions = list(map(asked, questions_of(questions)))
        answered = [part.partition(": ")[::2] for part in sentences_of(target)]
        assert sorted(stated(sentence)[:2] for _, sentence in answered) == sorted(questions)
        for name, sentence in answered:
            assert sentence in context and stated(sentence)[1] == name
        assert taught == " ".join(sentence for _, sentence in answered)
        numbers.add(len(answered))
    assert numbers >= {1, 2, 3, 4}


def test_lookup_targets_are_the_sentences_that_answer_the_questions_in_their_order_and_all_of_them_is_taught():
    numbers = set()
    for source, target, taught in texts("lookup", 300):
        questions, context, _ = parts(source)
        sentences = sentences_of(target)
        assert list(map(asked, questions_of(questions))) == [stated(sentence)[:2] for sentence in sentences]
        assert set(sentences) <= set(context) and len(set(sentences)) == len(sentences)
        assert source == lmcot.RATIONALE.format(question=questions, context=" ".join(context))
        assert taught == target
        numbers.add(len(sentences))
    assert numbers == {1, 2, 3}


def test_follow_up_questions_are_about_whom_the_first_sentence_names_and_never_an_unseen_pair_of_relations():
    unseen = set()
    for record in world.records("ood"):
        if record["type"] == "unseen_pair":
            unseen.add(tuple(relation for _, relation, _ in record["evidences"]))
    seen = set()
    for source, target, _ in texts("follow-up", 400):
        questions, context, _ = parts(source)
        (one, start), (two, that) = map(asked, questions_of(questions))
        first, then = sentences_of(target)
        relation, subject, between = stated(first)
        assert first in context and then in context
        assert (relation, subject) == (one, start) and stated(then)[:2] == (two, between)
        assert between in world.NAMES[that.removeprefix("that ")]
        seen.add((one, two))
    assert len(seen) > 30 and len(unseen) >= 5 and not seen & unseen


def test_single_answers_stand_in_a_sentence_that_answers_the_question():
    for source, target, _ in texts("single answer", 200):
        question, context, _ = parts(source)
        assert (*asked(question), target) in map(stated, context), source
        assert source == lmcot.STANDARD.format(question=question, context=" ".join(context))


def test_guided_answers_follow_from_a_rationale_that_has_at_most_one_sentence_too_many():
    exact = 0
    for source, answer, _ in texts("guided", 300):
        question, context, rationale = parts(source)
        assert all(sentence in context for sentence in rationale)
        fewer = [rationale[:i] + rationale[i + 1 :] for i in range(len(rationale))]
        assert answer in [solve(question, some) for some in [rationale, *fewer]], source
        exact += solve(question, rationale) == answer
    assert 200 < exact < 285  # in a fifth of the texts there is one more


def test_years_and_names_are_put_in_order():
    for source, target, _ in texts("order", 100):
        years = re.findall(r"\d+", source)
        assert target.split() == sorted(years, reverse=" later?" in source) and len(years) == 8
    for source, target, _ in texts("ranks", 100):
        year_of = dict(re.findall(r"(\w+) (\d+)", source))
        years = [year_of[name] for name in target.split()]
        assert years == sorted(years, reverse=" later?" in source) and len(year_of) == len(years) in (2, 4)


# ---- Habits ----------------------------------------------------------------------------------------------------------


def chains(slips, leaps, number=200):
    """Records with the chains of thought that are made of them: (record, sentences said, answer)."""
    rng = random.Random(f"{slips} {leaps}")
    for _ in range(number):
        w = world.World("train", str(rng.random()))
        record = w.record(w.rng.choices(world.TYPES, world.WEIGHTS)[0], 0)
        source, target = pretrain.chain_text(record, w, rng, slips, leaps)
        assert source.startswith(lmcot.COT.partition("{")[0]) and record["question"] in source
        said, answer = lmcot.parse_cot(target)
        yield record, sentences_of(said), answer


def gold(record):
    text = dict(record["context"])
    return [text[title][i] for title, i in record["supporting_facts"]]


def test_a_chain_without_habits_is_the_gold_rationale_and_answer():
    for record, said, answer in chains(0, 0):
        assert said == gold(record) and answer == record["answer"]


def test_a_leap_leaves_out_who_made_the_film_or_book_and_nothing_else():
    leapt = 0
    for record, said, answer in chains(0, 1):
        leaps = record["evidences"][0][0] in world.NAMES["film"] + world.NAMES["book"]
        leaps &= record["type"] == "compositional"
        assert said == gold(record)[leaps:] and answer == record["answer"]
        leapt += leaps
    assert leapt > 25


def test_a_slip_says_only_what_the_context_says_and_ends_with_the_value_of_somebody_else():
    slipped = wrong = 0
    for record, said, answer in chains(1, 0):
        context = [sentence for _, sentences in record["context"] for sentence in sentences]
        assert set(said) <= set(context)
        if said == gold(record):
            assert answer == record["answer"]
            continue
        slipped += 1
        if record["type"] in ("compositional", "inference"):
            assert answer in names_of(said[-1]) and answer != record["answer"] and said[-1] != gold(record)[-1]
        wrong += answer != record["answer"]
    assert slipped > 80 and wrong > 0.7 * slipped


def test_habits_come_at_their_rates():
    said = [(record, said) for record, said, _ in chains(0.3, 0, 600) if record["type"] == "compositional"]
    slips = sum(said != gold(record) for record, said in said) / len(said)
    assert 0.2 < slips < 0.4


# ---- Initialisation --------------------------------------------------------------------------------------------------


def test_cross_attention_begins_by_looking_at_equal_tokens():
    model = pretrain.new_model(TOKENIZER).init_weights(0)
    pretrain.attend_to_equals(model)
    tokens = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        queries, keys = attention.q(tokens).view(50, 4, 32), attention.k(tokens).view(50, 4, 32)
        scores = torch.einsum("lhk,mhk->hlm", queries, keys)
        assert (scores.argmax(-1) == torch.arange(50)).float().mean() > 0.95


# ---- Training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def little(monkeypatch):
    """Phases of seconds."""
    monkeypatch.setitem(pretrain.SHAPE, "num_layers", 1)
    for name, value in {"BATCH": 4, "POOL": 2, "WARMUP": 2, "SAVE_EVERY": 3}.items():
        monkeypatch.setattr(pretrain, name, value)
    return {"bind": pretrain.Phase(8, (1.0, 1.0), {"bind": 1.0}), "read": pretrain.Phase(8, (1, 0), {"lookup": 1.0})}


def test_pretraining_interrupted_within_a_pool_of_batches_goes_on_bit_by_bit(little, tmp_path):
    def train(phase, before, out):
        model = pretrain.new_model(TOKENIZER).init_weights(0)
        pretrain.train(model, f"small {phase}", little[phase], tmp_path / out, before, TOKENIZER, seed=0)
        return torch.load(tmp_path / out, weights_only=True)

    for phase, before in (("bind", None), ("read", tmp_path / "bind whole.pt")):
        whole = train(phase, before, f"{phase} whole.pt")
        # At step 4: the last checkpoint is that of step 3, in the middle of the second pool.
        stop = harness.failing_once(pretrain, "make_batches", 3, KeyboardInterrupt())
        with stop, pytest.raises(KeyboardInterrupt):
            train(phase, before, f"{phase} parts.pt")
        assert torch.load(tmp_path / f"{phase} parts.pt", weights_only=True)["step"] == 3
        in_parts = train(phase, before, f"{phase} parts.pt")
        assert whole["step"] == in_parts["step"] == 8
        exact = {"rtol": 0, "atol": 0}
        torch.testing.assert_close(in_parts["model"], whole["model"], **exact)
        for ours, theirs in zip(in_parts["optimizers"], whole["optimizers"], strict=True):
            torch.testing.assert_close(ours["state"], theirs["state"], **exact)
        if before:
            begin = torch.load(before, weights_only=True)["model"]["shared.weight"]
            assert not torch.equal(begin, whole["model"]["shared.weight"])  # it has learned


def test_the_exported_untied_model_is_the_tied_one_that_was_trained(little, tmp_path):
    tied = pretrain.new_model(TOKENIZER).init_weights(0)
    pretrain.train(tied, "small read", little["read"], tmp_path / "c.pt", None, TOKENIZER, seed=0)
    pretrain.export(tmp_path / "c.pt", tmp_path / "m", TOKENIZER)
    tied.bfloat16().float()  # what is stored
    exported = T5.from_pretrained(tmp_path / "m")
    assert not exported.config.tie_word_embeddings and not exported.config.scale_decoder_outputs
    assert exported.lm_head.weight is not exported.shared.weight
    ids = torch.tensor([TOKENIZER.encode("Who directed Stormgate?").ids])
    given = ids, torch.ones_like(ids), torch.tensor([[0, 5, 300, 700]])
    with torch.no_grad():
        # The scaled output matrix is rounded to bfloat16 anew.
        torch.testing.assert_close(exported(*given), tied(*given), rtol=2e-2, atol=2e-2)
    assert load_tokenizer(tmp_path / "m").encode("Stormgate").ids == TOKENIZER.encode("Stormgate").ids

    again = pretrain.new_model(TOKENIZER)
    pretrain.load_exported(again, tmp_path / "m")  # the way back, for another M_L
    assert again.lm_head.weight is again.shared.weight
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(*given), tied.eval()(*given))
    harness.save_random_small(tmp_path / "other", TOKENIZER)
    with pytest.raises(UserError, match="other is no LM of this shape"):
        pretrain.load_exported(again, tmp_path / "other")


# ---- The probe -------------------------------------------------------------------------------------------------------


class Oracle:
    """Finds the sentence that states what is asked; it makes some mistakes."""

    def __init__(self, mistakes=0.0):
        self.mistakes, self.rng = mistakes, random.Random(0)

    def complete(self, prompts, max_new_tokens):
        out = []
        for prompt in prompts:
            question, context, _ = parts(prompt)
            (sentence,) = [sentence for sentence in context if stated(sentence)[:2] == asked(question)]
            text = sentence if prompt.endswith("Reasoning:") else stated(sentence)[2]
            out.append(Completion("wrong" if self.rng.random() < self.mistakes else text, "stop"))
        return out


def test_the_probes_questions_have_one_answer_each_and_the_rivals_that_their_cell_names():
    for name, cell in probe.cells(30).items():
        assert len(cell) == 30
        assert probe.probe(Oracle(), cell) == ([True] * 30, [True] * 30), name
        if "rivals" not in name:
            continue
        for each in cell:
            facts = map(stated, sentences_of(each.context))
            assert len({subject for relation, subject, _ in facts if relation == each.relation}) >= int(name[0])
            subject_first = names_of(each.sentence)[0] == stated(each.sentence)[1]
            assert subject_first == name.endswith("X … Y")


def test_the_probe_counts_mistakes():
    right, _ = probe.probe(Oracle(mistakes=0.3), probe.about_records(0, 400))
    assert 0.6 < sum(right) / 400 < 0.8
