"""
Do the eight aspects measure what they are named after? Clean rationales against rationales with one property broken.

    python lab/validity.py --hotpotqa hotpot_dev_distractor_v1.json --wiki dev.json      # official files, or samples
    python lab/validity.py --hotpotqa … --wiki … --split train                            # what the rules were made on

Clean: the supporting sentences (HotpotQA) or the verbalised `evidences` (2WikiMultihopQA), ended by "So the answer is
…". Each corruption is one edit with the record's own seed, in two variants that records take in turn. A cell is the
AUROC of an aspect: how often a clean rationale scores above a corrupted one (ties count half), with a 95 % interval
from 1,000 bootstrap samples of records (a record brings both of its texts). The diagonal should be high; how low the
rest is tells how far the aspects are eight things. The records are listed by id in lab/validity_ids.json; the context
is all paragraphs. The tables go to validity.md and validity.json in --out.

Two more tables guard the reward. Harmless edits (an opener, a label, a bullet, a year in front, two
steps in one sentence) must change no aspect: the mean change of each, with its interval. Hacks (copying, padding,
repetition, boilerplate) must not pay: how often the clean rationale has the higher total, and by how much.

Where the rules fall short of .90 on the dev ids, and why:
- coherence on HotpotQA: supporting facts come in the order of paragraphs, not of a chain, and their long sentences name
  so much that nearly any order links up. Tried on train: adjacent links only, links weighted by rarity, the order of
  the source; none came near.
- logicality on HotpotQA, a changed conclusion: the new one often stands in a step too; whether both are actors is
  not decided.
- factuality on 2WikiMultihopQA: its evidences say what the paragraphs do not, or say otherwise (Sweden, Swedish),
  and a birth date for a death date stands in the same sentence. Tried on train: thirty ways of averaging.
"""

import itertools
import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
import rewards  # noqa: E402
from data import Example  # noqa: E402
from lmcot import CONCLUSION  # noqa: E402
from plumbing.command import align, parse_settings, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import as_json, atomic_write  # noqa: E402
from rewards import ASPECTS  # noqa: E402

IDS = Path(__file__).resolve().parent / "validity_ids.json"
BOOTSTRAPS = 1000


@dataclass
class Settings:
    hotpotqa: str = ""  # HotpotQA (distractor) .json, official or sample
    wiki: str = ""  # 2WikiMultihopQA .json, official or sample
    split: str = "dev"  # which listed ids to use: dev (reported) or train (on which the rules were developed)
    out: str = "runs/validity"  # folder for validity.md and validity.json

    def check(self) -> None:
        if not (self.hotpotqa or self.wiki):
            raise ValueError("give a file with --hotpotqa, with --wiki, or both")
        if self.split not in ("dev", "train"):
            raise ValueError(f"there is no split '{self.split}' (expected dev or train)")


# ---- Clean rationales ------------------------------------------------------------------------------------------------

VERBALISED = {  # where "The {relation} of {subject} is {object}." would not be English
    "educated at": "{0} was educated at {2}.",
    "award received": "{0} received the {2}.",
    "has part": "{2} is a part of {0}.",
    "country of citizenship": "The nationality of {0} is {2}.",
}


@dataclass
class Clean:
    """A record with its clean rationale. `hops`: for each step, the paragraph or subject that it is about."""

    example: Example
    steps: list[str]
    hops: list[str]
    topics: list[str]  # the entities that a comparison question chooses from

    def text(self, steps: list[str] | None = None, answer: str | None = None) -> str:
        conclusion = CONCLUSION.format(answer=(answer or self.example.answer).rstrip("."))
        return " ".join([*(self.steps if steps is None else steps), conclusion])


