"""Proofs that what comes from strangers (checkpoints, data, caches, texts) is used or refused in one sentence. Most
cases were found by tests/fuzz.py, whose short form runs here too. The metrics' official rules are written down anew."""

import collections
import json
import re
import resource
import string
import time

import fuzz
import pytest
from harness import save_random_small
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import data
import lmcot
import rewards
import train_kd
import train_rl
from lmcot import LocalLM
from model import T5, T5Config, load_tokenizer
from plumbing.command import parse_settings
from plumbing.errors import UserError
from plumbing.files import read_jsonl
from plumbing.run import Run
from plumbing.server import ServedLM
from tiny import pretrain

CONFIG = T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)


def test_every_loader_makes_something_of_broken_files_or_refuses_them_in_one_sentence():
    rows = list(fuzz.fuzz(list(fuzz.LOADERS), 100, seed=7))
    assert [row["loader"] for row in rows] == list(fuzz.LOADERS)
    for row in rows:
        assert not row["failures"], row
        assert row["accepted"] and row["refused"] > 10, row


@pytest.fixture
def folder(tmp_path):
    T5(CONFIG).init_weights(0).save_pretrained(tmp_path)
    return tmp_path


def refusal(load, *arguments):
    """The one sentence, which comes soon and without much memory."""
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        load(*arguments)
    assert time.process_time() - begun < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    text = str(error.value)
    assert text.isprintable() and len(text) < 1000
    return text


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("name", ["relative_attention_num_buckets", "d_ff", "vocab_size", "num_heads"])
def test_a_size_that_does_not_fit_the_weights_is_refused_by_the_names_of_tensors(name, folder):
    edit_config(folder, **{name: 100})
    assert "size mismatch for " in refusal(T5.from_pretrained, folder)


@pytest.mark.parametrize("value", [[[]] * 10**5, "x" * 10**6, "\ud800", "\x1b[2J\n"])
def test_a_strange_value_of_a_configuration_is_shown_in_short_and_printable(value, folder):
    edit_config(folder, dropout_rate=value)
    assert "dropout_rate" in refusal(T5.from_pretrained, folder)


def test_a_key_that_a_configuration_has_twice_is_refused(folder):
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"d_model": 8', '"d_model": 4, "d_model": 8'))
    assert "twice" in refusal(T5.from_pretrained, folder)


@pytest.mark.parametrize("name", ["..", "", "/etc/passwd", "a/b", "a\\b", "C:x", "a\0", "a\n"], ids=ascii)
def test_a_shard_is_named_by_a_plain_file_name(name, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"shared.weight": name}}))
    assert "weight_map" in refusal(T5.from_pretrained, folder)


# ------------------------------------------------------------------------------------------------ tokenizers


def test_an_id_that_the_model_has_no_row_for_is_refused_although_the_vocabulary_is_small():
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "far": 10**6}, unk_token="<unk>"))
    assert "1000001 entries" in refusal(LocalLM, T5(CONFIG).init_weights(0), tokenizer)


def test_a_tokenizer_that_fails_on_unknown_words_is_refused_when_it_is_loaded(tmp_path):
    Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    assert "not a tokenizer" in refusal(load_tokenizer, tmp_path)


# ------------------------------------------------------------------------------------------------ JSON of every kind

DEEP, DIGITS = "[" * 10**5 + "]" * 10**5, "9" * 5000


@pytest.mark.parametrize("value", [DEEP, '{"a":' * 10**5 + "1" + "}" * 10**5, DIGITS, f"[{DIGITS}]"],
                         ids=["lists", "objects", "digits", "digits in a list"])  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json", "x.json", "x.jsonl",
                                  "run.jsonl", "http_cache.jsonl", "settings.json"])  # fmt: skip
def test_nesting_without_end_and_numbers_without_end_are_refused_in_every_file(name, value, folder):
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(f'{{"question": {value}}}\n')
    (folder / "model").mkdir()
    loads = {
        "tokenizer.json": [load_tokenizer], "x.json": [lambda f: data.load(f / name)],
        "x.jsonl": [lambda f: data.load(f / name)], "run.jsonl": [lambda f: read_jsonl(f / name)],
        "http_cache.jsonl": [lambda f: ServedLM("http://127.0.0.1:1/v1", "m", cache=f / name).complete([], 1)],
        "settings.json": [lambda f: Run(f, train_kd.Settings()), train_rl.distilled,
                          lambda f: train_kd.taken_over(train_kd.Settings(rationales=str(f)))],
    }  # fmt: skip
    for load in loads.get(name, [T5.from_pretrained]):
        refusal(load, folder)


