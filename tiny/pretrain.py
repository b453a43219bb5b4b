"""Make the embedded pair of LMs from nothing: the tokenizer, tiny/small (M_S) and tiny/large (M_L).

    python tiny/pretrain.py --out runs/pair                    # both; run again to continue
    python tiny/pretrain.py --control --out runs/control       # without the initialisation: it never learns to read
    python tiny/pretrain.py --large tiny/large --slips 0 --leaps 0 --out runs/faithful     # an M_L without habits

To read is to bind: to know which name belongs to which other name. A tiny T5 that is trained on questions alone never
gets there: it learns to write some name of the right kind, and stays. Four things together teach it:
1 Initialisation: attention begins by looking for equal tokens and at neighbours.
2 Bind: 8 facts of one relation; the decoder is given each subject and says its object. 8 lessons a text.
3 Recite: a context as questions have it; the decoder is given its sentences up to their second name and says that one.
4 Ask: several single questions at once; the decoder is given whom a sentence is about and writes the whole sentence.
Then M_S practises to write the sentences that answer single questions. M_L goes on from the finished M_S: it learns to
compare years, to answer at once and from a rationale, and to write chains of thought, which have two habits that are
settings here:
- A slip goes on with the wrong person at a hop (the composer for the director). Its answer is wrong.
- A leap leaves out the hop, unless two chains are compared. It is right where it goes on with the right person.
Saparov and He (2023) find both in the chains of large LMs: steps that mislead, and steps that are skipped.
All texts come from fresh worlds of the train split. docs/pretraining.md tells what else was tried.
"""

import argparse
import io
import random
import sys
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

import lmcot  # noqa: E402
from model import T5, T5Config, pad_batch  # noqa: E402
from plumbing.command import run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import atomic_write  # noqa: E402
from tiny import world  # noqa: E402

SHAPE = {"d_model": 128, "d_kv": 32, "d_ff": 128, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2}


@dataclass(frozen=True)
class Phase:
    steps: int
    rates: tuple[float, float]  # of the learning rate, at its first and its last step
    mixture: dict[str, float]  # task → its share of the texts


PHASES = {
    "small": {
        "bind": Phase(450, (1.0, 1.0), {"bind": 1.0}),
        "recite": Phase(500, (1.0, 1.0), {"recite": 1.0}),
        "ask": Phase(1000, (1.0, 1.0), {"ask": 0.75, "recite": 0.25}),
        "read": Phase(5000, (1.0, 0.0), {"ask": 0.3, "lookup": 0.3, "follow-up": 0.25, "single answer": 0.05,
                                         "recite": 0.1}),
    },
    "large": {  # goes on from the finished small LM
        "order": Phase(1000, (1.0, 1.0), {"order": 0.6, "ranks": 0.2, "recite": 0.1, "ask": 0.1}),
        "rank": Phase(600, (1.0, 1.0), {"order": 0.2, "ranks": 0.6, "recite": 0.1, "ask": 0.1}),
        "compare": Phase(1500, (1.0, 1.0), {"compare": 0.5, "ranks": 0.15, "cot": 0.15, "guided": 0.05, "recite": 0.05,
                                            "ask": 0.1}),
        "reason": Phase(5000, (1.0, 0.0), {"cot": 0.36, "guided": 0.16, "compare": 0.14, "ranks": 0.03, "ask": 0.1,
                                           "lookup": 0.08, "follow-up": 0.05, "single answer": 0.05, "recite": 0.03}),
        "answer": Phase(2000, (0.8, 0.0), {"guided": 0.34, "compare": 0.26, "cot": 0.24, "at once": 0.02, "ranks": 0.04,
                                           "ask": 0.05, "lookup": 0.05}),
    },
}  # fmt: skip
# M_L's last phase begins with weights as they are stored: so a finished M_L can get other habits in minutes.
LAST = Phase(2000, (0.5, 0.0), {"guided": 0.26, "compare": 0.22, "cot": 0.26, "at once": 0.02, "ranks": 0.03,
                                "ask": 0.07, "lookup": 0.06, "single answer": 0.08})  # fmt: skip
SLIPS, LEAPS = 0.5, 0.7  # shares of the chains that have these habits, where they can
BATCH = 32
POOL = 8  # batches that are drawn and grouped by length together
WARMUP = 100
LEARNING_RATE = 2e-3  # of the matrices; Muon with AdamW's scale
SAVE_EVERY = 100