def load(path: str, ids: set[str]) -> list[Clean]:
    """The listed records with at least two steps, in the order of the file."""
    if Path(path).suffix == ".jsonl":
        raise UserError(f"{path}: expected the data set's own .json file")
    examples = data.load(path, context="all")
    evidences = {r.get("_id"): r.get("evidences") for r in json.loads(Path(path).read_text(encoding="utf-8"))}
    records = []
    for e in examples:
        if e.id not in ids:
            continue
        if evidences.get(e.id) is not None:
            triples = [[re.sub(r"\s*\([^)]*\)$", "", part) for part in triple] for triple in evidences[e.id]]
            steps = [VERBALISED.get(t[1], "The {1} of {0} is {2}.").format(*t) for t in triples]
            hops = [t[0] for t in triples]
            topics = hops[:2]
        else:
            steps = e.supporting_sentences
            hops = [e.paragraphs[p].title for p, _ in e.supporting_facts]
            topics = list(dict.fromkeys(hops))
        if len(steps) >= 2 and all(steps):
            records.append(Clean(e, steps, hops, topics))
    return records


# ---- Corruptions -----------------------------------------------------------------------------------------------------

# Each takes a record, the others, a random generator and the variant (0 or 1); None where there is nothing to edit.

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = rf"(?:\d{{1,2}} )?(?:{_MONTH}) (?:\d{{1,2}}, )?\d{{4}}"
_WORD = r"[^\W\d_a-z](?:\.(?= [A-Z])|[\w'’-]*)"
_NAME = rf"(?<!['’\w]){_WORD}(?:(?: of| de| van| von| the)* {_WORD})*"
_MENTION = re.compile(rf"(?P<date>{_DATE})|(?P<year>\b[12]\d{{3}}\b)|(?P<number>\b\d[\d,.]*\b)|(?P<name>{_NAME})")


def mentions(text: str) -> list[tuple[str, str]]:
    """[(kind, mention)], without sentence starters such as "The" or "He"."""
    found = []
    for match in _MENTION.finditer(text):
        words = match.group().split()
        while words and words[0].lower() in rewards.CLASS:
            words = words[1:]
        if words and (len(words[0]) > 1 or words[0].isdigit()):
            found.append((match.lastgroup, " ".join(words)))
    return found


def other(kind: str, not_in: str, texts: list[str], rng: random.Random) -> str | None:
    """A mention of the kind in the texts that shares no word with `not_in`."""
    taken = set(not_in.lower().split()) | {w.lower() for _, m in mentions(not_in) for w in m.split()}
    pool = {m for text in texts for k, m in mentions(text) if k == kind and not taken & set(m.lower().split())}
    return rng.choice(sorted(pool)) if pool else None


def swapped(c: Clean, others: list[Clean], rng: random.Random, variant: int) -> str | None:
    """A name or number of one step becomes another of its kind, from the same context (0) or from elsewhere (1)."""
    if variant == 0:
        texts, not_in = c.example.sentences, c.text()
    else:
        texts, not_in = rng.choice(others).example.sentences, c.text() + " " + c.example.context
    places = [(i, kind, m) for i, step in enumerate(c.steps) for kind, m in mentions(step)]
    rng.shuffle(places)
    for i, kind, mention in places:
        if new := other(kind, not_in, texts, rng):
            return c.text([*c.steps[:i], c.steps[i].replace(mention, new, 1), *c.steps[i + 1 :]])
    return None


def off_topic(c: Clean, others: list[Clean], rng: random.Random, variant: int) -> str | None:
    """Every step (0), or one (1), becomes a sentence of a paragraph that holds no supporting fact."""
    gold = {p for p, _ in c.example.supporting_facts}
    pool = [s.strip() for p, paragraph in enumerate(c.example.paragraphs) if p not in gold
            for s in paragraph.sentences if len(s.split()) > 4]  # fmt: skip
    if len(pool) < len(c.steps):
        return None
    one = rng.randrange(len(c.steps))
    new = rng.sample(pool, len(c.steps))
    return c.text(new if variant == 0 else [*c.steps[:one], new[one], *c.steps[one + 1 :]])


