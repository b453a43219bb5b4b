"""Rationale distillation, the first training: M_S learns to write M_L's rationales, those that led to right answers.

    python train_kd.py                                         # tiny pair, TinyWiki → runs/kd, minutes on a CPU
    python train_kd.py --seed 1 --out runs/kd1 --rationales runs/kd           # another seed; M_L is not asked again
    python train_kd.py --target answer --out runs/direct       # control: M_S learns to answer, without rationales
    python train_kd.py --large http://localhost:8000/v1 --large-model NAME --out runs/served   # M_L behind a server
    python train_kd.py --small google/flan-t5-small --large google/flan-t5-xxl --large-dtype bfloat16 --data hotpotqa \\
        --lr 3e-4 --train-limit 90000 --out runs/kd-hotpotqa   # FLAN-T5 on HotpotQA: docs/real-models.md

1 M_L writes reasoning and answer for every training question (zero-shot chain of thought).
2 A rationale is kept only if its answer is right, and if it is not empty, cut or looping.
3 M_S is trained on (question, context) → rationale, without the answer; the held-out loss decides when to stop.
4 M_L answers from M_S's rationales, before and after; every method side by side.

Departures from the paper: the filter's details, prompts and hyper-parameters are ours (those of the paper are unknown).
The same command continues a run that was interrupted and prints the table of one that has ended.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tqdm import tqdm

import data
import lmcot
from data import Example
from eval import evaluate, texts_of_large
from lmcot import LM, LocalLM
from model import T5, pad_batch
from plumbing import downloads, processes
from plumbing.command import align, parse_settings, run_main
from plumbing.errors import UserError, shown
from plumbing.files import read_json, read_jsonl
from plumbing.markup import fold
from plumbing.run import Run
from tiny import world


@dataclass
class Settings(lmcot.Models):
    data: str = "tiny"  # tiny, hotpotqa, 2wiki (downloaded once), or a training file (forms: data.py, load)
    test_data: str = ""  # file of test questions; needed when --data is a file: the names have their own
    out: str = "runs/kd"  # folder of this run
    overwrite: bool = False  # start anew in a folder that holds other settings
    target: str = "rationale"  # what M_S learns to write: rationale, or answer (a control, no distillation)
    rationales: str = ""  # run folder whose rationales of M_L are taken over, so that several seeds ask it only once
    filter: bool = True  # keep only rationales that led M_L to the right answer; --no-filter shows what that is worth
    train_limit: int = 8000  # training questions that M_L is asked
    dev_limit: int = 300  # held-out questions, for early stopping
    test_limit: int = 500  # questions of the evaluation at the end
    context: str = "gold"  # gold paragraphs, or all
    max_new_tokens: int = 256  # of a rationale
    lr: float = 3e-4  # peak, AdamW without decay
    batch_size: int = 32  # examples per training step, over all processes
    micro_batch: int = 0  # examples that go through M_S at once, gradients add up to the step's (0: all); saves memory
    bf16: bool = False  # M_S learns in bfloat16 autocast, on GPUs that are fast at it; its weights stay float32
    epochs: int = 10  # at most
    patience: int = 2  # epochs without a better held-out loss before training stops
    samples: int = 10  # N of self-consistency and of best of N in the evaluation
    temperature: float = 0.7  # of these samples
    seed: int = 0  # order of batches, dropout

    NOT_COMPARED: ClassVar[tuple[str, ...]] = (*lmcot.Models.NOT_COMPARED, "out", "overwrite")

    def check(self) -> None:
        super().check()
        if self.target not in ("rationale", "answer"):
            raise ValueError("--target is rationale or answer")
        if self.data not in ("tiny", *downloads.OFFICIAL) and not self.test_data:
            raise ValueError("--data FILE needs --test-data FILE: the official dev file, whose answers are known")


# ------------------------------------------------------------------------------------------------ teacher and filter

TEACHER = ("id", "rationale", "parsed", "finish", "right")  # of rationales.jsonl, what is read from it again


def ask_teacher(run: Run, large: LM, examples: list[Example]) -> list[dict]:
    """M_L's chain of thought for each example, as rows of rationales.jsonl. They are written chunk by chunk, and a
    chunk that is there is not asked again."""
    done = {row["id"]: row for row in run.read("rationales.jsonl", *TEACHER)}
    size = 4 * large.batch_size
    for start in tqdm(range(0, len(examples), size), desc="M_L writes rationales"):
        chunk = examples[start : start + size]
        if all(example.id in done for example in chunk):
            continue
        # A chunk of which a crash left a part is asked whole: M_L rounds differently in other batches.
        thoughts = lmcot.chain_of_thought(large, chunk)
        rows = []
        for example, thought in zip(chunk, thoughts, strict=True):
            if example.id not in done:
                right = data.exact_match(thought.prediction, example.answers) == 1
                rows.append(vars(thought) | {"question": example.question, "right": right})
                done[example.id] = rows[-1]
        run.append("rationales.jsonl", *rows)
    return [done[example.id] for example in examples]


def taken_over(s: Settings) -> list[dict]:
    """The rationales of another run of this script; UserError if its M_L, prompts, token limits or data were others."""
    folder = Path(s.rationales)
    theirs = read_json(folder / "settings.json")
    for name in ("large", "large_model", "large_extra", "large_dtype", "prompts", "answer_tokens", "chain_tokens",
                 "max_input_tokens", "data", "context"):  # fmt: skip
        mine = getattr(s, name)
        if theirs.get(name) != mine:
            raise UserError(f"the rationales of {folder} were made with {name} {shown(theirs.get(name))}, "
                            f"and this run has {shown(mine)}")  # fmt: skip
    return read_jsonl(folder / "rationales.jsonl", *TEACHER)


def is_looping(text: str) -> bool:
    """Whether some four words in a row occur three times (twice is what a comparison of two things looks like)."""
    words = text.split()
    fours = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(fours.values(), default=0) > 2


def fault(row: dict, small: LM, s: Settings) -> str:
    """Why a teacher's rationale is no training example, or "" if it is one; `row` as in rationales.jsonl."""
    if row["finish"] == "none":
        return "no answer could be had"
    if not row["rationale"]:
        return "empty"
    if row["finish"] == "length" or small.count_tokens(row["rationale"]) > s.max_new_tokens:
        return "cut at the length limit"
    if is_looping(row["rationale"]):
        return "looping (a 4-gram three times)"
    if s.filter and not row["right"]:
        return "wrong answer"
    return ""


