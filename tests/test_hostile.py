"""Proofs that what strangers send (a checkpoint, a data file, a text) is used or refused in one sentence: fuzz.py in
short, and strange texts. The official rules of the metrics stand here, too."""

import collections
import json
import re
import string
import subprocess
import sys
import time

import fuzz
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import data
import lmcot
from model import load_tokenizer
from plumbing.command import parse_settings
from plumbing.errors import UserError


def test_every_loader_makes_something_of_broken_files_or_refuses_them_in_one_sentence():
    ended = subprocess.run([sys.executable, fuzz.__file__, "--inputs", "100"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    rows = re.findall(r"(\w+): {'accepted': (\d+), 'refused': (\d+), 'failures': 0}", ended.stdout)
    assert [name for name, _, _ in rows] == list(fuzz.LOADERS)
    for _, accepted, refused in rows:
        assert int(accepted) > 0 and int(refused) > 10, ended.stdout


def test_the_fuzzer_sees_what_is_no_refusal():
    def loads(error):
        def attempt(raw):
            raise error

        return fuzz.outcome(attempt, b"")

    assert loads(UserError("x: mend it")) == "refused" and loads(ValueError("a bug")).startswith("ValueError at")
    assert loads(UserError("")).startswith("no sentence") and fuzz.outcome(len, b"") == "accepted"


def test_what_a_sentence_quotes_is_printable_and_its_end_is_kept():
    text = str(UserError("a\nb\x1b[2J\u202e\ud800" + "x" * 10**6 + ": mend it"))
    assert text.startswith("a\\nb\\x1b[2J\\u202e\\ud800x") and text.endswith("x: mend it") and len(text) < 1000


def test_a_tokenizer_that_fails_on_unknown_words_is_refused(tmp_path):
    Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------------------------------------ text

RUNS = [" ", "\n", "\t ", "$\\(", ",;:", "a.", "so ", "The answer is ", "é\u0301", "Yes, "]


@pytest.mark.parametrize("run", RUNS, ids=ascii)
def test_no_run_of_characters_however_long_holds_up_parsing(run):
    text = "He said" + run * (60_000 // len(run)) + "no."
    begun = time.process_time()
    for parse in (lmcot.parse_cot, lmcot.parse_answer, data.split_sentences, data.normalize_answer):
        parse(text)
    assert time.process_time() - begun < 10  # before the patterns were bounded, some took minutes


ODD = ["שלום עולם", "\u202eabc\u202c", "e\u0301", "👩‍👩‍👧", "\0", "İstanbul", "ﬁne", "ſ", "\u00a0", "\u2028", "\ufeff",
       "\U0010ffff", "the", "a", "An", "yes", "no", "noanswer", "Oslo", ".", "—", "'s", "1,950", "²"]  # fmt: skip
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


@given(texts, st.lists(texts, max_size=3), texts)
def test_strange_texts_are_loaded_as_they_are(tmp_path_factory, q, context, a):
    question, answer, *sentences = (text.encode(errors="ignore").decode() for text in (q, a, *context))
    question, answer = question.strip() and question or "x", answer.strip() and answer or "x"
    file = tmp_path_factory.getbasetemp() / "strange.jsonl"
    file.write_text(json.dumps({"question": question, "context": [["T", sentences]], "answer": answer}) + "\n")
    (example,) = data.load(file)
    assert (example.question, example.answer) == (question, answer)
    assert example.paragraphs[0].sentences == tuple(sentences)


@pytest.mark.parametrize(("question", "context"), [("\udcff?", "c"), ("q", "\udcff")], ids=ascii)
def test_a_question_that_is_no_utf_8_is_refused_with_the_usage(question, context, capsys):
    with pytest.raises(SystemExit) as end:
        parse_settings(lmcot.Settings, "", ["--question", question, "--context", context])
    assert end.value.code == 2 and "UTF-8" in capsys.readouterr().err
