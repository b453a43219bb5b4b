"""Proofs for train_kd.py: whole runs with random tiny models and a scripted teacher, interrupted and continued."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import ScriptedLM, call, files_of, lines, run_script, save_random_small

import data
import lmcot
import train_kd
from lmcot import LocalLM
from model import T5
from tiny import pretrain, world

ROOT = Path(__file__).parents[1]
SIZES = {"train": 32, "dev": 16, "test": 4}
LIMIT = 60  # tokens of a rationale


# ------------------------------------------------------------------------------------------------ the filter, by hand


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("a b c d a b c d", False),  # twice is what a comparison looks like
        ("a b c d x a b c d y a b c d", True),
        ("a a a a a", False),  # two 4-grams
        ("a a a a a a", True),
        ("a b c a b c a b c", False),  # abca twice, no 4-gram three times
        ("", False),
    ],
)
def test_looping_is_a_4_gram_three_times(text, looping):
    assert train_kd.is_looping(text) == looping


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"rationale": ""}, "empty"),
        ({"finish": "length"}, "cut"),
        ({"finish": "none"}, "no answer"),
        ({"rationale": "word " * 41}, "cut"),
        ({"rationale": " ".join(map(str, range(40)))}, ""),
        ({"rationale": "a b c d " * 3}, "looping"),
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
    ("rationale", "leaps"),
    [
        ("Based on the context, Ann Lie is the answer. Ann Lie made Vega.", True),
        ("Ann Lie made Vega. So it is her.", False),  # a sentence of the context
        ("Vega is a film. Ann Lie made it.", False),  # the second sentence
        ("Anna Lie made it.", False),  # another name
    ],
)
def test_a_first_sentence_that_states_the_answer_is_seen(rationale, leaps):
    paragraph = data.Paragraph("Vega", ("Vega is new.", "Ann Lie made Vega."))
    example = data.Example("i", "Who made Vega?", (paragraph,), "Ann Lie")
    assert train_kd.states_answer_first(rationale, example) == leaps


# ------------------------------------------------------------------------------------------------ a scripted teacher


def knowledge():
    rows = [record for split, size in SIZES.items() for record in world.records(split, world.SEED, size)]
    texts = {r["question"]: dict(r["context"]) for r in rows}
    facts = {r["question"]: " ".join(texts[r["question"]][t][i] for t, i in r["supporting_facts"]) for r in rows}
    return {r["question"]: (int(r["_id"].split("-")[-1]), r["answer"], facts[r["question"]]) for r in rows}


KNOWN = knowledge()
ASKED = list(KNOWN)[: SIZES["train"] + SIZES["dev"]]  # the questions of both splits


def plan(number: int) -> str:
    """What the teacher does with question `number` of a split; of eight, three are good, one of these in two passes."""
    return ("good", "wrong", "empty", "two-stage", "looping", "long", "good", "wrong in two stages")[number % 8]


class Teacher(ScriptedLM):
    """M_L as a script. `fail_at`: Ctrl-C at this call for chains of thought."""

    def __init__(self, fail_at=None, right=True, batch_size=0, **_):
        self.fail_at, self.right, self.batch_size, self.chains = fail_at, right, batch_size, 0
        self.thought_about = []  # questions
        super().__init__(self.answer)

    def complete(self, prompts, *rest):
        self.chains += any(prompt.endswith("step by step.") for prompt in prompts)
        if self.chains == self.fail_at:
            raise KeyboardInterrupt
        return super().complete(prompts, *rest)

    def answer(self, prompt, _):
        question = re.search(r"Question: (.*)\n", prompt)[1]
        number, answer, facts = KNOWN[question]
        kind = plan(number)
        if prompt.endswith("step by step."):
            self.thought_about.append(question)
            said = answer if self.right and kind != "wrong" else "nonsense"
            return {"two-stage": facts, "wrong in two stages": facts, "empty": f"So the answer is {answer}.",
                    "looping": f"{facts}{' the seat of Roburg' * 4}. So the answer is {answer}.",
                    "long": f"{facts} {' '.join(world.NAMES['woman'])}. So the answer is {answer}.",
                    }.get(kind, f"{facts} So the answer is {said}.")  # fmt: skip
        if prompt.endswith("Therefore, the answer is"):
            return answer if kind == "two-stage" and self.right else "nonsense"
        return "nonsense"


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain.make_tokenizer()


@pytest.fixture(scope="module")
def student(tokenizer, tmp_path_factory):
    """A random M_S."""
    folder = tmp_path_factory.mktemp("student")
    save_random_small(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def whole(student, tmp_path_factory):
    """One run that nothing interrupts: (folder, what it printed, the (source, target) ids it was trained on)."""
    with pytest.MonkeyPatch.context() as patch:
        pairs, original = [], train_kd.make_batches

        def recording(pairs_given, size, rng=None):
            if rng and not pairs:
                pairs.extend(pairs_given)
            return original(pairs_given, size, rng)

        patch.setattr(train_kd, "make_batches", recording)
        folder = tmp_path_factory.mktemp("whole") / "kd"
        code, teachers = start(patch, student, folder)
        assert code == 0
    return folder, teachers, pairs


def start(patch, student, folder, *arguments, **teacher_options):
    """Run train_kd.py in this process → (exit status, the teachers that were loaded)."""
    teachers = []

    def make(**options):
        teachers.append(Teacher(**teacher_options, **options))
        return teachers[-1]

    flags = {"--out": folder, "--small": student, "--large": "teacher", "--max-new-tokens": LIMIT, "--epochs": 3,
             "--batch-size": 4, "--decode-batch-size": 3, "--lr": 3e-3, "--samples": 2}  # fmt: skip
    return run_script(patch, train_kd, SIZES, make, flags, arguments), teachers


@pytest.fixture
def train(student, monkeypatch):
    """`start` with the student: train(folder, *arguments, **teacher_options)."""
    return functools.partial(start, monkeypatch, student)


# ------------------------------------------------------------------------------------------------ a whole run


def test_a_run_leaves_every_rationale_with_what_became_of_it(whole):
    folder, (teacher,), _ = whole
    rows = lines(folder / "rationales.jsonl")
    assert [row["question"] for row in rows] == ASKED == teacher.thought_about[: len(ASKED)]
    for row in rows:
        kind = plan(int(row["id"].split("-")[-1]))
        facts = KNOWN[row["question"]][2]
        assert row["right"] == (kind not in ("wrong", "wrong in two stages"))
        assert row["parsed"] == (kind not in ("two-stage", "wrong in two stages"))
        assert row["rationale"] == "" if kind == "empty" else row["rationale"].startswith(facts)


def test_the_filter_counts_what_the_teacher_did(whole):
    counts = json.loads((whole[0] / "filter.json").read_text())
    for split, count in zip(("train", "dev"), counts, strict=True):
        eighth = SIZES[split] // 8
        dropped = {name.split()[1]: n for name, n in count.items() if name.startswith("dropped: ")}
        assert dropped == {"wrong": 2 * eighth, "empty": eighth, "looping": eighth, "cut": eighth}
        assert (count["asked"], count["kept"]) == (8 * eighth, 3 * eighth)
        assert count["no answer in the first pass"] == 2 * eighth


def test_the_student_learns_exactly_the_good_rationales_without_the_answer_sentence(whole, tokenizer):
    _, _, pairs = whole
    good = [r for r in world.records("train", world.SEED, SIZES["train"])
            if plan(int(r["_id"].split("-")[-1])) in ("good", "two-stage")]  # fmt: skip
    assert len(pairs) == len(good) == 12
    for (source, target), record in zip(pairs, good, strict=True):
        text = tokenizer.decode(target)
        assert text == KNOWN[record["question"]][2] and "answer is" not in text and target[-1] == 1
        prompt = tokenizer.decode(source)
        assert prompt.startswith("Based on the context, generate reasoning step by step to answer the question. "
                                 f"Question: {record['question']} Context: ")  # fmt: skip
        assert prompt.endswith(" Reasoning:") and source[-1] == 1
        gold = {title for title, _ in record["supporting_facts"]}
        context = " ".join(s for title, ss in record["context"] if title in gold for s in ss)
        assert f"Context: {context} Reasoning:" in prompt


def test_training_lowers_the_held_out_loss_and_saves_the_best_epoch(whole, student):
    folder = whole[0]
    metrics = lines(folder / "metrics.jsonl")
    assert [m["epoch"] for m in metrics] == [0, 1, 2, 3]
    losses = [m["held_out_loss"] for m in metrics]
    assert min(losses) < 0.97 * losses[0]
    # The held-out loss of the saved model, by hand: one pair after the other, as a mean over tokens.
    lm, total, tokens = LocalLM.load(folder / "model"), 0.0, 0
    dev = data.load("tiny", "dev", SIZES["dev"])
    examples = [e for e in dev if plan(KNOWN[e.question][0]) in ("good", "two-stage")]
    for prompt, example in zip(lmcot.fill(lmcot.RATIONALE, lm, examples), examples, strict=True):
        target = KNOWN[example.question][2]
        ids, labels = (torch.tensor([lm.tokenizer.encode(t).ids]) for t in (prompt, target))
        with torch.no_grad():
            logits = lm.model(ids, torch.ones_like(ids), torch.cat([torch.zeros(1, 1, dtype=int), labels[:, :-1]], 1))
        total -= float(logits[0].log_softmax(-1)[range(labels.shape[1]), labels[0]].sum())
        tokens += labels.shape[1]
    assert total / tokens == pytest.approx(min(losses), rel=1e-4)
    before = T5.from_pretrained(student).state_dict()
    assert all(not torch.equal(before[name], p) for name, p in lm.model.state_dict().items() if p.ndim == 2)


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
    code, teachers = train(folder)
    assert code == 0 and not any(t.thought_about for t in teachers)
    assert (folder / "results.md").read_text().strip() in capsys.readouterr().out
    assert files_of(folder) == before


# ------------------------------------------------------------------------------------------------ interruptions


def same_run(a, b):
    def results(folder):
        table = json.loads((folder / "results.json").read_text())
        for row in table["methods"].values():
            row.pop("seconds per question")
        return table

    for name in ("model/model.safetensors", "rationales.jsonl", "filter.json", "metrics.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    last = [torch.load(folder / "state.pt", weights_only=True) for folder in (a, b)]
    assert all(torch.equal(last[0]["model"][key], p) for key, p in last[1]["model"].items())
    assert results(a) == results(b)


def test_interrupted_while_the_teacher_writes_only_the_rest_is_asked_and_the_result_is_the_same(
    whole, tmp_path, capsys, train
):
    folder = tmp_path / "kd"
    code, _ = train(folder, fail_at=3)  # after two chunks of 4 · 3 questions
    assert code == 130 and len(lines(folder / "rationales.jsonl")) == 24
    code, (teacher,) = train(folder)
    assert code == 0 and teacher.thought_about[: len(ASKED) - 24] == ASKED[24:]
    assert not set(teacher.thought_about) & set(ASKED[:24])
    same_run(whole[0], folder)


@pytest.mark.parametrize(
    ("place", "name", "last_call", "epochs_saved"),
    [(train_kd, "held_out_loss", 3, 1), (torch, "save", 2, 1), (torch, "save", 1, 0)],
    ids=["in the second epoch", "while its state is written", "while its first state is written"],
)
def test_interrupted_in_training_the_run_goes_on_bit_identically(
    place, name, last_call, epochs_saved, whole, tmp_path, monkeypatch, capsys, train
):
    folder, calls = tmp_path / "kd", []
    original = getattr(place, name)

    def interrupted(*args, **kwargs):
        calls.append(name)
        if len(calls) == last_call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted)
    code, _ = train(folder)
    monkeypatch.setattr(place, name, original)
    assert code == 130 and len(calls) == last_call
    saved = torch.load(folder / "state.pt", weights_only=True)["epoch"] if (folder / "state.pt").exists() else 0
    assert saved == epochs_saved
    code, (teacher,) = train(folder)
    assert code == 0 and not set(teacher.thought_about) & set(ASKED)
    same_run(whole[0], folder)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"\0" * len(raw)])
def test_a_damaged_state_is_named_in_one_sentence_and_nothing_is_lost(damage, whole, tmp_path, capsys, train):
    folder = tmp_path / "kd"
    shutil.copytree(whole[0], folder)
    (folder / "results.md").unlink()  # as if the run had not ended
    (folder / "state.pt").write_bytes(damage((folder / "state.pt").read_bytes()))
    before = files_of(folder)
    assert train(folder)[0] == 2
    one_sentence(capsys, "state.pt is damaged", "--overwrite")
    assert files_of(folder) == before


# ------------------------------------------------------------------------------------------------ broken numbers


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
    one_sentence(capsys, "a loss or its gradient is not a finite number", "bad_batch.pt", "--lr")
    assert torch.load(folder / "state.pt", weights_only=True)["epoch"] == 1
    batch = torch.load(folder / "bad_batch.pt", weights_only=True)
    assert batch["epoch"] == 2 and not torch.tensor(batch["loss"]).isfinite()
    for found, expected in zip(batch["batch"], batches[4][:3], strict=True):  # ids, mask, labels
        assert torch.equal(found, expected)
    monkeypatch.setattr(train_kd, "token_loss", original)  # say, on another machine
    assert train(folder)[0] == 0
    same_run(whole[0], folder)


def test_a_learning_rate_that_breaks_the_weights_ends_in_one_sentence_and_saves_none_of_it(tmp_path, capsys, train):
    folder = tmp_path / "kd"
    assert train(folder, "--lr", 1e30)[0] == 2
    one_sentence(capsys, "not a finite number", "--lr")
    assert not (folder / "model").exists() and not (folder / "state.pt").exists()


def test_a_step_takes_a_gradient_of_norm_1_at_most(tmp_path, monkeypatch, train):
    norms, step = [], torch.optim.AdamW.step

    def recording(optimizer, *rest):
        gradients = [p.grad.flatten() for p in optimizer.param_groups[0]["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    assert train(tmp_path / "kd", "--epochs", 1, "--samples", 1)[0] == 0
    assert norms == pytest.approx([1.0] * len(norms), rel=1e-3)  # at random weights they are all clipped


def test_on_a_full_disk_training_ends_in_one_sentence_and_goes_on_when_there_is_room(
    whole, tmp_path, monkeypatch, capsys, train
):
    resource = pytest.importorskip("resource")
    before, folder, save = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "kd", torch.save

    def save_on_a_full_disk(*args):
        if (folder / "state.pt").exists():  # the second state, and halfway through it
            resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "state.pt").stat().st_size // 2, before[1]))
        save(*args)

    monkeypatch.setattr(torch, "save", save_on_a_full_disk)
    try:
        assert train(folder)[0] == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_sentence(capsys, f"{folder / 'state.pt'}: File too large")
    assert torch.load(folder / "state.pt", weights_only=True)["epoch"] == 1
    monkeypatch.setattr(torch, "save", save)
    assert train(folder)[0] == 0
    same_run(whole[0], folder)


# ------------------------------------------------------------------------------------------------ other ways to run it


def test_another_seed_gives_another_student(whole, tmp_path, train):
    assert train(tmp_path / "kd", "--seed", 1, "--epochs", 1)[0] == 0
    first, other = lines(whole[0] / "metrics.jsonl"), lines(tmp_path / "kd" / "metrics.jsonl")
    assert first[0] == other[0] and first[1] != other[1]


def test_the_control_learns_answers_and_asks_the_teacher_no_rationales(tokenizer, tmp_path, monkeypatch, train):
    pairs, original = [], train_kd.make_batches
    monkeypatch.setattr(train_kd, "make_batches", lambda p, *rest: pairs.append(p) or original(p, *rest))
    assert train(tmp_path / "d", "--target", "answer", "--epochs", 1)[0] == 0
    assert not (tmp_path / "d" / "rationales.jsonl").exists()
    learned = max(pairs, key=len)
    records = world.records("train", world.SEED, SIZES["train"])
    assert [tokenizer.decode(target) for _, target in learned] == [r["answer"] for r in records]
    sources = [tokenizer.decode(source) for source, _ in learned]
    assert all(s.startswith("Answer the question based on the context. ") and s.endswith(" Answer:") for s in sources)
    table = json.loads((tmp_path / "d" / "results.json").read_text())
    assert "M_S alone" in table["methods"] and "LM-guided, KD" not in table["methods"]


def test_without_the_filter_wrong_answers_stay_and_broken_texts_still_go(tmp_path, train):
    assert train(tmp_path / "n", "--no-filter", "--epochs", 1)[0] == 0
    train, dev = json.loads((tmp_path / "n" / "filter.json").read_text())
    assert (train["kept"], dev["kept"]) == (5 * SIZES["train"] // 8, 5 * SIZES["dev"] // 8)
    assert {name.split()[1] for name in train if name.startswith("dropped: ")} == {"empty", "looping", "cut"}


def one_sentence(capsys, *said):
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ") or "Traceback" in line]
    assert len(err) == 1 and all(word in err[0] for word in said), err


def test_a_teacher_that_is_never_right_ends_the_run_in_one_sentence(tmp_path, capsys, train):
    code, _ = train(tmp_path / "kd", right=False)
    # "empty", "looping" and "long" chains still name the right answer, and are dropped for other reasons
    assert code == 2 and not (tmp_path / "kd" / "model").exists()
    one_sentence(capsys, "nothing to learn from")


def test_part_of_a_chunk_is_asked_with_the_whole_chunk_and_written_once(whole, tmp_path, train):
    """In another batch M_L would round differently, so that some text might come out differently."""
    folder = tmp_path / "kd"
    assert train(folder, fail_at=2)[0] == 130
    twelve = (folder / "rationales.jsonl").read_text()
    (folder / "rationales.jsonl").write_text(twelve[: len(twelve) // 2])
    assert train(folder, fail_at=2)[0] == 130
    assert (folder / "rationales.jsonl").read_text() == twelve and len(twelve.splitlines()) == 12


def test_a_mistyped_model_folder_is_named_and_can_be_corrected_without_overwrite(tmp_path, capsys, train):
    assert train(tmp_path / "kd", "--small", tmp_path / "nowhere")[0] == 2
    one_sentence(capsys, "nowhere")
    assert train(tmp_path / "kd", fail_at=1)[0] == 130  # goes on as far as the teacher


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--target", "poem"], "--target"), (["--epochs", "0"], "--epochs"), (["--data", "x.json"], "--test-data")],
)
def test_wrong_flags_end_in_usage_and_status_2(arguments, said, monkeypatch, capsys):
    assert call(monkeypatch, train_kd.main, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("usage:") and said in err.splitlines()[-1]


def test_a_missing_data_file_ends_the_real_program_in_one_sentence_and_status_2(tmp_path):
    command = [sys.executable, ROOT / "train_kd.py", "--out", "kd"]
    command += ["--data", "nowhere.json", "--test-data", "nowhere.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: nowhere.json: there is no such file")
