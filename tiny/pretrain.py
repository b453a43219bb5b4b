"""Make the embedded pair of LMs from nothing: the tokenizer, tiny/small and tiny/large.

    python tiny/pretrain.py                       # both, about an hour on two cores; run again to continue
    python tiny/pretrain.py --practice 600 --out runs/strong        # a large LM that writes better rationales, or worse

Both models read TinyWiki paragraphs and copy the sentences that single questions ask for. The large one also learns to
answer a multi-hop question from a good rationale; then, in a short last phase, it practises chain of thought for
`--practice` steps, from texts that often leap: they do not say who made the film or book that a question is about. So
it writes middling rationales, for two reasons that are choices (LEAPS, and how long it practises); the model card shows
what they decide. All texts come from fresh worlds of the train split.
"""

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

import lmcot  # noqa: E402
from model import T5, T5Config, pad_batch  # noqa: E402
from tiny import world  # noqa: E402

SHAPES = {
    "small": {"d_model": 128, "d_ff": 256, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2},
    "large": {"d_model": 192, "d_ff": 512, "num_heads": 6, "num_layers": 3, "num_decoder_layers": 3},
}
# Share of each task in a batch, phase by phase. The large LM grows out of the finished small one (see `grow`) and first
# learns what comes last in reasoning, to compare, from short texts: bare years, years beside names, rationales without
# instructions. "guided short" is a rationale without its context. Large LMs of different practice differ in the last
# phase only.
PHASES = {
    "small": {
        "base": {"lookup": 0.5, "follow-up": 0.35, "single answer": 0.15},
        "end": {"lookup": 0.5, "follow-up": 0.35, "single answer": 0.15},
        "polish": {"lookup": 0.4, "follow-up": 0.5, "single answer": 0.1},
    },
    "large": {
        "compare": {"years": 0.15, "named years": 0.25, "compare": 0.6},
        "base": {"lookup": 0.1, "follow-up": 0.1, "single answer": 0.1, "guided": 0.3, "guided comparison": 0.2,
                 "guided short": 0.1, "compare": 0.1},
        "practice": {"follow-up": 0.1, "single answer": 0.1, "guided": 0.3, "guided comparison": 0.2, "compare": 0.1,
                     "cot": 0.2},
    },
}  # fmt: skip
STEPS = {"small": {"base": 4500, "end": 800, "polish": 2500}, "large": {"compare": 1500, "base": 800, "practice": 150}}
RATES = {  # of the learning rate, from the first to the last step of a phase
    ("small", "base"): (1.0, 1.0),
    ("small", "end"): (1.0, 0.0),
    ("small", "polish"): (0.4, 0.0),
    ("large", "compare"): (0.5, 0.5),
    ("large", "base"): (0.5, 0.3),
    ("large", "practice"): (0.4, 0.0),
}
BATCH = 64
LEAPS = 0.7  # share of the chains of thought about films and books that do not say who made them
POOL = 8  # batches that are drawn and grouped by length together
WARMUP = 200
LEARNING_RATE = 2e-3  # of the matrices; Muon with AdamW's scale
SAVE_EVERY = 250


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


# ------------------------------------------------------------------------------------------------ training texts


def reading(rng: random.Random) -> tuple[world.World, str, dict[tuple[str, str], str]]:
    """A world, a context of one to four paragraphs from it, and the context's facts: (subject, relation) → sentence.

    More than half of the paragraphs are about somebody whom another one names.
    """
    w = world.World("train", str(rng.random()))
    size, not_described = w.rng.choice((1, 2, 2, 3, 4)), (*world.NAMES["country"], *world.YEARS)
    paragraphs: dict[str, tuple[list[str], dict[str, int]]] = {}
    while len(paragraphs) < size:
        named = [o for (s, _), o in w.facts.items() if s in paragraphs and o not in (*paragraphs, *not_described)]
        stranger = w.rng.choice(world.NAMES[w.rng.choice(world.DESCRIBED)])
        title = w.rng.choice(named) if named and w.rng.random() < 0.6 else stranger
        if title not in paragraphs:
            try:
                paragraphs[title] = w.paragraph(title, [], w.rng.choice((1, 3, 3)))
            except world.Impossible:
                continue
    titles = w.rng.sample(list(paragraphs), size)
    context = " ".join(sentence for title in titles for sentence in paragraphs[title][0])
    return w, context, {(t, r): sentences[i] for t, (sentences, where) in paragraphs.items() for r, i in where.items()}


