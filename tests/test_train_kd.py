"""Proofs for train_kd.py: whole runs with random tiny models and a scripted teacher, interrupted and continued."""

import functools
import json

import pytest
import torch
from harness import (
    SAMPLES,
    ScriptedLM,
    call,
    error_of,
    example_of,
    failing_once,
    files_of,
    lines,
    run_script,
    save_random_small,
)
from kill import differences

import data
import lmcot
import train_kd
from lmcot import LocalLM
from model import T5, load_tokenizer
from tiny import pretrain, world

SIZES = {"train": 32, "dev": 16, "test": 4}
OUT = ["settings.json"]  # what differs between two runs of the same settings
LIMIT = 60  # tokens of a rationale


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"rationale": ""}, "empty"),
        ({"finish": "length"}, "cut"),
        ({"finish": "none"}, "no answer"),
        ({"rationale": "word " * 41}, "cut"),
        ({"rationale": " ".join(map(str, range(40)))}, ""),
        ({"rationale": "a b c d a b c d"}, ""),  # twice is what a comparison looks like
        ({"rationale": "a b c d x a b c d y a b c d"}, "looping"),
        ({"rationale": "a a a a a"}, ""),  # two 4-grams
        ({"rationale": "a a a a a a"}, "looping"),
        ({"rationale": "a b c a b c a b c"}, ""),  # abca twice, no 4-gram three times
        ({"right": False}, "wrong"),
        ({"right": False, "rationale": ""}, "empty"),
        ({"parsed": False}, ""),
    ],
)
def test_faults_by_hand(changes, reason):
    row = {"rationale": "Ann did it.", "right": True, "parsed": True, "finish": "stop"} | changes
    fault = train_kd.fault(row, ScriptedLM(None), train_kd.Settings(max_new_tokens=40))  # it counts words as tokens
    assert fault.startswith(reason) and bool(fault) == bool(reason)


@pytest.mark.parametrize(
    ("rationale", "counted"),
    [
        ("Based on the context, Ann Lie is the answer. Ann Lie made Vega.", "the first sentence states the answer"),
        ("Ann Lie made Vega. So it is her.", ""),  # the first is a sentence of the context
        ("Vega is a film. Ann Lie made it.", ""),  # the second sentence
        ("Anna Lie made it.", ""),  # another name
        ("Vega is new.", "every sentence is one of the context"),
        ("Ann Lie made Vega. Vega is new.", "every sentence is one of the context"),  # in another order
        ("Vega is new. Ann Lie made Vega.", "every sentence is one of the context, the supporting sentences, in order"),
    ],
)
def test_what_is_counted_of_a_kept_rationale(rationale, counted):
    paragraph = data.Paragraph("Vega", ("Vega is new.", "Ann Lie made Vega."))
    example = data.Example("i", "Who made Vega?", (paragraph,), "Ann Lie", supporting_facts=((0, 0), (0, 1)))
    assert ", ".join(train_kd.remarks(rationale, example)) == counted


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs FLAN-T5's tokenizer")
@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Karel Čapek met Dvořák.", "Karel Capek met Dvorak."),
        ("Łódź and Ålesund", "Lodz and Alesund"),
        ("Beyoncé sang in Köln.", "Beyoncé sang in Köln."),  # T5's vocabulary has French and German letters
        ("He moved to 東京 in 1950.", "He moved to in 1950."),
        ("a {b} c", "a b c"),
        ("東京", ""),
    ],
)
def test_a_text_is_what_flan_t5_can_write_of_it(text, written):
    tokenizer = load_tokenizer(SAMPLES / "flan-t5")
    assert train_kd.writable(text, tokenizer) == written
    assert tokenizer.decode(tokenizer.encode(written).ids) == written


# ------------------------------------------------------------------------------------------------ a scripted teacher

EXAMPLES = {split: data.load("tiny", split, size) for split, size in SIZES.items()}
KNOWN = {example.id: example for examples in EXAMPLES.values() for example in examples}
ASKED = [example.id for example in EXAMPLES["train"] + EXAMPLES["dev"]]


