"""Proofs for tiny/pretrain.py and tiny/probe.py: what the two LMs are taught, and how their reading is measured."""

import random
import re
from types import SimpleNamespace

import harness
import pytest
import torch

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


# ---- Texts that bind -------------------------------------------------------------------------------------------------


def test_a_text_to_bind_gives_the_pairs_that_its_sentences_state_and_its_lessons_are_the_objects():
    rng = random.Random(1)
    for _ in range(50):
        source, target = pretrain.make_text("bind", rng)
        stated = [sorted(names_of(sentence)) for sentence in sentences_of(source)]
        words = target.split()
        given = [sorted(pair) for pair in zip(words[::2], words[1::2], strict=True)]
        assert sorted(given) == sorted(stated) and len(given) == 8
        encoded = TOKENIZER.encode(target)
        assert pretrain.lessons_of("bind", encoded.tokens) == [False, True] * 8 + [False]  # EOS is no lesson


def test_the_lessons_of_a_recitation_are_the_second_names_of_sentences_of_the_context():
    rng = random.Random(2)
    for _ in range(100):
        source, target = pretrain.make_text("recite", rng)
        recited = sentences_of(target)
        assert set(recited) <= set(sentences_of(source)) and len(recited) <= 10
        encoded = TOKENIZER.encode(target)
        lessons = pretrain.lessons_of("recite", encoded.tokens)
        taught = [token.strip("▁") for token, is_lesson in zip(encoded.tokens, lessons, strict=True) if is_lesson]
        assert taught == [names_of(sentence)[1] for sentence in recited]


def test_sentences_that_are_asked_for_answer_the_question_about_the_name_before_them_and_only_they_are_lessons():
    rng, numbers = random.Random(3), set()
    for _ in range(100):
        source, target = pretrain.make_text("ask", rng)
        questions = re.findall(r"\w[^?]+\?", source.partition("Question: ")[2].partition(" Context:")[0])
        context = sentences_of(source.partition("Context: ")[2])
        answered = [part.partition(": ")[::2] for part in sentences_of(target)]
        numbers.add(len(answered))
        assert sorted(name for name, _ in answered) == sorted(names_of(question)[0] for question in questions)
        for name, sentence in answered:
            (question,) = [question for question in questions if name in names_of(question)]
            relation = next(r for r in world.RELATIONS.values() if r.question.format(s=name) == question)
            (other,) = [each for each in names_of(sentence) if each != name]
            assert sentence in context
            assert sentence in [wording.format(s=name, o=other) for wording in relation.sentences]
        encoded = TOKENIZER.encode(target)
        lessons = pretrain.lessons_of("ask", encoded.tokens)
        taught = [i for i, is_lesson in zip(encoded.ids, lessons, strict=True) if is_lesson]
        assert TOKENIZER.decode(taught).strip() == " ".join(sentence for _, sentence in answered)
    assert numbers >= {1, 2, 3, 4}


def test_all_pieces_of_other_targets_are_lessons():
    assert pretrain.lessons_of("lookup", ["▁Ann", "▁lives", ".", "</s>"]) == [True] * 4