def reading_text(task: str, rng: random.Random) -> tuple[str, str]:
    """What M_S learns to read and copy by: questions each of which one sentence answers."""
    w, context, sentences = reading(rng)
    facts = w.rng.sample(list(sentences), min(len(sentences), w.rng.choice((1, 2, 3))))
    if task == "single answer":
        subject, relation = facts[0]
        question = world.RELATIONS[relation].question.format(s=subject)
        return lmcot.STANDARD.format(question=question, context=context), w.facts[facts[0]]
    questions = [world.RELATIONS[relation].question.format(s=subject) for subject, relation in facts]
    if task == "follow-up":
        steps = [(first, then) for first in sentences for then in sentences
                 if w.facts[first] == then[0] and (first[1], then[1]) not in world.OOD_PAIRS]  # fmt: skip
        if not steps:  # nothing in this context follows from anything
            return reading_text(task, rng)
        facts = w.rng.choice(steps)
        questions = [world.RELATIONS[relation].question for _, relation in facts]
        that = f"that {world.kind_of(facts[1][0])}"
        questions = [questions[0].format(s=facts[0][0]), questions[1].format(s=that)]
    target = " ".join(sentences[fact] for fact in facts)
    return lmcot.RATIONALE.format(question=" ".join(questions), context=context), target


def make_text(task: str, rng: random.Random) -> tuple[str, str]:
    """One (source, target) of a task."""
    if task in ("years", "named years"):
        a, b = rng.sample(world.YEARS, 2)
        when = rng.choice(("first", "later"))
        right = min(a, b) if when == "first" else max(a, b)
        if task == "years":
            return f"Question: Which is {when}, {a} or {b}? Answer:", right
        while True:
            one, other = rng.sample(world.NAMES[rng.choice(world.DESCRIBED)], 2)
            if world.split_of(one, other) == "train":
                answer = one if right == a else other
                return f"Question: Which is {when}, {one} {a} or {other} {b}? Answer:", answer
    if task in ("lookup", "follow-up", "single answer"):
        return reading_text(task, rng)
    w = world.World("train", str(rng.random()))
    weights = {"cot": world.WEIGHTS, "compare": (0, 65, 35, 0), "guided comparison": (0, 65, 35, 0)}
    weights = weights.get(task, (35, 15, 40, 10))
    record = w.record(w.rng.choices(world.TYPES, weights)[0], distractors=rng.choice((0, 0, 0, 0, 1)))
    text = dict(record["context"])
    context = " ".join(sentence for _, sentences in record["context"] for sentence in sentences)
    steps = [text[title][i] for title, i in record["supporting_facts"]]
    question, answer = record["question"], record["answer"]
    if task == "compare":
        return f"Question: {question} Reasoning: {' '.join(steps)} Answer:", answer
    if task == "cot":
        hops = record["evidences"]
        if world.kind_of(hops[0][0]) in ("film", "book") and rng.random() < LEAPS:
            leads_on = {subject for subject, _, _ in hops}  # a step whose object the next step is about
            steps = [step for step, (_, _, o) in zip(steps, hops, strict=True) if o not in leads_on]
        target = " ".join([*steps, lmcot.CONCLUSION.format(answer=answer)])
        return lmcot.COT.format(question=question, context=context), target
    if rng.random() < 0.2:  # guided, with one true sentence too many: a reader of rationales has to select
        steps.insert(rng.randrange(len(steps) + 1), rng.choice(rng.choice(record["context"])[1]))
    context = "" if task == "guided short" else context
    return lmcot.GUIDED.format(question=question, context=context, rationale=" ".join(steps)), answer


def make_batches(tokenizer: Tokenizer, mixture: dict[str, float], seed: str) -> list[tuple]:
    """POOL batches of (tasks, ids, mask, labels): POOL × BATCH texts, grouped by length so that little is padding."""
    rng = random.Random(seed)
    tasks = rng.choices(list(mixture), list(mixture.values()), k=POOL * BATCH)
    sources, targets = zip(*(make_text(task, rng) for task in tasks), strict=True)
    sources, targets = ([e.ids for e in tokenizer.encode_batch(list(texts))] for texts in (sources, targets))
    order = sorted(range(len(tasks)), key=lambda i: (len(sources[i]), len(targets[i])))
    batches = []
    for start in rng.sample(range(0, len(order), BATCH), POOL):
        rows = order[start : start + BATCH]
        ids, mask = pad_batch([sources[i] for i in rows])
        labels, label_mask = pad_batch([targets[i] for i in rows])
        batches.append(([tasks[i] for i in rows], ids, mask, labels.masked_fill(label_mask == 0, -100)))
    return batches


# ------------------------------------------------------------------------------------------------ training