def facts(example):
    """The rationale of a good chain of thought."""
    return " ".join(example.supporting_sentences)


def plan(example):
    """What M_L does with a question; of eight in a split, three are good, one of these in two passes."""
    kinds = ("good", "wrong", "empty", "two-stage", "looping", "long", "good", "wrong in two stages")
    return kinds[int(example.id.split("-")[-1]) % 8]


def good(split):
    return [example for example in EXAMPLES[split] if plan(example) in ("good", "two-stage")]


def says(prompt, _):
    """M_L as a script: it follows the plan when it is to think, and knows nothing without thinking."""
    example = example_of(prompt, KNOWN.values())
    kind, end = plan(example), f" So the answer is {example.answer}."
    if prompt.endswith("Therefore, the answer is"):
        return example.answer if kind == "two-stage" else "nonsense"
    if not prompt.endswith("step by step."):
        return "nonsense"
    chains = {
        "wrong": facts(example) + " So the answer is nonsense.",
        "empty": end,
        "two-stage": facts(example),
        "wrong in two stages": facts(example),
        "looping": facts(example) + " the seat of Roburg" * 4 + "." + end,
        "long": facts(example) + " " + " ".join(world.NAMES["woman"]) + "." + end,
    }
    return chains.get(kind, facts(example) + end)


def thought_about(teacher):
    """The ids of the questions of which M_L was asked a chain of thought, in order."""
    return [example_of(prompt, KNOWN.values()).id for prompt in teacher.asked if prompt.endswith("step by step.")]


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain.make_tokenizer()


@pytest.fixture(scope="module")
def student(tokenizer, tmp_path_factory):
    """A random M_S."""
    folder = tmp_path_factory.mktemp("student")
    save_random_small(folder, tokenizer)
    return folder


def start(patch, student, folder, *arguments):
    """Run train_kd.py in this process → (exit status, M_L)."""
    teacher = ScriptedLM(says)

    def make(batch_size, **_):
        teacher.batch_size = batch_size
        return teacher

    flags = {"--out": folder, "--small": student, "--large": "teacher", "--max-new-tokens": LIMIT, "--epochs": 3,
             "--batch-size": 4, "--decode-batch-size": 3, "--lr": 3e-3, "--samples": 2}  # fmt: skip
    return run_script(patch, train_kd, SIZES, make, flags, arguments), teacher


@pytest.fixture
def train(student, monkeypatch):
    """`start` with the student: train(folder, *arguments)."""
    return functools.partial(start, monkeypatch, student)


@pytest.fixture(scope="module")
def whole(student, tmp_path_factory):
    """One run that nothing interrupts: (folder, M_L, the (source, target) ids that it was trained on)."""
    folder, calls, original = tmp_path_factory.mktemp("whole") / "kd", [], train_kd.make_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_kd, "make_batches", lambda *args: calls.append(args) or original(*args))
        code, teacher = start(patch, student, folder)
    assert code == 0
    return folder, teacher, next(pairs for pairs, _, *rng in calls if rng)


# ------------------------------------------------------------------------------------------------ a whole run


def test_a_run_leaves_every_rationale_with_what_became_of_it(whole):
    folder, teacher, _ = whole
    rows = lines(folder / "rationales.jsonl")
    assert [row["id"] for row in rows] == ASKED == thought_about(teacher)[: len(ASKED)]
    for row in rows:
        kind, expected = plan(KNOWN[row["id"]]), facts(KNOWN[row["id"]])
        assert row["right"] == (kind not in ("wrong", "wrong in two stages"))
        assert row["parsed"] == (kind not in ("two-stage", "wrong in two stages"))
        assert row["rationale"] == "" if kind == "empty" else row["rationale"].startswith(expected)