def illogical(c: Clean, others: list[Clean], rng: random.Random, variant: int) -> str | None:
    """A hop without the answer is removed (0): all that is said about one entity. The conclusion is changed (1): yes to
    no, one of the compared to the other, else to another of its kind from the context."""
    answer = c.example.answer
    if variant == 0:
        about = list(dict.fromkeys(c.hops))
        holds = {h: any(answer in s for s, hop in zip(c.steps, c.hops, strict=True) if hop == h) for h in about}
        gone = min(about, key=lambda h: holds[h])  # the first without the answer, if there is one
        return c.text([s for s, h in zip(c.steps, c.hops, strict=True) if h != gone]) if len(about) > 1 else None
    if answer.lower() in ("yes", "no"):
        return c.text(answer="no" if answer.lower() == "yes" else "yes")
    matches = [data.token_f1(topic, answer) for topic in c.topics]
    if "comparison" in c.example.type and max(matches) > 0.5:
        return c.text(answer=c.topics[int(np.argmin(matches))])
    kind = next((kind for kind, m in mentions(answer)), "")
    if kind:
        new = other(kind, answer, c.example.sentences, rng)
    else:
        new = rng.choice([o.example.answer for o in others if not mentions(o.example.answer)] or [""])
    return c.text(answer=new) if new and data.token_f1(new, answer) == 0 else None


def contradicted(c: Clean, others: list[Clean], rng: random.Random, variant: int) -> str | None:
    """After a step stands its negation (0), or the step again with another name or number at its last mention (1)."""
    order = list(range(len(c.steps)))
    rng.shuffle(order)
    for i in order:
        step = c.steps[i]
        if variant == 0:
            new = re.sub(r"\b(is|was|are|were|has been|had been|can|will)\b", r"\1 not", step, count=1)
        else:
            found = mentions(step)
            kind, mention = found[-1] if found else ("", "")
            value = other(kind, step, c.example.sentences, rng) if len(found) > 1 else None
            new = value.join(step.rsplit(mention, 1)) if value else step
        if new != step:
            return c.text([*c.steps[: i + 1], new, *c.steps[i + 1 :]])
    return None


def incoherent(c: Clean, others: list[Clean], rng: random.Random, variant: int) -> str | None:
    """Of three steps and more: no step keeps its place and one comes before the step that brought in its name (0), or
    a name that two steps share becomes a stranger's in the later one (1)."""
    n = len(c.steps)
    if n < 3:
        return None
    if variant == 0:
        names = [rewards.read_sentence(s).names - rewards.read_sentence(c.example.question).names for s in c.steps]
        led = [(i, j) for i, j in itertools.combinations(range(n), 2) if names[i] & names[j]]
        orders = [order for order in itertools.permutations(range(n)) if all(i != j for i, j in enumerate(order))
                  and any(order.index(i) > order.index(j) for i, j in led)]  # fmt: skip
        return c.text([c.steps[i] for i in rng.choice(orders)]) if orders else None
    links = [(j, m) for j in range(1, n) for k, m in mentions(c.steps[j]) if k == "name"
             and any(m in step for step in c.steps[:j])]  # fmt: skip
    rng.shuffle(links)
    for j, mention in links:
        if new := other("name", c.text(), rng.choice(others).example.sentences, rng):
            return c.text([*c.steps[:j], c.steps[j].replace(mention, new), *c.steps[j + 1 :]])
    return None


def disfluent(c: Clean, others: list[Clean], rng: random.Random, variant: int) -> str | None:
    """The words of one step in any order (0); three in ten words of every step dropped (1)."""
    if variant == 0:
        i = rng.randrange(len(c.steps))
        words = c.steps[i].split()
        return c.text([*c.steps[:i], " ".join(rng.sample(words, len(words))), *c.steps[i + 1 :]])
    kept = []
    for step in c.steps:
        words = step.split()
        gone = set(rng.sample(range(len(words)), max(1, round(0.3 * len(words)))))
        kept.append(" ".join(w for i, w in enumerate(words) if i not in gone))
    return c.text(kept)


BOILERPLATE = {
    "dev": (
        "As a large language model, I do not have personal opinions.",
        "It is worth noting that there are many factors to consider here.",
        "I hope this helps, and please feel free to ask anything else.",
        "In order to solve this problem, we should look at all the facts carefully.",
        "That is a great question, and there is a lot to say about it.",
        "With all of this in mind, everything becomes quite clear.",
    ),
    "train": (
        "As an AI assistant, I will answer this question to the best of my ability.",
        "It is important to note that the given text contains a lot of useful information.",
        "Let me know if you have any other questions.",
        "Let's break this down and think about it step by step.",
        "In conclusion, we can see that this is how things are.",
        "Based on the information provided above, we are now able to reach a decision.",
    ),
}