def make_optimizers(model: T5, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks; AdamW, ten times faster, for embeddings, whose entries are larger."""
    tables = [p for name, p in model.named_parameters() if name == "shared.weight" or "relative" in name]
    norms = [p for name, p in model.named_parameters() if p.ndim == 1]
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not any(p is t for t in tables)]
    adam = torch.optim.AdamW([{"params": tables, "lr": 1e-2}, {"params": norms, "lr": 1e-3}], weight_decay=0.0)
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), adam]


def train(name: str, phase: str, steps: int, seed: int, start: Path | None, out: Path, tokenizer: Tokenizer) -> None:
    """Train `name` for `steps` steps of a phase into the checkpoint `out`; continues it, or begins from `start`.

    The large LM begins from the small LM's last checkpoint.
    """
    config = T5Config(vocab_size=tokenizer.get_vocab_size(), d_kv=32, dropout_rate=0.0, tie_word_embeddings=True,
                      scale_decoder_outputs=True, **SHAPES[name])  # fmt: skip
    model = T5(config).init_weights(seed).train()
    optimizers = make_optimizers(model, LEARNING_RATE)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    step, seconds = 0, 0.0
    if (name, phase) == ("large", "compare") and not out.exists():
        small = T5(replace(config, **SHAPES["small"]))
        small.load_state_dict(torch.load(start, weights_only=True)["model"])
        grow(small, model)
    elif source := out if out.exists() else start:
        state = torch.load(source, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds = (state["step"], state["seconds"]) if source == out else (0, 0.0)
    bar = tqdm(total=steps, initial=step, desc=f"{name} {phase}", mininterval=5)
    exact: dict[str, float] = {}
    batches: list = []
    begun = time.time()
    while step < steps:
        if step % POOL == 0 or not batches:
            batches = make_batches(tokenizer, PHASES[name][phase], f"{seed} {name} {phase} {step // POOL}")
        tasks, ids, mask, labels = batches[step % POOL]
        first, last = RATES[name, phase]
        scale = first + (last - first) * step / steps
        if phase == next(iter(PHASES[name])):
            scale *= min(1.0, (step + 1) / WARMUP)
        for optimizer, groups in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = peak * scale
        logits = model(ids, mask, model.shift_right(labels))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        bar.update()
        for task, right in zip(tasks, ((logits.argmax(-1) == labels) | (labels == -100)).all(1).tolist(), strict=True):
            exact[task] = 0.99 * exact.get(task, 0.0) + 0.01 * right  # teacher-forced: all tokens of the target right
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f} exact " + " ".join(f"{t} {v:.2f}" for t, v in exact.items()))
        if step % SAVE_EVERY == 0 or step == steps:
            out.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
                     "seconds": seconds + time.time() - begun}  # fmt: skip
            torch.save(state, out.with_suffix(".tmp"))
            out.with_suffix(".tmp").replace(out)
    bar.close()


@torch.no_grad()
def grow(small: T5, large: T5) -> None:
    """Make `large` compute what `small` computes: its weights in a corner, new parts that read but do not write yet.

    New units, heads and blocks keep their random inputs and get zero outputs (Net2Net, Chen et al. 2016), so reading is
    learned once, in the small LM. RMSNorm divides by the mean over more entries, which its weight makes up for.
    """
    ratio = (small.config.d_model / large.config.d_model) ** 0.5
    for name, p in large.named_parameters():
        if name.split(".")[-2] in ("o", "wo", "shared"):
            p.zero_()  # nothing new is written to the residual stream
        elif name.endswith("norm.weight"):
            p.fill_(1.0)
    wide = dict(large.named_parameters())
    for name, p in small.named_parameters():
        corner = wide[name][tuple(slice(size) for size in p.shape)]
        # The decoder's last norm keeps its scale: d_model^-1/2, which follows it, has shrunk by the same ratio.
        corner.copy_(p * ratio if p.ndim == 1 and name != "decoder.final_layer_norm.weight" else p)


def export(checkpoint: Path, folder: Path, tokenizer: Tokenizer, name: str) -> None:
    """The trained, tied model → an untied one in FLAN's layout: lm_head = shared · d_model^-1/2, unscaled; in bf16."""
    config = T5Config(vocab_size=tokenizer.get_vocab_size(), d_kv=32, dropout_rate=0.0, **SHAPES[name])
    weights = torch.load(checkpoint, weights_only=True)["model"]
    weights["lm_head.weight"] = weights["shared.weight"] * config.d_model**-0.5
    model = T5(config)
    model.load_state_dict(weights)
    model.bfloat16().save_pretrained(folder, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    practice = STEPS["large"]["practice"]
    parser.add_argument("--practice", type=int, default=practice, help=f"steps of the last phase (default {practice})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="checkpoints, for continuing")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder that gets small/ and large/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = make_tokenizer()
    last = None
    for name in SHAPES:
        path = name
        for phase, steps in (STEPS[name] | ({"practice": args.practice} if name == "large" else {})).items():
            path = f"{path}-{phase}{steps}"
            checkpoint = args.work / f"seed{args.seed}" / f"{path}.pt"
            train(name, phase, steps, args.seed, last, checkpoint, tokenizer)  # nothing is done twice
            last = checkpoint
        export(last, args.out / name, tokenizer, name)
        print(f"{args.out / name}: {(args.out / name / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