@pytest.mark.parametrize("depth", [*range(880, 1000, 4)])
def test_at_no_depth_of_nesting_does_a_refusal_fail_itself(depth, tmp_path):
    """Python reads about so many levels, and may fail one function later on what it has read."""
    deep = "[" * depth + "]" * depth
    (tmp_path / "config.json").write_text(f'{{"model_type": "t5", "vocab_size": {deep}}}')
    refusal(T5.from_pretrained, tmp_path)
    for record in (f'{{"question": "q?", "answer": {deep}, "context": "c"}}', deep):
        (tmp_path / "x.jsonl").write_text(record + "\n")
        refusal(data.load, tmp_path / "x.jsonl")
    (tmp_path / "settings.json").write_text(f'{{"large": {deep}}}')
    refusal(Run, tmp_path, train_kd.Settings())
    refusal(train_kd.taken_over, train_kd.Settings(rationales=str(tmp_path)))


ANSWER = {"key": "k", "text": "t", "tokens": 3, "finish": "stop"}


@pytest.mark.parametrize("change", [{"key": None}, {"key": []}, {"text": 3}, {"text": None}, {"text": "\ud800"},
                                    {"tokens": "3"}, {"tokens": -1}, {"tokens": 10**400}, {"tokens": True}],
                         ids=ascii)  # fmt: skip
def test_a_cache_that_holds_anything_but_answers_is_refused_by_name(change, tmp_path):
    file = tmp_path / "http_cache.jsonl"
    lm = ServedLM("http://127.0.0.1:1/v1", "m", cache=file)
    file.write_text(json.dumps(ANSWER) + "\n")
    assert lm.complete([], 1) == [] and lm.answers == {"k": ANSWER}
    file.write_text(json.dumps(ANSWER | change) + "\n")
    assert str(file) in refusal(ServedLM("http://127.0.0.1:1/v1", "m", cache=file).complete, [], 1)
    file.write_text(json.dumps({name: value for name, value in ANSWER.items() if name not in change}) + "\n")
    assert str(file) in refusal(ServedLM("http://127.0.0.1:1/v1", "m", cache=file).complete, [], 1)


@pytest.mark.parametrize("tokens", ["Infinity", "NaN", "-5", '"7"', "9" * 400, "1e300", "true", "[]", "null"])
def test_a_count_of_tokens_that_cannot_be_is_replaced_by_the_estimate_and_costs_no_answer(tokens):
    said = f'{{"choices": [{{"message": {{"content": "abcdef"}}}}], "usage": {{"completion_tokens": {tokens}}}}}'
    assert ServedLM("http://127.0.0.1:1/v1", "m").read(said) == {"text": "abcdef", "tokens": 2, "finish": "stop"}


@pytest.mark.parametrize("content", ["", "[]", "3", "{", '"x"', "null", b"\xff\xfe"])
def test_damaged_settings_of_another_run_are_refused_where_they_are_taken_over(content, tmp_path):
    (tmp_path / "model").mkdir()
    file = tmp_path / "settings.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "settings.json" in refusal(train_rl.distilled, tmp_path)
    assert "settings.json" in refusal(train_kd.taken_over, train_kd.Settings(rationales=str(tmp_path)))


def test_what_a_sentence_quotes_is_printable_and_its_end_is_kept():
    text = str(UserError("a\nb\x1b[2J\u202e\ud800" + "x" * 10**6 + ": mend it"))
    assert text.startswith("a\\nb\\x1b[2J\\u202e\\ud800x") and text.endswith("x: mend it") and len(text) < 1000


# ------------------------------------------------------------------------------------------------ text

RUNS = [" ", "\n", "\t ", " \n", "$\\(", ",;:", "a.", "#>", "so ", "The answer is ", "é\u0301", "👩‍👩‍👧",
        "\u202e", "\0", "Yes, "]  # fmt: skip