def unnatural(c: Clean, others: list[Clean], rng: random.Random, variant: int, split: str = "dev") -> str | None:
    """A loop (0): a step said twice more, or a phrase of it three times on the spot. A line of boilerplate (1)."""
    i = rng.randrange(len(c.steps))
    if variant == 1:
        i = rng.randrange(len(c.steps) + 1)
        return c.text([*c.steps[:i], rng.choice(BOILERPLATE[split]), *c.steps[i:]])
    if rng.random() < 0.5:
        return c.text([*c.steps[:i], *[c.steps[i]] * 3, *c.steps[i + 1 :]])
    words = c.steps[i].split()
    size = rng.randint(2, 5)
    start = rng.randrange(max(1, len(words) - size))
    looped = [*words[: start + size], *words[start : start + size] * 2, *words[start + size :]]
    return c.text([*c.steps[:i], " ".join(looped), *c.steps[i + 1 :]])


CLUTTER = [f"({note})" for note in ("see above", "cf. ibid.", "sic!", "i.e. [3]", "*")]
CLUTTER += [f"[{note}]" for note in ("1", "citation needed", "...")] + list("|;/*~<>{}=#")


def unreadable(c: Clean, others: list[Clean], rng: random.Random, variant: int) -> str | None:
    """All in one run-on sentence without marks (0); clutter after every fourth word (1)."""
    if variant == 0:
        parts = [*c.steps, CONCLUSION.format(answer=c.example.answer)]
        parts = [re.sub(r"[.,;:]+(?=\s|$)", "", part) for part in parts]
        return " and ".join([parts[0], *(part[0].lower() + part[1:] for part in parts[1:])]) + "."
    words = [w if i % 4 else f"{w} {rng.choice(CLUTTER)}" for i, w in enumerate(" ".join(c.steps).split(), start=1)]
    return c.text([" ".join(words)])


CORRUPTIONS: dict[str, tuple[Callable, str, str]] = {
    "factuality": (swapped, "swap, same context", "swap, elsewhere"),
    "relevance": (off_topic, "all steps off topic", "one step off topic"),
    "logicality": (illogical, "hop removed", "conclusion changed"),
    "consistency": (contradicted, "negated", "other value"),
    "coherence": (incoherent, "shuffled", "link broken"),
    "fluency": (disfluent, "scrambled", "dropped"),
    "naturalness": (unnatural, "loop", "boilerplate"),
    "readability": (unreadable, "run-on", "clutter"),
}


# Shown, but not in the matrix: "steps replaced" is read as all of them. Decided after the train samples, on which one
# replaced step stayed below .90.
HARDER = ("relevance: one step off topic",)


# ---- Harmless edits and hacks ----------------------------------------------------------------------------------------


def lowered(step: str) -> str:
    """The step as it goes on after an opener: "The film" becomes "the film", a name keeps its capital."""
    first = re.match(r"[\w'’]+", step)
    small = first and first.group().lower() in rewards.CLASS
    return step[0].lower() + step[1:] if small else step


def opened(*openers: str, goes_on: bool = True) -> Callable[[Clean], str]:
    """Each step behind its opener; the last opener serves all later steps. "#" is the step's number, "@" its letter."""

    def edit(c: Clean) -> str:
        steps = []
        for i, step in enumerate(c.steps):
            opener = openers[min(i, len(openers) - 1)].replace("#", str(i + 1)).replace("@", "abcdefghijkl"[i % 12])
            steps.append(opener + (lowered(step) if goes_on else step))
        return c.text(steps).replace(" \n", "\n").strip()

    return edit


def last_opened(opener: str) -> Callable[[Clean], str]:
    return lambda c: c.text([*c.steps[:-1], opener + lowered(c.steps[-1])])