# ------------------------------------------------------------------------------------------------ tokenizer


def make_tokenizer() -> Tokenizer:
    """Unigram pieces: each word and name of TinyWiki is one, and single letters and bytes spell everything else."""
    texts = [lmcot.STANDARD, lmcot.COT, lmcot.TWO_STAGE, lmcot.RATIONALE, lmcot.GUIDED, lmcot.CONCLUSION]
    texts += ["yes no first later that person organisation city"]
    for relation in world.RELATIONS.values():
        texts += [*relation.sentences, relation.question, relation.noun]
    for table in (world.INFERENCES, world.COMPARISONS, world.SAME, world.BRIDGE_COMPARISONS, world.BRIDGE_SAME):
        texts += table.values()
    words = {word.strip(".,?:") for text in texts for word in text.split() if "{" not in word}
    words |= {name for names in world.NAMES.values() for name in names}
    letters = [chr(i) for i in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -30.0)]
    pieces += [(f"<0x{i:02X}>", -20.0) for i in range(256)]
    pieces += [("▁", -11.0)] + [(letter, -10.0) for letter in letters]
    pieces += [(f"▁{word}", -6.0) for word in sorted(words)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    spaces = [normalizers.Replace(mark, " ") for mark in ("\n", "\t")]
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


# ------------------------------------------------------------------------------------------------ contexts to read


class Reading(NamedTuple):
    """A context, its world, and the sentences of the context's facts: (subject, relation) → sentence."""

    world: world.World
    context: str
    sentences: dict[tuple[str, str], str]


def read_facts(w: world.World, sentences: list[str]) -> Reading:
    """Find out which facts of a world the sentences of a context state."""
    found = {}
    for (subject, relation), object_ in w.facts.items():
        for wording in world.RELATIONS[relation].sentences:
            sentence = wording.format(s=subject, o=object_)
            if sentence in sentences:
                found[subject, relation] = sentence
    return Reading(w, " ".join(sentences), found)


def linked_paragraphs(w: world.World) -> Reading:
    """One to four paragraphs; more than half of them are about somebody whom another one names."""
    size = w.rng.choice((1, 2, 2, 3, 4))
    paragraphs: dict[str, list[str]] = {}
    while len(paragraphs) < size:
        title = w.rng.choice(world.NAMES[w.rng.choice(world.DESCRIBED)])
        named = [o for (s, _), o in w.facts.items() if s in paragraphs]
        described = [o for o in named if o not in world.YEARS and o not in world.NAMES["country"]]
        if described and w.rng.random() < 0.6:
            title = w.rng.choice(described)
        if title not in paragraphs:
            paragraphs[title], _ = w.paragraph(title, [], w.rng.choice((1, 3, 3)))
    return read_facts(w, shuffled(w, paragraphs))


def rivals(w: world.World, number: int) -> Reading:
    """Paragraphs about several of one kind, who all have one relation in common."""
    kind = w.rng.choice(world.DESCRIBED)
    relation = w.rng.choice(world.KINDS[kind])
    paragraphs = {}
    for subject in w.rng.sample(world.NAMES[kind], number):
        paragraphs[subject], _ = w.paragraph(subject, [relation], w.rng.choice((1, 2, 3, 3)))
    return read_facts(w, shuffled(w, paragraphs))


def context_of_a_question(w: world.World, distractors: int) -> Reading:
    """The context of a real question, whose question is thrown away."""
    record = w.record(w.rng.choices(world.TYPES, world.WEIGHTS)[0], distractors)
    return read_facts(w, sentences_of(record))


def shuffled(w: world.World, paragraphs: dict[str, list[str]]) -> list[str]:
    titles = w.rng.sample(list(paragraphs), len(paragraphs))
    return [sentence for title in titles for sentence in paragraphs[title]]


def sentences_of(record: dict) -> list[str]:
    return [sentence for _, sentences in record["context"] for sentence in sentences]


def reading(rng: random.Random) -> Reading:
    """A context of a fresh world of the train split."""
    w = world.World("train", str(rng.random()))
    draw = rng.random()
    try:
        if draw < 0.4:
            return context_of_a_question(w, rng.choice((0, 0, 1, 2, 4)))
        if draw < 0.75:
            return rivals(w, rng.choice((2, 2, 3, 4)))
        return linked_paragraphs(w)
    except world.Impossible:  # the split allows no name for one of the facts
        return reading(rng)


# ------------------------------------------------------------------------------------------------ texts


Text = tuple[str, str]  # what the encoder reads, and what the decoder writes


def bind_text(rng: random.Random, size: int = 8) -> Text:
    """Facts of one relation → subject and object of each, in another order."""
    w = world.World("train", str(rng.random()))
    relation = rng.choice(list(world.RELATIONS))
    subjects = rng.sample(world.NAMES[world.RELATIONS[relation].subject], size)
    try:
        sentences = [w.state(subject, relation) for subject in subjects]
    except world.Impossible:
        return bind_text(rng, size)
    target = []
    for subject in rng.sample(subjects, size):
        target += [subject, w.facts[subject, relation]]
    return " ".join(sentences), " ".join(target)


def recite_text(rng: random.Random, most: int = 10) -> Text:
    """A context → some of its sentences, in another order."""
    found = reading(rng)
    sentences = list(found.sentences.values())
    return found.context, " ".join(rng.sample(sentences, min(most, len(sentences))))


def ask_text(rng: random.Random, most: int = 6) -> Text:
    """Single questions → the sentences that answer them in another order, each after the name that is asked about."""
    w, context, sentences = reading(rng)
    of_subject = {}
    for fact in rng.sample(list(sentences), len(sentences)):
        of_subject.setdefault(fact[0], fact)
    facts = rng.sample(list(of_subject.values()), min(most, len(of_subject)))
    questions = [world.RELATIONS[relation].question.format(s=subject) for subject, relation in facts]
    target = [f"{fact[0]}: {sentences[fact]}" for fact in rng.sample(facts, len(facts))]
    return lmcot.RATIONALE.format(question=" ".join(questions), context=context), " ".join(target)


def reading_text(task: str, rng: random.Random) -> Text:
    """What M_S learns: questions each of which one sentence answers."""
    w, context, sentences = reading(rng)
    if task == "follow-up":
        steps = []
        for first in sentences:
            for then in sentences:
                if w.facts[first] == then[0] and (first[1], then[1]) not in world.OOD_PAIRS:
                    steps.append([first, then])
        if not steps:  # nothing in this context follows from anything
            return reading_text(task, rng)
        facts = rng.choice(steps)
    else:
        facts = rng.sample(list(sentences), min(len(sentences), rng.choice((1, 1, 2, 3))))
    questions = [world.RELATIONS[relation].question.format(s=subject) for subject, relation in facts]
    if task == "single answer":
        return lmcot.STANDARD.format(question=questions[0], context=context), w.facts[facts[0]]
    if task == "follow-up":
        subject, relation = facts[1]
        questions[1] = world.RELATIONS[relation].question.format(s=f"that {world.kind_of(subject)}")
    target = " ".join(sentences[fact] for fact in facts)
    return lmcot.RATIONALE.format(question=" ".join(questions), context=context), target


def order_text(rng: random.Random) -> Text:
    """Years → the same in their order, or from the last to the first."""
    years, when = rng.sample(world.YEARS, 8), rng.choice(("first", "later"))
    ordered = sorted(years, reverse=when == "later")
    return f"Question: Which is {when}? {' '.join(years)} Answer:", " ".join(ordered)


def ranks_text(rng: random.Random) -> Text:
    """Names, each with a year → the names in the order of their years, or from the last to the first."""
    names = rng.sample(world.NAMES[rng.choice(world.DESCRIBED)], rng.choice((2, 4)))
    if any(world.split_of(one, other) != "train" for one, other in combinations(names, 2)):
        return ranks_text(rng)
    years, when = rng.sample(world.YEARS, len(names)), rng.choice(("first", "later"))
    year_of = dict(zip(names, years, strict=True))
    ordered = sorted(names, key=year_of.__getitem__, reverse=when == "later")
    dated = " ".join(f"{name} {year}" for name, year in year_of.items())
    return f"Question: Which is {when}? {dated} Answer:", " ".join(ordered)


def chain_text(record: dict, w: world.World, rng: random.Random, slips: float, leaps: float) -> Text:
    """A chain of thought for a record, with the habits of M_L."""
    text = dict(record["context"])
    steps = [text[title][i] for title, i in record["supporting_facts"]]
    hops = [tuple(hop) for hop in record["evidences"]]
    said, ends, slipped = [], [], False  # ends: the value to which each chain of hops leads
    leaping = record["type"] != "bridge_comparison" and rng.random() < leaps
    i = 0
    while i < len(hops):
        leads_on = i + 1 < len(hops) and hops[i][2] == hops[i + 1][0]
        if not leads_on:
            said.append(steps[i])
            ends.append(hops[i][2])
            i += 1
            continue
        hop, then, end = steps[i], steps[i + 1], hops[i + 1][2]
        other = lookalike(w, text[hops[i][0]], hops[i], hops[i + 1]) if rng.random() < slips else None
        if other:
            hop, then, end = other
            slipped = True
        leaps_here = leaping and world.kind_of(hops[i][0]) in ("film", "book")
        said += [then] if leaps_here or not hop else [hop, then]
        ends.append(end)
        i += 2
    answer = answer_from(ends, record) if slipped else record["answer"]
    if not answer:  # the slip led to two equal years: there is nothing to conclude, so this chain does not slip
        return chain_text(record, w, rng, 0.0, leaps)
    target = " ".join([*said, lmcot.CONCLUSION.format(answer=answer)])
    return lmcot.COT.format(question=record["question"], context=" ".join(sentences_of(record))), target


def lookalike(w: world.World, paragraph: list[str], hop: tuple, then: tuple) -> tuple[str, str, str] | None:
    """The two sentences of somebody else whom the paragraph names, and where they end; the first may be "".

    The last sentence of a hop's paragraph says of somebody else what the question asks (`world.World.lookalike`).
    """
    for (subject, relation), object_ in w.facts.items():
        if relation == then[1] and subject != then[0]:
            wordings = [each.format(s=subject, o=object_) for each in world.RELATIONS[relation].sentences]
            if paragraph[-1] in wordings:
                naming = [x for x in paragraph[:-1] if subject in x.replace(",", "").strip(".").split()]
                return (naming or [""])[0], paragraph[-1], object_
    return None


def answer_from(ends: list[str], record: dict) -> str:
    """What follows for a question from the values to which its chains lead; "" if nothing does."""
    if len(ends) == 1:
        return ends[0]
    if record["answer"] in ("yes", "no"):
        return "yes" if ends[0] == ends[1] else "no"
    if ends[0] == ends[1]:
        return ""
    hops = record["evidences"]
    one, two = hops[0][0], hops[len(hops) // 2][0]
    return one if (ends[0] > ends[1]) == (" later" in record["question"]) else two


def make_text(task: str, rng: random.Random, slips: float = SLIPS, leaps: float = LEAPS) -> Text:
    """One text of a task."""
    if task == "bind":
        return bind_text(rng)
    if task == "recite":
        return recite_text(rng)
    if task == "ask":
        return ask_text(rng)
    if task == "order":
        return order_text(rng)
    if task == "ranks":
        return ranks_text(rng)
    if task in ("lookup", "follow-up", "single answer"):
        return reading_text(task, rng)
    w = world.World("train", str(rng.random()))
    weights = {"cot": world.WEIGHTS, "at once": world.WEIGHTS, "compare": (0, 50, 50, 0)}
    weights = weights.get(task, (35, 15, 40, 10))
    record = w.record(w.rng.choices(world.TYPES, weights)[0], distractors=rng.choice((0, 0, 0, 0, 1)))
    if task == "cot":
        return chain_text(record, w, rng, slips, leaps)
    text = dict(record["context"])
    steps = [text[title][i] for title, i in record["supporting_facts"]]
    question, answer = record["question"], record["answer"]
    context = " ".join(sentences_of(record))
    if task == "at once":
        return lmcot.STANDARD.format(question=question, context=context), answer
    if task == "compare":  # without context and instructions
        return f"Question: {question} Reasoning: {' '.join(steps)} Answer:", answer
    if rng.random() < 0.2:  # one true sentence too many: a reader of rationales has to select
        steps.insert(rng.randrange(len(steps) + 1), rng.choice(sentences_of(record)))
    return lmcot.GUIDED.format(question=question, context=context, rationale=" ".join(steps)), answer


# ------------------------------------------------------------------------------------------------ batches


class Batch(NamedTuple):
    tasks: list[str]
    ids: Tensor  # (B, S)
    mask: Tensor  # (B, S)
    targets: Tensor  # (B, T) what the decoder is given, pads at the end
    lessons: Tensor  # (B, T) True where a token has to be predicted


NAMES = {name for names in world.NAMES.values() for name in names}  # years, too


def lessons_of(task: str, pieces: list[str]) -> list[bool]:
    """Which pieces of a target the decoder has to predict.

    bind, recite: each second name. ask: all but the names before the sentences, and EOS. Other tasks: all.
    """
    if task == "ask":
        given = [before in ("", ".") for before in ["", *pieces[:-1]]]
        return [not is_given and piece != ":" for is_given, piece in zip(given, pieces, strict=True)]
    if task not in ("bind", "recite"):
        return [True] * len(pieces)
    lessons, names = [], 0
    for piece in pieces:
        is_name = piece.removeprefix("▁") in NAMES
        names += is_name
        lessons.append(is_name and names % 2 == 0)
    return lessons


def make_batches(tokenizer: Tokenizer, mixture: dict[str, float], seed: str, habits: tuple) -> list[Batch]:
    """POOL batches of BATCH texts, grouped by task and length so that little is padding."""
    rng = random.Random(seed)
    tasks = rng.choices(list(mixture), list(mixture.values()), k=POOL * BATCH)
    rows = []
    for task in tasks:
        source, target = make_text(task, rng, *habits)
        encoded = tokenizer.encode(target)
        rows.append((task, tokenizer.encode(source).ids, encoded.ids, lessons_of(task, encoded.tokens)))
    rows.sort(key=lambda row: (row[0] in ("recite", "ask"), len(row[1])))
    batches = []
    for start in rng.sample(range(0, len(rows), BATCH), POOL):
        names, sources, targets, lessons = zip(*rows[start : start + BATCH], strict=True)
        batches.append(Batch(list(names), *pad_batch(sources), pad_batch(targets)[0], pad_batch(lessons)[0].bool()))
    return batches


# ------------------------------------------------------------------------------------------------ training


def new_model(tokenizer: Tokenizer, tied: bool = True) -> T5:
    """The shape of both LMs; tied while it is trained, untied as FLAN-T5 is when it is stored."""
    return T5(T5Config(vocab_size=tokenizer.get_vocab_size(), dropout_rate=0.0, tie_word_embeddings=tied,
                       scale_decoder_outputs=tied, **SHAPE))  # fmt: skip


@torch.no_grad()
def attend_to_equals(model: T5, sharpness: float = 1.0) -> None:
    """Let attention begin with what reading is made of (mimetic initialisation, Trockman and Kolter 2023).

    - Keys begin as the queries, so that a token looks for tokens that equal it: in cross-attention, and in half of the
      encoder's heads, where it does not look at itself.
    - The other heads begin by looking at their neighbours: biases of +4 on the buckets of near relative positions.
    """
    c = model.config
    scale = sharpness * c.d_kv**0.5
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.k.weight.copy_(attention.q.weight * scale)
    equal = slice(2 * c.d_kv, None)  # the rows of all heads but the first two
    for block in model.encoder.block:
        attention = block.layer[0].SelfAttention
        attention.k.weight[equal] = attention.q.weight[equal] * scale
    before, after, last = range(1, 7), range(17, 23), (1,)  # buckets: 1 to 6 tokens before, or after; the token before
    for stack, looks in ((model.encoder, (before, after)), (model.decoder, (before, last))):
        table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (buckets, heads)
        table.zero_()
        for head, buckets in enumerate(looks):
            table[list(buckets), head] = 4.0
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[0, 2:] = -8.0  # not at itself


def make_optimizers(model: T5, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks; AdamW, five times faster, for embeddings, whose entries are larger."""
    tables = [p for name, p in model.named_parameters() if name == "shared.weight" or "relative" in name]
    norms = [p for name, p in model.named_parameters() if p.ndim == 1]
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not any(p is t for t in tables)]
    adam = torch.optim.AdamW([{"params": tables, "lr": 5 * lr}, {"params": norms, "lr": lr / 2}], weight_decay=0.0)
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), adam]


def learn(model: T5, batch: Batch) -> tuple[Tensor, list[bool]]:
    """Mean cross-entropy per lesson, and which texts' lessons are all right when the decoder is given what precedes."""
    with torch.autocast("cpu", torch.bfloat16):  # a third less time
        hidden = model.decode(model.shift_right(batch.targets), model.encode(batch.ids, batch.mask), batch.mask)
        logits = model.logits(hidden[batch.lessons]).float()  # (lessons, V)
    labels = batch.targets[batch.lessons]
    wrong = torch.zeros_like(batch.lessons)
    wrong[batch.lessons] = logits.argmax(-1) != labels
    return F.cross_entropy(logits, labels), (~wrong.any(1)).tolist()


def train(model: T5, title: str, phase: Phase, checkpoint: Path, before: Path | None, tokenizer: Tokenizer, seed: int,
          habits: tuple[float, float] = (SLIPS, LEAPS)) -> None:  # fmt: skip
    """Train a phase into `checkpoint`; goes on from it, or begins with the weights and optimizers of `before`."""
    steps, (first, last), mixture = phase.steps, phase.rates, phase.mixture
    optimizers = make_optimizers(model, LEARNING_RATE)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    step, seconds, right = 0, [0.0, 0.0], {}
    source = checkpoint if checkpoint.exists() else before
    if source:
        state = torch.load(source, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if source == checkpoint:
            step, seconds, right = state["step"], state["seconds"], state["right"]
    begun, cpu_begun = time.time() - seconds[0], time.process_time() - seconds[1]
    batches: list[Batch] = []
    while step < steps:
        if step % POOL == 0 or not batches:
            batches = make_batches(tokenizer, mixture, f"{seed} {title} {step // POOL}", habits)
        batch = batches[step % POOL]
        rate = first + (last - first) * step / steps
        if before is None:
            rate *= min(1.0, (step + 1) / WARMUP)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate
        loss, all_right = learn(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        for task, is_right in zip(batch.tasks, all_right, strict=True):
            right[task] = 0.995 * right.get(task, 0.0) + 0.005 * is_right
        if step % SAVE_EVERY == 0 or step == steps:
            seconds = [time.time() - begun, time.process_time() - cpu_begun]
            shares = " ".join(f"{task} {share:.3f}" for task, share in right.items())
            print(f"{title} {step}: {seconds[0]:.0f} s ({seconds[1]:.0f} of CPU), loss {loss.item():.3f}, "
                  f"texts right: {shares}", flush=True)  # fmt: skip
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
                     "seconds": seconds, "right": right}  # fmt: skip
            content = io.BytesIO()
            torch.save(state, content)
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(checkpoint, content.getvalue())


def export(checkpoint: Path, folder: Path, tokenizer: Tokenizer) -> None:
    """The trained, tied model → an untied one in FLAN's layout: lm_head = shared · d_model^-1/2, unscaled; in bf16."""
    weights = torch.load(checkpoint, weights_only=True)["model"]
    weights["lm_head.weight"] = weights["shared.weight"] * SHAPE["d_model"] ** -0.5
    model = new_model(tokenizer, tied=False)
    model.load_state_dict(weights)
    model.bfloat16().save_pretrained(folder, tokenizer)


def load_exported(model: T5, folder: Path) -> None:
    """The way back: the weights of `folder` → the tied model."""
    weights = T5.from_pretrained(folder).state_dict()
    weights["lm_head.weight"] = weights["shared.weight"]
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{folder} is no LM of this shape and vocabulary") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", type=Path, help="folder of a finished M_L: it gets other habits in its last phase")
    parser.add_argument("--slips", type=float, default=SLIPS, help=f"share of M_L's hops that slip (default {SLIPS})")
    parser.add_argument("--leaps", type=float, default=LEAPS, help=f"share that are not said (default {LEAPS})")
    parser.add_argument("--control", action="store_true", help="random weights as T5's: shows that nothing binds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="checkpoints, for continuing")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder that gets small/ and large/")
    args = parser.parse_args()
    if args.control and args.large:
        parser.error("--control is about how an M_S begins, and --large brings a finished M_L")
    torch.set_num_threads(args.threads)
    tokenizer = make_tokenizer()
    work = args.work / f"seed{args.seed}{'-control' * args.control}{'-other-habits' * bool(args.large)}"
    model = new_model(tokenizer).init_weights(args.seed).train()
    if not args.large:
        if not args.control:
            attend_to_equals(model)
        before = None
        for name, phases in PHASES.items():
            for phase in phases:
                checkpoint = work / f"{name}-{phase}.pt"
                train(model, f"{name} {phase}", phases[phase], checkpoint, before, tokenizer, args.seed)
                before = checkpoint
            export(before, args.out / name, tokenizer)

    load_exported(model, args.large or args.out / "large")
    checkpoint = work / f"large-last-slips{args.slips}-leaps{args.leaps}.pt"
    train(model, "large last", LAST, checkpoint, None, tokenizer, args.seed, (args.slips, args.leaps))
    export(checkpoint, args.out / "large", tokenizer)
    for folder in args.out.glob("*/model.safetensors"):
        print(f"{folder.parent}: {folder.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