def test_years_and_names_are_put_in_order():
    rng = random.Random(4)
    for _ in range(100):
        source, target = pretrain.make_text("order", rng)
        years = re.findall(r"\d+", source)
        assert target.split() == sorted(years, reverse=" later?" in source) and len(years) == 8
        source, target = pretrain.make_text("ranks", rng)
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
        works = world.NAMES["film"] + world.NAMES["book"]
        bridges = {hop[2] for hop in record["evidences"]} & {hop[0] for hop in record["evidences"]}
        left = [
            sentence
            for sentence, (s, _, o) in zip(gold(record), record["evidences"], strict=True)
            if not (s in works and o in bridges)
        ]
        assert said == left and answer == record["answer"]
        leapt += said != gold(record)
    assert leapt > 40


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
def little(monkeypatch, tmp_path):
    """A training of seconds, with an argument list."""
    monkeypatch.setitem(pretrain.SHAPE, "num_layers", 1)
    for name, value in {"BATCH": 4, "POOL": 2, "WARMUP": 2, "SAVE_EVERY": 3}.items():
        monkeypatch.setattr(pretrain, name, value)
    phases = {"bind": pretrain.Phase(8, (1.0, 1.0), {"bind": 1.0}), "read": pretrain.Phase(8, (1, 0), {"lookup": 1.0})}
    monkeypatch.setitem(pretrain.PHASES, "small", phases)
    return SimpleNamespace(seed=0, slips=0.3, leaps=0.7)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_pretraining_interrupted_within_a_pool_of_batches_goes_on_bit_by_bit(little, tmp_path, monkeypatch):
    def train(phase, before, out):
        model = pretrain.new_model(TOKENIZER).init_weights(0)
        pretrain.train(model, "small", phase, tmp_path / out, before, little, TOKENIZER)
        return torch.load(tmp_path / out, weights_only=True)

    drawn, original = [], pretrain.make_batches

    def interrupted(tokenizer, mixture, seed, habits):
        drawn.append(seed)
        if len(drawn) == 3:  # step 4: the last checkpoint is that of step 3, in the middle of the second pool
            raise KeyboardInterrupt
        return original(tokenizer, mixture, seed, habits)

    for phase, before in (("bind", None), ("read", tmp_path / "bind whole.pt")):
        whole = train(phase, before, f"{phase} whole.pt")
        drawn.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pretrain, "make_batches", interrupted)
            train(phase, before, f"{phase} parts.pt")
        assert torch.load(tmp_path / f"{phase} parts.pt", weights_only=True)["step"] == 3
        in_parts = train(phase, before, f"{phase} parts.pt")
        assert whole["step"] == in_parts["step"] == 8
        assert same(whole["model"], in_parts["model"]) and same(whole["optimizers"], in_parts["optimizers"])
        begin = torch.load(before, weights_only=True)["model"] if before else None
        assert begin is None or not same(begin, whole["model"])  # it has learned


def test_the_exported_untied_model_is_the_tied_one_that_was_trained(little, tmp_path):
    tied = pretrain.new_model(TOKENIZER).init_weights(0)
    pretrain.train(tied, "small", "read", tmp_path / "c.pt", None, little, TOKENIZER)
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
    with pytest.raises(UserError, match="other is no M_S of this shape"):
        pretrain.load_exported(again, tmp_path / "other")


# ---- The probe -------------------------------------------------------------------------------------------------------


class Oracle:
    """Finds the asked sentence by rules: the name of the question, and the relation that has this question."""

    def __init__(self, mistakes=0.0):
        self.mistakes, self.rng = mistakes, random.Random(0)

    def complete(self, prompts, max_new_tokens):
        out = []
        for prompt in prompts:
            pattern = r"(?s)Question: (.*?)\s+Context: (.*?)\s+(?:Reasoning|Answer):"
            question, context = re.search(pattern, prompt).groups()
            (name,) = names_of(question)
            relation = next(r for r in world.RELATIONS.values() if r.question.format(s=name) == question)
            found = []
            for wording in relation.sentences:
                pattern = re.escape(wording).replace(r"\{s\}", name).replace(r"\{o\}", r"(\w+)")
                found += [re.fullmatch(pattern, sentence) for sentence in sentences_of(context)]
            (match,) = [each for each in found if each]
            text = match[0] if prompt.endswith("Reasoning:") else match[1]
            out.append(Completion("wrong" if self.rng.random() < self.mistakes else text, "stop"))
        return out


def test_the_probes_questions_have_one_answer_each_and_the_rivals_that_their_cell_names():
    for name, asked in probe.cells(30).items():
        assert len(asked) == 30
        assert probe.probe(Oracle(), asked) == ([True] * 30, [True] * 30), name
        if "rivals" not in name:
            continue
        for each in asked:
            relation = world.RELATIONS[each.relation]
            patterns = [re.escape(f).replace(r"\{s\}", r"(\w+)").replace(r"\{o\}", r"\w+") for f in relation.sentences]
            subjects = {m[1] for s in sentences_of(each.context) for p in patterns if (m := re.fullmatch(p, s))}
            assert len(subjects) >= int(name[0])
            (subject,) = names_of(each.question)
            assert (names_of(each.sentence)[0] == subject) == name.endswith("X … Y")


def test_the_probe_counts_mistakes():
    right, _ = probe.probe(Oracle(mistakes=0.3), probe.about_records(0, 400))
    assert 0.6 < sum(right) / 400 < 0.8