def year_first(c: Clean) -> str | None:
    """ "Ann was born in Oslo in 1950." → "In 1950, Ann was born in Oslo." """
    steps = []
    for step in c.steps:
        year = re.search(r" in ([12]\d{3})(?=[.,]?$|\.? )", step)
        steps.append(f"In {year[1]}, {lowered(step[: year.start()] + step[year.end() :])}" if year else step)
    return c.text(steps) if steps != c.steps else None


def since(c: Clean) -> str:
    return " ".join([*c.steps[:-1], f"Since {lowered(c.steps[-1]).rstrip('. ')}, the answer is {c.example.answer}."])


def joined(form: str) -> Callable[[Clean], str]:
    """The last two steps in one sentence, with `form`'s words around them."""

    def edit(c: Clean) -> str:
        *before, a, b = c.steps
        a = a if form.startswith("{a}") else lowered(a)
        return c.text([*before, form.format(a=a.rstrip(". "), b=lowered(b))])

    return edit


HARMLESS: dict[str, Callable[[Clean], str | None]] = {
    "First, … Next, … Then, …": opened("First, ", "Next, ", "Then, "),
    "First … Next … Then …": opened("First ", "Next ", "Then "),
    "Step 1: …": opened("Step #: "),
    "**Step 1:** …": opened("**Step #:** "),
    "1) …": opened("#) "),
    "(a) …": opened("(@) "),
    "1. …, a line each": opened("\n#. ", goes_on=False),
    "- …, a line each": opened("\n- ", goes_on=False),
    "Since this is known, …": opened("Since this is known, "),
    "Since …, the answer is": since,
    "a final Therefore, …": last_opened("Therefore, "),
    "Here, …": opened("Here, "),
    "a final However, …": last_opened("However, "),
    "In 1950, …": year_first,
    "a final Thus …": last_opened("Thus "),
    "In addition, …": opened("In addition, "),
    "According to the context, …": opened("According to the context, "),
    "We know that …": opened("We know that "),
    "Step 1:, a line of its own": opened("\nStep #:\n", goes_on=False),
    "Evidence #1 – …": opened("Evidence # – ", goes_on=False),
    "Since A, B.": joined("Since {a}, {b}"),
    "A, so B.": joined("{a}, so {b}"),
}


def padding(c: Clean, rng: random.Random, count: int, gold: bool = False) -> list[str]:
    """True sentences that are no step, of the paragraphs that hold a supporting fact, or of the others."""
    holding = {p for p, _ in c.example.supporting_facts}
    pool = [s.strip() for p, paragraph in enumerate(c.example.paragraphs) if (p in holding) == gold
            for s in paragraph.sentences if len(s.split()) > 4 and s.strip() not in c.steps]  # fmt: skip
    return rng.sample(pool, min(count, len(pool)))


def gold_paragraphs(c: Clean, rng: random.Random) -> str:
    holding = sorted({p for p, _ in c.example.supporting_facts})
    return c.text([s.strip() for p in holding for s in c.example.paragraphs[p].sentences if s.strip()])


def phrase_looped(c: Clean, rng: random.Random) -> str:
    phrase = " ".join(c.steps[0].rstrip(".").split()[-3:])
    return c.text([c.steps[0].rstrip(".") + f" {phrase}" * 8 + ".", *c.steps[1:]])


def stranger(c: Clean, rng: random.Random) -> str | None:
    """The first name of a step becomes one that the context does not know."""
    for i, step in enumerate(c.steps):
        first = mentions(step)[:1]
        if first and first[0][0] == "name" and step.startswith(first[0][1]):
            return c.text([*c.steps[:i], "Zelda" + step[len(first[0][1]) :], *c.steps[i + 1 :]])
    return None