@pytest.mark.parametrize("run", RUNS, ids=ascii)
def test_no_run_of_characters_however_long_holds_up_parsing(run):
    text = "He said" + run * (60_000 // len(run)) + "no."
    begun = time.process_time()
    for parse in (lmcot.parse_cot, lmcot.parse_answer, data.split_sentences, data.normalize_answer):
        parse(text)
    assert time.process_time() - begun < 10  # before the patterns were bounded, some took minutes


ODD = ["שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c", "e\u0301e\u0301", "각", "👩‍👩‍👧", "🇫🇷", "\0",
       "İstanbul", "ﬁne", "ſ", "ǅ", "ẞ", "\u00a0", "\u2028", "\u200b", "\ufeff", "\uffff", "\U0010ffff", "the", "a",
       "An", "yes", "no", "noanswer", "Oslo", ".", "!", "—", "“", "'s", "1,950", "Ⅷ", "²", "a" * 50]  # fmt: skip
texts = st.lists(st.sampled_from(ODD) | st.text(max_size=8), max_size=6).map(" ".join) | st.text(max_size=30)


def official(text):
    """hotpot_evaluate_v1.py's normalisation, step by step from its inside out: lower, punctuation, articles, spaces."""
    text = text.lower()
    punctuation = set(string.punctuation)
    text = "".join(ch for ch in text if ch not in punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def official_scores(prediction, gold):
    """(EM, F1) as that script's exact_match_score and f1_score have them."""
    predicted, truth = official(prediction), official(gold)
    em = float(predicted == truth)
    for word in ("yes", "no", "noanswer"):
        if word in (predicted, truth) and predicted != truth:
            return em, 0.0
    predicted, truth = predicted.split(), truth.split()
    same = sum((collections.Counter(predicted) & collections.Counter(truth)).values())
    if same == 0:
        return em, 0.0
    precision, recall = same / len(predicted), same / len(truth)
    return em, 2 * precision * recall / (precision + recall)


@given(texts, texts)
@example("İ", "i̇")
@example("\ud800", "\ud800")
@example("", "")
def test_scores_of_strange_texts_are_those_of_the_official_rules(prediction, gold):
    em, f1 = official_scores(prediction, gold)
    assert data.exact_match(prediction, gold) == em and data.token_f1(prediction, gold) == pytest.approx(f1)
    tokens, wanted = official(prediction).split(), official(gold).split()
    n = len(wanted)
    inside = any(tokens[i : i + n] == wanted for i in range(len(tokens) - n + 1)) if n else not tokens
    assert data.answer_inclusion(prediction, gold) == inside


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    save_random_small(folder, pretrain.make_tokenizer())
    return LocalLM.load(folder, max_input_tokens=256)


@given(texts.filter(str.strip), st.lists(texts, max_size=3), texts.filter(str.strip), texts)
def test_strange_texts_go_through_loading_prompts_tokenizer_rewards_and_metrics(tmp_path_factory, lm, q, context, a, r):
    clean = [text.encode(errors="ignore").decode() for text in (q, a, r, *context)]
    question, answer, rationale = (text or "x" for text in clean[:3])
    question, answer = question.strip() and question or "x", answer.strip() and answer or "x"
    sentences = clean[3:]
    file = tmp_path_factory.getbasetemp() / "strange.jsonl"
    file.write_text(json.dumps({"question": question, "context": [["T", sentences]], "answer": answer}) + "\n")
    (example,) = data.load(file)
    assert (example.question, example.answer) == (question, answer)
    assert example.paragraphs[0].sentences == tuple(sentences)
    (prompt,) = lmcot.fill(lmcot.RATIONALE, lm, [example])
    assert question in prompt and lm.count_tokens(prompt) <= 256
    scores = rewards.aspects(rationale, question, example.context, answer)
    assert list(scores) == list(rewards.ASPECTS) and all(0 <= score <= 1 for score in scores.values())
    assert data.exact_match(answer, example.answers) == 1


def test_the_tiny_tokenizer_gives_back_every_text_that_it_has_pieces_or_bytes_for(lm):
    for text in ("שלום עולם", "👩‍👩‍👧‍👦", "e\u0301", "\0x", "\U0010ffff", "مرحبا"):
        ids = lm.tokenizer.encode(text).ids
        assert lm.tokenizer.decode(ids) == text, ascii(text)


def test_a_question_longer_than_the_limit_and_an_empty_context_are_answered_and_counted(lm):
    cases = [("is it " * 20_000 + "?", ("One.", "Two.")), ("Who?", ()), ("Who?", (" ", ""))]
    examples = [data.Example("i", question, (data.Paragraph("", sentences),), "x") for question, sentences in cases]
    lm.restart(0)
    prompts = lmcot.fill(lmcot.RATIONALE, lm, examples)
    assert lm.cut == 1 and "One." not in prompts[0] and prompts[0].endswith("? Context:  Reasoning:")
    assert prompts[1] == prompts[2] and "Question: Who? Context:  Reasoning:" in prompts[1]
    assert len(lmcot.write_rationales(lm, examples[1:], 3)) == 2


@pytest.mark.parametrize(("question", "context"), [("\udcff?", "c"), ("q", "\udcff")], ids=ascii)
def test_a_question_that_is_no_utf_8_is_refused_with_the_usage(question, context, capsys):
    with pytest.raises(SystemExit) as end:
        parse_settings(lmcot.Settings, "", ["--question", question, "--context", context])
    assert end.value.code == 2 and "UTF-8" in capsys.readouterr().err