def test_the_filter_counts_what_the_teacher_did(whole):
    for split, count in zip(("train", "dev"), json.loads((whole[0] / "filter.json").read_text()), strict=True):
        eighth = SIZES[split] // 8
        dropped = {name.split()[1]: n for name, n in count.items() if name.startswith("dropped: ")}
        assert dropped == {"wrong": 2 * eighth, "empty": eighth, "looping": eighth, "cut": eighth}
        assert (count["asked"], count["kept"]) == (8 * eighth, 3 * eighth)
        assert count["no answer in the first pass"] == 2 * eighth
        assert count["kept: every sentence is one of the context"] == count["kept"]  # as scripted


def test_the_student_learns_exactly_the_good_rationales_without_the_answer_sentence(whole, tokenizer):
    _, _, pairs = whole
    assert len(pairs) == len(good("train")) == 12
    for (source, target), example in zip(pairs, good("train"), strict=True):
        assert tokenizer.decode(target) == facts(example) and "answer is" not in facts(example)
        assert tokenizer.decode(source) == (
            "Based on the context, generate reasoning step by step to answer the question. "
            f"Question: {example.question} Context: {example.context} Reasoning:"
        )
        assert source[-1] == target[-1] == 1


def test_training_lowers_the_held_out_loss_and_saves_the_best_epoch(whole, student):
    metrics = lines(whole[0] / "metrics.jsonl")
    assert [m["epoch"] for m in metrics] == [0, 1, 2, 3]
    losses = [m["held_out_loss"] for m in metrics]
    assert min(losses) < 0.97 * losses[0]
    # The held-out loss of the saved model, by hand: one pair after the other, as a mean over tokens.
    lm, total, tokens = LocalLM.load(whole[0] / "model"), 0.0, 0
    for example, prompt in zip(good("dev"), lmcot.fill(lmcot.RATIONALE, lm, good("dev")), strict=True):
        ids, labels = (torch.tensor([lm.tokenizer.encode(text).ids]) for text in (prompt, facts(example)))
        with torch.no_grad():
            logits = lm.model(ids, torch.ones_like(ids), torch.cat([torch.zeros(1, 1, dtype=int), labels[:, :-1]], 1))
        total -= float(logits[0].log_softmax(-1)[range(labels.shape[1]), labels[0]].sum())
        tokens += labels.shape[1]
    assert total / tokens == pytest.approx(min(losses), rel=1e-4)
    before = T5.from_pretrained(student).state_dict()
    assert all(not torch.equal(before[name], p) for name, p in lm.model.state_dict().items() if p.ndim == 2)