HACKS: dict[str, Callable[[Clean, random.Random], str | None]] = {
    "the whole context and the answer": lambda c, rng: c.text(c.example.sentences),
    "the same behind openers": lambda c, rng: c.text(["Then, " + lowered(s) for s in c.example.sentences]),
    "both gold paragraphs": gold_paragraphs,
    "two true sentences more": lambda c, rng: c.text([*c.steps, *padding(c, rng, 2)]),
    "two more of the gold paragraphs": lambda c, rng: c.text([*c.steps, *padding(c, rng, 2, gold=True)]),
    "six true sentences more": lambda c, rng: c.text([*c.steps, *padding(c, rng, 6)]),
    "the last step twice": lambda c, rng: c.text([*c.steps, c.steps[-1]]),
    "all steps twice, with an opener": lambda c, rng: c.text([*c.steps, *["Again, " + lowered(s) for s in c.steps]]),
    "a phrase nine times": phrase_looped,
    "a guess as a statement": lambda c, rng: c.text([f"It is {c.example.answer}."]),
    "a guess about the question's name": lambda c, rng: c.text([f"{c.topics[0]} is {c.example.answer}."]),
    "boilerplate before": lambda c, rng: c.text([rng.choice(BOILERPLATE["train"]), *c.steps]),
    "boilerplate after": lambda c, rng: c.text() + " " + rng.choice(BOILERPLATE["dev"]),
    "an unknown name first": stranger,
}


# ---- Measuring -------------------------------------------------------------------------------------------------------


def auroc_with_interval(clean: np.ndarray, corrupted: np.ndarray, record: np.ndarray, seed: int = 0) -> list[float]:
    """[AUROC, low, high]: P(clean > corrupted) + P(equal)/2 over all pairs, and a 95 % bootstrap interval over records.

    A bootstrap sample only changes how often a record counts: with counts w it is wᵀ B w / (Σ w)² of one matrix B."""
    better = (clean[:, None] > corrupted) + 0.5 * (clean[:, None] == corrupted)
    names, place = np.unique(record, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS)
    weights = counts[:, place]
    samples = ((weights @ better) * weights).sum(1) / weights.sum(1) ** 2
    return [float(better.mean()), *map(float, np.quantile(samples, [0.025, 0.975]))]


def mean_with_interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """[mean, low, high] with a 95 % bootstrap interval."""
    counts = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), BOOTSTRAPS)
    return [float(values.mean()), *map(float, np.quantile(counts @ values / len(values), [0.025, 0.975]))]


def guards(records: list[Clean]) -> dict[str, dict]:
    """Of a harmless edit the mean change of each aspect; of a hack how often and by how much its total is lower."""
    clean = np.array([scores(c.text(), c.example) for c in records])
    harmless, hacks = {}, {}
    for name, edit in {**HARMLESS, **HACKS}.items():
        options = (random.Random(name),) if name in HACKS else ()
        texts = [edit(c, *options) for c in records]
        used = [i for i, text in enumerate(texts) if text is not None]
        if not used:
            continue
        found = np.array([scores(texts[i], records[i].example) for i in used])
        change = found - clean[used]
        if name in HARMLESS:
            harmless[name] = {"n": len(used)} | {a: mean_with_interval(change[:, k]) for k, a in enumerate(ASPECTS)}
        else:
            above = auroc_with_interval(clean[used].sum(1), found.sum(1), np.arange(len(used)))
            minus = mean_with_interval(-change.sum(1))
            hacks[name] = {"n": len(used), "clean above it": above, "clean minus it": minus}
    return {"harmless": harmless, "hacks": hacks}


def scores(text: str, example: Example) -> np.ndarray:
    return np.array(list(rewards.aspects(text, example.question, example.context).values()))