def writable(text: str, tokenizer: Tokenizer) -> str:
    """The text as M_S can write it. In words that its vocabulary lacks, letters lose their accents; what is unknown
    even then goes."""

    def is_known(text: str) -> bool:
        return tokenizer.token_to_id("<unk>") not in tokenizer.encode(text, add_special_tokens=False).ids

    if is_known(text):
        return text
    words = []
    for word in text.split():
        if not is_known(word):
            word = "".join(filter(is_known, fold(word)))
        words.append(word)
    return " ".join(filter(None, words))


def remarks(rationale: str, example: Example) -> list[str]:
    """What filter.json counts of a rationale that is kept.

    A teacher whose first sentence leaps to the answer teaches M_S to do so. Such rationales are counted and stay: the
    rule cannot tell a leap from a step in other words about the right one of two things that are compared.
    """
    sentences = list(data.split_sentences(rationale))
    first, context = sentences[0], example.sentences
    found = []
    if set(sentences) <= set(context):
        found.append("every sentence is one of the context")
    if sentences == example.supporting_sentences:
        found.append("the supporting sentences, in order")
    if first not in context and data.answer_inclusion(first, example.answers) == 1:
        found.append("the first sentence states the answer")
    return found


def teach(run: Run, large: LM, small: LocalLM, train: list[Example], dev: list[Example], s: Settings) -> dict[str, str]:
    """Example id → the rationale of M_L that M_S is to learn. What was dropped, and why, is printed and written to
    filter.json."""
    kept: dict[str, str] = {}
    counts = []
    for examples in (train, dev):
        count: Counter[str] = Counter(asked=len(examples))
        for example, row in zip(examples, ask_teacher(run, large, examples), strict=True):
            count["no answer in the first pass"] += not row["parsed"]
            target = writable(row["rationale"], small.tokenizer)
            why = fault(row | {"rationale": target}, small, s)
            if why:
                count[f"dropped: {why}"] += 1
                continue
            kept[row["id"]] = target
            count["kept"] += 1
            for remark in remarks(row["rationale"], example):
                count[f"kept: {remark}"] += 1
            count["kept: with letters that M_S lacks"] += target != row["rationale"]
        counts.append(count)
    run.write("filter.json", counts)
    table = [["rationales of M_L", "train", "held out"]]
    for what in sorted(counts[0] | counts[1]):
        of = "kept" if what.startswith("kept: ") else "asked"  # of which a share is shown
        table.append([what, *(f"{count[what]} ({count[what] / max(1, count[of]):.0%})" for count in counts)])
    print(f"\n{align(table)}\n")
    return kept


# ------------------------------------------------------------------------------------------------ student

Pair = tuple[list[int], list[int]]  # source ids, target ids


