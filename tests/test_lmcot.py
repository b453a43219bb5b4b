"""Proofs for lmcot.py: prompts word for word, decoding against the forward pass and brute force."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from harness import ScriptedLM, call
from hypothesis import given
from hypothesis import strategies as st

import data
import lmcot
from data import Example, Paragraph
from lmcot import LocalLM
from model import T5, T5Config
from plumbing.errors import UserError
from plumbing.server import Completion
from tiny import pretrain, world

ROOT = Path(__file__).parents[1]
PROMPTS = ["Who directed Stormgate?", "When was Moonfall released? In 1931.", "no", "The mayor of Roton", "yes"]


def make_model(vocab: int, seed: int = 0, eos: float = 1.0) -> T5:
    """A random T5 whose texts depend on the prompt; `eos` stretches the output row of EOS, so that lengths vary."""
    config = T5Config(vocab_size=vocab, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2, num_decoder_layers=2,
                      dropout_rate=0.0)  # fmt: skip
    model = T5(config).init_weights(seed).eval()
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.o.weight *= 6  # listen to the prompt
        model.lm_head.weight *= 2
        model.lm_head.weight[1] *= eos
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain.make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    rows = tokenizer.get_vocab_size() + 5  # five that the tokenizer lacks, as FLAN has 28
    return make_model(rows, seed=5, eos=5.0)


@pytest.fixture
def lm(model, tokenizer):
    return LocalLM(model, tokenizer)


def example(question="Who?", *sentences, answer="Ann"):
    return Example("x", question, (Paragraph("T", sentences or ("Ann did.", "Bob did not.")),), answer)


# ------------------------------------------------------------------------------------------------ prompts, two stages


SERVED = lmcot.Models(large="http://localhost:1/v1", large_model="m", answer_tokens=9, chain_tokens=99)
BRIEFLY = "Give only the answer, in a few words, not a sentence.\nAnswer:"


@pytest.mark.parametrize(
    ("models", "prompts", "answer", "conclude", "room", "chain_room"),
    [
        (lmcot.Models(), "plain", "Answer:", "Therefore, the answer is", 32, 256),
        (SERVED, "chat", BRIEFLY, BRIEFLY, 9, 99),
    ],
    ids=["plain", "chat"],
)
def test_m_l_gets_these_prompts_word_for_word(models, prompts, answer, conclude, room, chain_room):
    assert models.prompts == prompts  # settings.json holds the choice
    large = ScriptedLM(lambda prompt, n: "Because {x}." if prompt.endswith("by step.") else "Ann")
    large.templates = lmcot.load_large(models).templates
    ex = example("Who {did} it?")  # braces in texts are not ours to fill
    lmcot.standard(large, [ex])
    lmcot.chain_of_thought(large, [ex])
    lmcot.guided(large, [ex], ["Because {x}."])
    task = "Answer the question based on the context"
    asked = "Question: Who {did} it?\nContext: Ann did. Bob did not.\n"
    chain = f"{task}.\n{asked}Let's think step by step."
    assert large.calls == [
        ([f"{task}.\n{asked}{answer}"], room, 1, 0.0),
        ([chain], chain_room, 1, 0.0),
        ([f"{chain} Because {{x}}.\n{conclude}"], room, 1, 0.0),
        ([f"{task} and the reasoning.\n{asked}Reasoning: Because {{x}}.\n{answer}"], room, 1, 0.0),
    ]


def test_m_s_gets_this_prompt_word_for_word():
    small = ScriptedLM(lambda prompt, n: f"r{n}")
    assert lmcot.write_rationales(small, [example("Who {did} it?")], 9, 3, 0.25) == ["r0", "r1", "r2"]
    prompt = (
        "Based on the context, generate reasoning step by step to answer the question. "
        "Question: Who {did} it? Context: Ann did. Bob did not. Reasoning:"
    )
    assert small.calls == [([prompt], 9, 3, 0.25)]


def test_the_second_stage_asks_exactly_those_whose_first_pass_named_no_answer():
    texts = {"q0": "A. So the answer is a.", "q1": "B without end", "q2": "So the answer is c.", "q3": ""}

    def say(prompt, n):
        question = re.search("Question: (.*)\n", prompt)[1]
        return f"second {question}" if prompt.endswith("Therefore, the answer is") else texts[question]

    large = ScriptedLM(say)
    of_each = [
        lmcot.Answer("x", "a", "A."),
        lmcot.Answer("x", "second q1", "B without end", parsed=False),
        lmcot.Answer("x", "c"),
        lmcot.Answer("x", "second q3", parsed=False),
    ]
    answers = lmcot.chain_of_thought(large, [example(q) for q in texts], 2, 0.7)
    assert answers == [answer for answer in of_each for _ in range(2)]
    (first, *sampled), (second, *greedy) = large.calls
    assert len(first) == 4 and sampled == [256, 2, 0.7] and greedy == [32, 1, 0.0]
    assert ["B without end" in prompt for prompt in second] == [True, True, False, False]


def test_of_several_rationales_for_each_example_those_in_a_row_belong_to_it():
    large = ScriptedLM(lambda prompt, n: "The answer is " + re.search("Question: (.*)\n", prompt)[1] + ".")
    answers = lmcot.guided(large, [example(q) for q in "pqr"], list("abcdef"))
    assert [a.prediction + a.rationale for a in answers] == ["pa", "pb", "qc", "qd", "re", "rf"]
    assert [re.search("Reasoning: (.*)\n", prompt)[1] for prompt in large.asked] == list("abcdef")
    assert lmcot.guided(large, [], []) == []


# ------------------------------------------------------------------------------------------------ complete


def by_hand(lm, prompt, limit):
    """Greedy decoding of one prompt alone, token by token through the forward pass."""
    ids, out = torch.tensor([lm.tokenizer.encode(prompt).ids]), [0]
    while len(out) <= limit and out[-1] != 1:
        with torch.no_grad():
            logits = lm.model(ids, torch.ones_like(ids), torch.tensor([out]))[0, -1]
        logits[0] = -torch.inf
        logits[lm.tokenizer.get_vocab_size() :] = -torch.inf
        out.append(int(logits.argmax()))
    text = lm.tokenizer.decode([i for i in out[1:] if i != 1]).strip()
    return Completion(text, "stop" if out[-1] == 1 else "length"), len(out) - 1


def test_greedy_completions_are_those_of_the_forward_pass_by_hand_in_order_and_counted(lm):
    lm.batch_size = 2
    prompts = [PROMPTS[i] for i in (3, 0, 4, 0, 1, 2, 3)]
    expected = {prompt: by_hand(lm, prompt, 12) for prompt in PROMPTS}
    assert lm.complete(prompts, 12) == [expected[prompt][0] for prompt in prompts]
    assert len({completion.text for completion, _ in expected.values()}) >= 4  # the prompts matter
    finishes = [completion.finish for completion, _ in expected.values()]
    assert set(finishes) == {"stop", "length"}  # some end, some are cut
    assert lm.tokens_written == sum(n for _, n in expected.values())  # a prompt that occurs twice is written once
    assert lm.unfinished == finishes.count("length")


def test_equal_greedy_prompts_are_computed_once_and_a_prompt_that_is_sampled_is_encoded_once(lm, monkeypatch):
    rows, encode = [], lm.model.encode
    monkeypatch.setattr(lm.model, "encode", lambda ids, mask: rows.append(len(ids)) or encode(ids, mask))
    prompts = PROMPTS[:1] * 5 + PROMPTS[1:2] * 3 + PROMPTS[:1] * 2 + PROMPTS[2:3]
    greedy = lm.complete(prompts, 4, samples=2)
    assert len(greedy) == 22 and greedy[::2] == greedy[1::2]
    assert sum(rows) == 3
    rows.clear()
    assert len(lm.complete(PROMPTS[:3], 4, samples=7, temperature=1.0)) == 21
    assert sum(rows) == 3
    assert lm.complete([], 4) == lm.complete([], 4, samples=7, temperature=1.0) == []


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_samples_stand_in_a_row_for_their_own_prompt(batch_size, lm):
    """At a temperature near 0 a sample is the greedy text, which names the prompt that it was written for."""
    lm.batch_size = batch_size
    prompts = [PROMPTS[i] for i in (0, 1, 0, 2, 4, 3)]
    expected = [by_hand(lm, prompt, 8)[0] for prompt in prompts for _ in range(2)]
    assert lm.complete(prompts, 8, samples=2, temperature=1e-4) == expected
    assert lm.complete(prompts, 8, samples=2) == expected


def test_copies_of_a_prompt_get_independent_samples_of_the_model_at_that_temperature(lm):
    ids, n, temperature = torch.tensor([lm.tokenizer.encode(PROMPTS[0]).ids]), 4000, 0.5
    with torch.no_grad():
        logits = lm.model(ids, torch.ones_like(ids), torch.tensor([[0]]))[0, 0]
    logits[0], logits[lm.tokenizer.get_vocab_size() :] = -torch.inf, -torch.inf
    p = (logits / temperature).softmax(0)
    expected = Counter()
    for i, share in enumerate(p.tolist()):
        expected[lm.tokenizer.decode([i]).strip()] += share * n
    texts = [completion.text for completion in lm.complete(PROMPTS[:1] * 2, 1, n // 2, temperature)]
    seen = Counter(texts)
    common = [t for t, count in expected.items() if count >= 20]
    assert len(common) >= 5
    for t in common:  # four standard deviations
        assert abs(seen[t] - expected[t]) < 4 * math.sqrt(expected[t]), (t, seen[t], expected[t])
    repeated = sum(a == b for a, b in itertools.pairwise(texts)) / (n - 1)
    chance = sum((count / n) ** 2 for count in expected.values())
    assert abs(repeated - chance) < 4 * math.sqrt(chance / n)  # neighbours agree as often as strangers do


def test_a_seed_decides_what_is_sampled_and_restart_counts_from_0(lm):
    texts = []
    for seed in (0, 1, 0):
        lm.restart(seed)
        assert (lm.tokens_written, lm.cut, lm.unfinished) == (0, 0, 0)
        texts.append(lm.complete(PROMPTS[:2], 6, 5, 1.0))
        assert lm.tokens_written > 0 and lm.complete(PROMPTS[:2], 6, 5, 1.0) != texts[-1]
    assert texts[0] == texts[2] and texts[0] != texts[1]
    assert len(set(texts[0])) > 5


# ------------------------------------------------------------------------------------------------ fill


def test_a_context_that_is_too_long_loses_whole_sentences_from_its_end_and_is_counted(lm):
    sentences = [f"Sentence {'x' * (i % 7)} number {i} ends." for i in range(30)]
    ex, short = example("Who is it?", *sentences), example("Who is it?", "Ann did.")
    for limit in (60, 111, 200, 347):
        lm.max_input_tokens, lm.cut = limit, 0
        long_prompt, short_prompt = lmcot.fill(lmcot.GUIDED, lm, [ex, short], ["Because.", "R."])
        fitting = [p for n in range(31) if len(lm.tokenizer.encode(p := (
            "Answer the question based on the context and the reasoning.\nQuestion: Who is it?\n"
            f"Context: {' '.join(sentences[:n])}\nReasoning: Because.\nAnswer:")).ids) <= limit]  # fmt: skip
        assert long_prompt == fitting[-1] and 1 < len(fitting) < 31
        assert lm.cut == 1 and "Context: Ann did.\nReasoning: R.\nAnswer:" in short_prompt


# ------------------------------------------------------------------------------------------------ vote, selection


@pytest.mark.parametrize(
    ("predictions", "winner"),
    [
        (["Oslo", "Rome", "rome.", "The Rome"], 1),  # normalised; the first spelling of the winner
        (["", "Oslo", "The"], 1),  # no answer is no vote
        (["", ""], 0),
    ],
)
def test_majority_by_hand(predictions, winner):
    assert lmcot.majority(predictions) == winner


@given(st.lists(st.sampled_from("pqrs"), min_size=1, max_size=9))
def test_majority_is_the_first_of_the_most_frequent(predictions):
    most = max(predictions.count(p) for p in predictions)
    assert lmcot.majority(predictions) == min(i for i, p in enumerate(predictions) if predictions.count(p) == most)


def test_select_takes_the_first_of_the_best():
    assert lmcot.select([1.0, 3.0, 3.0, 1.0]) == 1
    assert lmcot.select([-4.0, -1.0]) == 1


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def run(model, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(world.SIZES, "test", 12)
    for name in ("s", "l"):
        model.save_pretrained(tmp_path / name, tokenizer)

    def run(*arguments):
        code = call(monkeypatch, lmcot.main, "--small", "s", "--large", "l", *arguments)
        return code, *capsys.readouterr()

    return run


def test_an_example_is_shown_with_every_methods_answer_and_the_gold(run, model, tokenizer, tmp_path):
    record = world.records("test", world.SEED, 12)[7]
    model.save_pretrained(tmp_path / "runs" / "kd" / "model", tokenizer)  # what train_kd.py left
    code, out, _ = run("--example", record["_id"])
    assert code == 0 and record["question"] in " ".join(out.split())
    assert re.search(f"^Gold answer +{record['answer']}$", out, re.M)
    methods = ["Standard prompting", "Chain of thought", "Guided by s", "Guided by runs/kd/model"]
    assert re.findall(r"(?m)^(Stand.*?|Chain.*?|Guided by \S+)  ", out) == methods
    assert out.count("(wrong)") == 4  # a random model
    code, out, _ = run("--small", "none")
    assert code == 0 and "Standard prompting" in out and "Guided by" not in out


def test_the_demo_counts_each_case_by_type_and_finds_its_first_question(capsys):
    # Of each question, whether M_L is right at once, and whether it is guided: one letter each.
    plan = ["rr", "ww", "rr", "wr", "wr", "wr"]
    examples = [example(f"{i}?", answer="Ann") for i in range(6)]
    examples = [dataclasses.replace(e, type="even" if i % 2 == 0 else "odd") for i, e in enumerate(examples)]

    def say(prompt, n):
        number = int(re.search(r"Question: (\d)", prompt)[1])
        return "Ann" if plan[number]["Reasoning:" in prompt] == "r" else "Bob"

    cases = lmcot.one_of_each_case(examples, ScriptedLM(say), ScriptedLM(lambda prompt, n: "It is so."))
    assert cases == {"only when guided": examples[3], "both times": examples[0], "never": examples[1]}
    out = capsys.readouterr().out
    rows = [re.findall(r"\w[\w ]*\w|\d", line) for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["M_L is right", "only when guided", "only at once", "both times", "never"]
    assert rows[-2:] == [["even", "1", "0", "2", "0"], ["odd", "2", "0", "0", "1"]]


def test_an_own_question_about_the_world_is_answered_and_not_judged(run):
    woman = world.NAMES["woman"][0]
    code, out, _ = run("--question", "Who directed Stormgate?", "--context", f"{woman} directed Stormgate.")
    assert code == 0 and "\nGuided by s " in out and "Gold" not in out
    assert "(right)" not in out and "(wrong)" not in out


@pytest.mark.parametrize(
    ("arguments", "begins", "said"),
    [
        (["--example", "nobody"], "error: ", "'nobody'"),
        (["--question", "Who wrote Faust?", "--context", "Goethe wrote Faust."], "error: ", "'Faust', 'Goethe'"),
        (["--question", "Who?"], "usage: ", "--question and --context go together"),
        (["--large-dtype", "float16"], "usage: ", "--large-dtype is float32 or bfloat16"),
    ],
)
def test_mistakes_end_in_one_sentence_and_status_2(run, arguments, begins, said):
    code, out, err = run(*arguments)
    assert code == 2 and not out and err.startswith(begins) and said in err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------ settings


def test_only_m_l_is_in_the_precision_that_was_asked_for_and_both_have_the_limits(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "m", tokenizer)
    models = lmcot.Models(small=str(tmp_path / "m"), large=str(tmp_path / "m"), large_dtype="bfloat16", device="cpu",
                          max_input_tokens=77, decode_batch_size=5)  # fmt: skip
    large, small = lmcot.load_large(models), lmcot.load_small(models, models.small)
    assert {p.dtype for p in large.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in small.model.parameters()} == {torch.float32}
    for lm in (large, small):
        assert (lm.max_input_tokens, lm.batch_size, lm.device.type) == (77, 5, "cpu")
        assert len(lm.complete(PROMPTS, 3)) == 5


# ------------------------------------------------------------------------------------------------ the embedded pair


@pytest.fixture(scope="module")
def embedded():
    """M_L, 100 questions, and their gold rationales."""
    examples = data.load("tiny", "dev", 100)
    return LocalLM.load("tiny/large"), examples, [" ".join(ex.supporting_sentences) for ex in examples]


def test_the_embedded_large_lm_answers_from_a_good_rationale_and_not_from_anothers(embedded):
    large, examples, gold = embedded
    right = []
    for rationales in (gold, gold[1:] + gold[:1]):
        answers = lmcot.guided(large, examples, rationales)
        right.append(sum(data.exact_match(a.prediction, ex.answer) for a, ex in zip(answers, examples, strict=True)))
    assert right[0] >= 67 and right[0] > right[1]


def test_no_answer_of_the_embedded_large_lm_is_changed_by_parsing(embedded):
    large, examples, gold = embedded
    for prompts in (lmcot.fill(lmcot.STANDARD, large, examples), lmcot.fill(lmcot.GUIDED, large, examples, gold)):
        texts = [completion.text for completion in large.complete(prompts, 32)]
        assert list(map(lmcot.parse_answer, texts)) == texts and len(set(texts)) > 20


@pytest.mark.parametrize("name", ["small", "large"])
def test_the_embedded_pair_has_the_tokenizer_of_the_world_and_transformers_gives_the_same_logits(name, tokenizer):
    import transformers

    lm = LocalLM.load(f"tiny/{name}")
    assert lm.tokenizer.get_vocab() == tokenizer.get_vocab()
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(ROOT / "tiny" / name, dtype=torch.float32).eval()
    ids, target = torch.tensor([tokenizer.encode(PROMPTS[0]).ids]), torch.tensor([[0, 300, 400]])
    with torch.no_grad():
        ours = lm.model(ids, torch.ones_like(ids), target)
        torch.testing.assert_close(ours, theirs(input_ids=ids, decoder_input_ids=target).logits, rtol=1e-4, atol=1e-3)


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(tokenizer):
    with pytest.raises(UserError, match="849 entries and the model only 40"):
        LocalLM(make_model(40), tokenizer)
    endless = pretrain.make_tokenizer()
    endless.post_processor = None
    with pytest.raises(UserError, match="does not end a text with the model's EOS"):
        LocalLM(make_model(900), endless)