def test_texts_of_held_out_questions_are_kept_before_training_and_after_each_epoch(whole, student):
    rows = lines(whole[0] / "texts.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    losses = [row["held_out_loss"] for row in lines(whole[0] / "metrics.jsonl")]
    for row, folder in ((rows[0], student), (rows[losses.index(min(losses))], whole[0] / "model")):
        lm = LocalLM.load(folder, max_input_tokens=1024)
        answers = {answer["id"]: answer for answer in row["answers"]}
        assert list(answers) == [example.id for example in EXAMPLES["dev"]]
        for example, rationale in zip(EXAMPLES["dev"], lmcot.write_rationales(lm, EXAMPLES["dev"], LIMIT), strict=True):
            assert answers[example.id]["rationale"] == rationale and answers[example.id]["prediction"] == "nonsense"


def test_the_table_at_the_end_has_every_method_that_needs_no_other_student(whole):
    table = json.loads((whole[0] / "results.json").read_text())
    assert set(table["methods"]) == {"standard", "CoT", "CoT + SC", "LM-guided, untrained", "LM-guided, KD",
                                     "LM-guided, KD + SC", "LM-guided, KD, best of N", "gold rationale",
                                     "other's rationale"}  # fmt: skip
    # The test questions are 0 to 3 by plan: good, wrong, empty (its answer is right), two-stage (right).
    assert table["questions"] == 4 and table["methods"]["CoT"]["EM"]["mean"] == 0.75
    assert table["methods"]["CoT"]["two-stage"] == 0.25 and table["methods"]["standard"]["EM"]["mean"] == 0


def test_the_same_command_again_prints_the_table_and_asks_and_trains_nothing(whole, capsys, train):
    folder = whole[0]
    before = files_of(folder)
    code, teacher = train(folder)
    assert code == 0 and not teacher.asked
    assert (folder / "results.md").read_text().strip() in capsys.readouterr().out
    assert files_of(folder) == before


# ------------------------------------------------------------------------------------------------ interruptions


def test_interrupted_while_m_l_writes_what_is_there_is_not_asked_again_and_the_result_is_the_same(
    whole, tmp_path, train
):
    folder = tmp_path / "kd"
    with failing_once(lmcot, "chain_of_thought", 3, KeyboardInterrupt()):  # after two chunks of 4 · 3 questions
        assert train(folder)[0] == 130
    rows = (folder / "rationales.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == 24
    # A crash in a write left part of a chunk. It is asked whole: in another batch M_L would round differently.
    (folder / "rationales.jsonl").write_text("".join(rows[:18]) + rows[18][:40])
    code, teacher = train(folder)
    assert code == 0 and thought_about(teacher)[: len(ASKED) - 12] == ASKED[12:]
    assert not set(thought_about(teacher)) & set(ASKED[:12])
    assert differences(whole[0], folder) == OUT


@pytest.mark.parametrize(
    ("place", "name", "number", "error", "status", "epochs_saved"),
    [
        (train_kd, "held_out_loss", 3, KeyboardInterrupt(), 130, 1),
        (torch, "save", 1, KeyboardInterrupt(), 130, 0),
        (torch, "save", 2, OSError(28, "No space left on device"), 2, 1),
    ],
    ids=["in the second epoch", "while its first state is written", "by a full disk"],
)
def test_interrupted_in_training_the_run_goes_on_bit_identically(
    place, name, number, error, status, epochs_saved, whole, tmp_path, capsys, train
):
    folder = tmp_path / "kd"
    with failing_once(place, name, number, error):
        assert train(folder)[0] == status
    if status == 2:
        assert "No space left on device" in error_of(capsys)
    saved = torch.load(folder / "state.pt", weights_only=True)["epoch"] if (folder / "state.pt").exists() else 0
    assert saved == epochs_saved
    code, teacher = train(folder)
    assert code == 0 and not set(thought_about(teacher)) & set(ASKED)
    assert differences(whole[0], folder) == OUT


# ------------------------------------------------------------------------------------------------ steps


def test_a_loss_that_is_no_number_stops_the_step_saves_its_batch_and_keeps_the_last_epoch(
    whole, tmp_path, monkeypatch, capsys, train
):
    folder, batches, original = tmp_path / "kd", [], train_kd.token_loss

    def loss(model, *args):
        batches.extend([args] * model.training)
        broken = model.training and len(batches) == 5  # three in an epoch
        return original(model, *args) * (float("nan") if broken else 1)

    monkeypatch.setattr(train_kd, "token_loss", loss)
    assert train(folder)[0] == 2
    said = error_of(capsys)
    assert "a loss or its gradient is not a finite number" in said and "bad_batch.pt" in said and "--lr" in said
    assert torch.load(folder / "state.pt", weights_only=True)["epoch"] == 1
    batch = torch.load(folder / "bad_batch.pt", weights_only=True)
    assert batch["epoch"] == 2 and not torch.tensor(batch["loss"]).isfinite()
    for found, expected in zip(batch["batch"], batches[4][:3], strict=True):  # ids, mask, labels
        assert torch.equal(found, expected)
    monkeypatch.setattr(train_kd, "token_loss", original)  # say, on another machine
    assert train(folder)[0] == 0
    assert differences(whole[0], folder) == ["bad_batch.pt", *OUT]


def test_a_learning_rate_that_breaks_the_weights_ends_in_one_sentence_and_saves_none_of_it(tmp_path, capsys, train):
    folder = tmp_path / "kd"
    assert train(folder, "--lr", 1e30)[0] == 2
    said = error_of(capsys)
    assert "not a finite number" in said and "--lr" in said
    assert not (folder / "model").exists() and not (folder / "state.pt").exists()


def test_a_step_takes_a_gradient_of_norm_1_at_most(tmp_path, monkeypatch, train):
    norms, step = [], torch.optim.AdamW.step

    def recording(optimizer, *rest):
        gradients = [p.grad.flatten() for p in optimizer.param_groups[0]["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    with failing_once(train_kd, "held_out_loss", 2, KeyboardInterrupt()):  # one epoch is enough
        train(tmp_path / "kd")
    assert norms == pytest.approx([1.0] * 3, rel=1e-3)  # at random weights they are all clipped


# ------------------------------------------------------------------------------------------------ other ways to run it


def test_another_seed_gives_another_student(whole, tmp_path, train):
    with failing_once(torch, "save", 1, KeyboardInterrupt()):  # after one epoch
        train(tmp_path / "kd", "--seed", 1)
    first, other = lines(whole[0] / "metrics.jsonl"), lines(tmp_path / "kd" / "metrics.jsonl")
    assert first[0] == other[0] and first[1] != other[1]


def test_the_control_learns_answers_and_asks_the_teacher_no_rationales(tokenizer, tmp_path, monkeypatch, train):
    pairs, original = [], train_kd.make_batches
    monkeypatch.setattr(train_kd, "make_batches", lambda p, *rest: pairs.append(p) or original(p, *rest))
    assert train(tmp_path / "d", "--target", "answer", "--epochs", 1)[0] == 0
    assert not (tmp_path / "d" / "rationales.jsonl").exists() and not lines(tmp_path / "d" / "texts.jsonl")
    learned = max(pairs, key=len)
    assert [tokenizer.decode(target) for _, target in learned] == [example.answer for example in EXAMPLES["train"]]
    sources = [tokenizer.decode(source) for source, _ in learned]
    assert all(s.startswith("Answer the question based on the context. ") and s.endswith(" Answer:") for s in sources)
    table = json.loads((tmp_path / "d" / "results.json").read_text())
    assert "M_S alone" in table["methods"] and "LM-guided, KD" not in table["methods"]


def test_without_the_filter_wrong_answers_stay_and_broken_texts_still_go(tmp_path, train):
    with failing_once(train_kd, "held_out_loss", 1, KeyboardInterrupt()):  # the filter has done its work
        train(tmp_path / "n", "--no-filter")
    counts, dev = json.loads((tmp_path / "n" / "filter.json").read_text())
    assert (counts["kept"], dev["kept"]) == (5 * SIZES["train"] // 8, 5 * SIZES["dev"] // 8)
    assert {name.split()[1] for name in counts if name.startswith("dropped: ")} == {"empty", "looping", "cut"}


def test_a_filter_that_leaves_nothing_ends_the_run_in_one_sentence(tmp_path, capsys, train):
    assert train(tmp_path / "kd", "--max-new-tokens", 1)[0] == 2  # every rationale is cut
    assert "nothing to learn from" in error_of(capsys) and not (tmp_path / "kd" / "model").exists()


def test_a_mistyped_model_folder_is_named_and_can_be_corrected_without_overwrite(tmp_path, capsys, train):
    assert train(tmp_path / "kd", "--small", tmp_path / "nowhere")[0] == 2
    assert "nowhere" in error_of(capsys)
    with failing_once(lmcot, "chain_of_thought", 1, KeyboardInterrupt()):
        assert train(tmp_path / "kd")[0] == 130


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--target", "poem"], "--target"), (["--epochs", "0"], "--epochs"), (["--data", "x.json"], "--test-data")],
)
def test_wrong_flags_end_in_usage_and_status_2(arguments, said, monkeypatch, capsys):
    assert call(monkeypatch, train_kd.main, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("usage:") and said in err.splitlines()[-1]