def encode_pairs(small: LocalLM, examples: list[Example], targets: dict[str, str], template: str) -> list[Pair]:
    """The examples that have a target → what M_S reads and what it learns to write."""
    kept = [example for example in examples if example.id in targets]
    sources = small.tokenizer.encode_batch(lmcot.fill(template, small, kept))
    labels = small.tokenizer.encode_batch([targets[example.id] for example in kept])
    return [(source.ids, label.ids) for source, label in zip(sources, labels, strict=True)]


def make_batches(pairs: list[Pair], size: int, rng: random.Random | None = None):
    """Batches (ids, mask, labels) of similar length, so that little is padding. rng shuffles the order of the batches,
    and all pairs, of which the sort then leaves those of equal length as they are."""
    starts = list(range(0, len(pairs), size))
    if rng:
        rng.shuffle(starts)
        pairs = rng.sample(pairs, len(pairs))
    pairs = sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))
    for start in starts:
        sources, targets = zip(*pairs[start : start + size], strict=True)
        ids, mask = pad_batch(sources)
        labels, label_mask = pad_batch(targets)
        yield ids, mask, labels.masked_fill(label_mask == 0, -100)


def token_loss(model: T5, ids, mask, labels, bf16=False) -> torch.Tensor:
    """Cross-entropy summed over the target's tokens, in nats; divide by their number for the mean."""
    device = model.shared.weight.device
    ids, mask, labels = ids.to(device), mask.to(device), labels.to(device)
    is_token = labels != -100
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        hidden = model.decode(model.shift_right(labels), model.encode(ids, mask), mask)
        logits = model.logits(hidden[is_token])  # (tokens, V): padding is not worth its row of V numbers
    return F.cross_entropy(logits.float(), labels[is_token], reduction="sum")


def backward(model: T5, batch: tuple, s: Settings) -> float:
    """Mean loss per token of a batch. Its gradient is added up from micro-batches and over all processes."""
    tokens = (batch[2] != -100).sum().item()
    loss = 0.0
    for part in zip(*(processes.micro_batches(rows, s.micro_batch) for rows in batch), strict=True):
        part_loss = token_loss(model, *part, s.bf16) / tokens
        part_loss.backward()
        loss += part_loss.item()
    processes.sum_gradients(model.parameters())
    return sum(processes.gather([loss]))


@torch.no_grad()
def held_out_loss(model: T5, pairs: list[Pair], s: Settings) -> float:
    """Mean cross-entropy per token on the held-out pairs, in nats."""
    batches = processes.share(list(make_batches(pairs, s.batch_size)))
    losses = processes.gather([token_loss(model, *batch, s.bf16).item() for batch in batches])
    if not math.isfinite(sum(losses)):
        raise UserError("M_S's held-out loss is not a finite number, so that nothing of it is saved: lower --lr")
    return sum(losses) / sum(len(target) for _, target in pairs)


SHOWN = 40  # held-out questions whose texts are kept


def look(epoch: int, run: Run, small: LocalLM, large: LM, dev: list[Example], pairs: list[Pair], s: Settings) -> float:
    """The held-out loss after an epoch. To be read, texts.jsonl keeps what M_S writes about some held-out questions
    then, and what M_L answers from it."""
    small.model.eval()
    loss = held_out_loss(small.model, pairs, s)
    if s.target == "rationale":
        some = dev[:SHOWN]
        answers = lmcot.guided(large, some, lmcot.write_rationales(small, some, s.max_new_tokens))
        run.append("texts.jsonl", {"epoch": epoch, "answers": list(map(vars, answers))})
    return loss