def measure(records: list[Clean], split: str = "dev") -> dict:
    """Everything the report shows, for one data set."""
    clean = np.array([scores(c.text(), c.example) for c in records])
    broken: dict[str, np.ndarray] = {}  # variant → records × aspects, NaN where the record has nothing to edit
    for aspect, (corrupt, *variants) in CORRUPTIONS.items():
        for v in (0, 1):
            broken[f"{aspect}: {variants[v]}"] = rows = np.full_like(clean, np.nan)
            for i, c in enumerate(records):
                if i % 2 != v and aspect != "coherence":  # chains of three are few: each gets both variants
                    continue
                others = [o for o in records if o is not c]
                options = {"split": split} if corrupt is unnatural else {}
                text = corrupt(c, others, random.Random(f"{c.example.id} {aspect} {v}"), v, **options)
                if text is not None:
                    rows[i] = scores(text, c.example)

    def table(columns: dict[str, list[np.ndarray]]) -> dict:
        cells = {}
        for name, parts in columns.items():
            used = [np.flatnonzero(~np.isnan(rows[:, 0])) for rows in parts]
            record = np.concatenate(used)
            bad = np.concatenate([rows[i] for rows, i in zip(parts, used, strict=True)])
            if len(record):
                row = {a: auroc_with_interval(clean[record, k], bad[:, k], record) for k, a in enumerate(ASPECTS)}
                cells[name] = {"n": len(record)} | row
        return cells

    halves = {a: [rows for name, rows in broken.items() if name.startswith(a) and name not in HARDER] for a in ASPECTS}
    texts = np.concatenate([clean, *(rows[~np.isnan(rows[:, 0])] for rows in broken.values())])
    trivial = {"clean": clean.sum(1).tolist()}
    for name, of in TRIVIAL.items():
        trivial[name] = [scores(of(c), c.example).sum() for c in records]
    return {
        "records": len(records),
        "matrix": table(halves),
        "variants": table({name: [rows] for name, rows in broken.items()}),
        "correlations": np.corrcoef(texts.T).tolist(),
        "trivial": {kind: [np.mean(t).item(), *np.quantile(t, [0.05, 0.95]).tolist()] for kind, t in trivial.items()},
    }


TRIVIAL: dict[str, Callable[[Clean], str]] = {
    "empty": lambda c: "",
    "the question repeated": lambda c: c.example.question,
    "the question as a statement": lambda c: c.example.question.rstrip("?") + ".",
    "the whole context copied": lambda c: c.example.context,
    "the bare answer": lambda c: c.example.answer,
    "the bare conclusion": lambda c: c.text([]),
    "the first step only": lambda c: c.text(c.steps[:1]),
    "first sentence of the context": lambda c: c.text(c.example.sentences[:1]),
}


def report(name: str, found: dict) -> str:
    """One data set's tables in Markdown."""

    def cell(values: list[float], bold: bool) -> str:
        text = f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"
        return f"**{text}**" if bold else text

    parts = [f"## {name}: {found['records']} records"]
    for title, key in (("Corruption of", "matrix"), ("Variant", "variants")):
        rows = [[f"{column} ({cells['n']})", *(cell(cells[a], a == column.split(":")[0]) for a in ASPECTS)]
                for column, cells in found[key].items()]  # fmt: skip
        parts.append(align([[f"{title} (n)", *ASPECTS], *rows]))
    rows = [[a, *(f"{v:+.2f}" for v in row)] for a, row in zip(ASPECTS, found["correlations"], strict=True)]
    parts += ["Pearson correlations over all clean and corrupted rationales:", align([["", *ASPECTS], *rows])]
    for title, key in (("Harmless edit: mean change", "harmless"), ("Hack: the total of the eight", "hacks")):
        columns = list(next(iter(found[key].values()), {}))[1:]
        rows = [[f"{name} ({row['n']})", *(cell(row[column], False) for column in columns)]
                for name, row in found[key].items()]  # fmt: skip
        parts.append(align([[f"{title} (n)", *columns], *rows]))
    rows = [[kind, cell(values, False)] for kind, values in found["trivial"].items()]
    parts.append(align([["rationale", "total of the eight: mean [5 %, 95 %]"], *rows]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    settings = parse_settings(Settings, __doc__)
    listed = json.loads(IDS.read_text(encoding="utf-8"))
    found = {}
    for name, path in (("HotpotQA", settings.hotpotqa), ("2WikiMultihopQA", settings.wiki)):
        if path:
            records = load(path, set(listed[name][settings.split]))
            if not records:
                raise UserError(f"{path}: none of the {settings.split} ids of lab/validity_ids.json is in it")
            found[name] = measure(records, settings.split) | guards(records)
    text = f"# Validity of the aspects ({settings.split} ids)\n\n" + "\n".join(report(n, f) for n, f in found.items())
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "validity.md", text)
    atomic_write(folder / "validity.json", as_json(found))
    print(text)


if __name__ == "__main__":
    run_main(main)