def rate(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: it rises for a twentieth of the steps, then falls, both linearly."""
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))


def main() -> None:
    s = parse_settings(Settings, __doc__)
    train = data.load(s.data, "train", s.train_limit, s.context)
    dev = data.load(s.data, "dev", s.dev_limit, s.context)
    test = data.load(s.test_data or s.data, "test", s.test_limit, s.context)
    large = lmcot.load_large(s, s.out)
    small = lmcot.load_small(s, s.small)
    world.refuse_unknown_words(s.data, train[0], small, large)
    teachers = taken_over(s) if s.rationales else []
    with Run(s.out, s, s.overwrite) as run:  # only now: a mistyped path must not leave a folder with its settings
        if run.has_ended():
            return
        print(f"M_S {s.small} · M_L {s.large_model or s.large} · {len(train)} training, {len(dev)} held-out, "
              f"{len(test)} test questions · folder {s.out}\n")  # fmt: skip

        requests = texts_of_large(test, {"untrained": [None], "kd": [None]}, s.samples)
        if s.target == "rationale":
            requests += (1 + s.epochs) * len(dev[:SHOWN]) + (0 if teachers else len(train) + len(dev))
        lmcot.announce(large, train, requests)

        # ---- 1, 2: M_L writes rationales; the filter keeps those that are worth learning
        if s.target == "answer":
            template, targets = lmcot.STANDARD, {example.id: example.answer for example in train + dev}
        else:
            if teachers and not run.has("rationales.jsonl"):
                run.rewrite("rationales.jsonl", teachers)
            template, targets = lmcot.RATIONALE, teach(run, large, small, train, dev, s)
        pairs = encode_pairs(small, train, targets, template)
        pairs_dev = encode_pairs(small, dev, targets, template)
        if not pairs or not pairs_dev:
            raise UserError(f"nothing to learn from: the filter dropped all training or all held-out rationales of "
                            f"{s.large} (see the table); ask more questions or another M_L")  # fmt: skip

        # ---- 3: M_S learns to write them
        model = small.model
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
        parts = {"model": model, "optimizer": optimizer}
        state = run.load_state(parts, small.device)
        run.trim("texts.jsonl", "epoch", state.get("epoch", -1))
        if not state:
            state = {"epoch": 0, "best": look(0, run, small, large, dev, pairs_dev, s), "best_epoch": 0}
            run.rewrite("metrics.jsonl", [{"epoch": 0, "held_out_loss": state["best"]}])
            print(f"held-out loss before training: {state['best']:.3f} nats per token")
        run.trim("metrics.jsonl", "epoch", state["epoch"])
        steps_per_epoch = math.ceil(len(pairs) / s.batch_size)

        while state["epoch"] < s.epochs and state["epoch"] - state["best_epoch"] < s.patience:
            step = state["epoch"] * steps_per_epoch
            state["epoch"] += 1
            epoch = state["epoch"]
            model.train()
            # Dropout: each epoch has a seed of its own, so that resuming repeats it, and so has each process.
            torch.manual_seed(s.seed * 1000 + epoch + 10**9 * processes.rank_and_size()[0])
            batches = make_batches(pairs, s.batch_size, random.Random(f"{s.seed} {epoch}"))
            losses = []
            bar = tqdm(batches, total=steps_per_epoch, desc=f"M_S learns, epoch {epoch}/{s.epochs}", mininterval=0.5)
            for batch in bar:
                loss = backward(model, batch, s)
                norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
                if not math.isfinite(loss + norm):
                    run.stop("a loss or its gradient", {"batch": batch, "epoch": epoch, "loss": loss, "norm": norm})
                optimizer.param_groups[0]["lr"] = s.lr * rate(step, s.epochs * steps_per_epoch)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                losses.append(loss)
                bar.set_postfix_str(f"loss {sum(losses[-20:]) / len(losses[-20:]):.3f}")

            # The M_S with the lowest held-out loss is kept; the state lets the same command go on from here.
            train_loss = sum(losses) / len(losses)
            held_out = look(epoch, run, small, large, dev, pairs_dev, s)
            note = ""
            if held_out < state["best"]:
                note = " (best so far, saved)"
                state |= {"best": held_out, "best_epoch": epoch}
                if run.writes:
                    model.save_pretrained(run.path("model"), small.tokenizer)
            run.append("metrics.jsonl", {"epoch": epoch, "train_loss": train_loss, "held_out_loss": held_out})
            print(f"epoch {epoch}: training loss {train_loss:.3f}, held-out loss {held_out:.3f}{note}")
            run.save_state(state, parts)
        if not run.has("model"):
            raise UserError("training never lowered the held-out loss: another --lr, or more examples, "
                            "with --overwrite or another --out")  # fmt: skip

        # ---- 4: what it did to rationales and answers
        untrained, trained = lmcot.load_small(s, s.small), lmcot.load_small(s, run.path("model"))
        if s.target == "rationale":
            print(side_by_side(dev[:3], untrained, trained, s.max_new_tokens))
        smalls = {"untrained": [untrained], "kd" if s.target == "rationale" else "direct": [trained]}
        print("\n" + evaluate(run, test, large, smalls, s))
        print(f"The trained M_S is in {run.path('model')}; this table is in {run.path('results.md')}.")
        print(f"How it learned, as a page: python lab/report.py {s.out}")


def side_by_side(examples: list[Example], before: LM, after: LM, max_new_tokens: int) -> str:
    """What training did to the rationales of some questions, to be read."""
    old = lmcot.write_rationales(before, examples, max_new_tokens)
    new = lmcot.write_rationales(after, examples, max_new_tokens)
    text = ""
    for i, example in enumerate(examples):
        text += f"\nQuestion  {example.question}\n  rationale before  {old[i]}\n  rationale after   {new[i]}\n"
        text += f"  gold answer       {example.answer}\n"
    return text


if __name__ == "__main__":
    run_main(main)
