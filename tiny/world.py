"""TinyWiki: a generator of small invented worlds and of multi-hop questions about them.

    python tiny/world.py --out FOLDER     # writes train.json, dev.json, test.json, ood.json in HotpotQA's official form

A world assigns facts to invented names (people, films, books, cities, countries, organisations). Names are shared by
all worlds and facts are not: who directed a film differs from world to world, so nothing can be answered from memory
and everything has to be read. Each record holds the paragraphs its question needs (gold), distractor paragraphs,
the supporting facts in the order of the reasoning, and `evidences` triples as 2WikiMultihopQA has them. Where a
question goes on from somebody (the birthplace of the director), the gold text says the same of somebody else (the
composer), so that a reader who skips the first step has to guess.

Splits share no pair of entities: a fact (subject, object) and a comparison (A, B) may occur only in the split that
`split_of` gives to the two names. So a pair that a test question is about is in no training text, of any world.
"""

import argparse
import itertools
import json
import random
import re
import sys
import zlib
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.errors import UserError  # noqa: E402

SPLITS = ("train", "dev", "test", "ood")
SEED = 7  # of the TinyWiki that results are reported on; those before served development
SIZES = {"train": 12000, "dev": 500, "test": 2000, "ood": 500}
YEARS = [str(year) for year in range(1920, 1980)]
QUESTIONS_PER_WORLD = 50


def split_of(a: str, b: str) -> str:
    """The only split in which the names a and b may stand in one fact or one comparison."""
    bucket = zlib.crc32("|".join(sorted((a, b))).encode()) % 10
    return {0: "test", 1: "dev", 2: "ood"}.get(bucket, "train")


# ------------------------------------------------------------------------------------------------ names and relations


def make_names() -> dict[str, list[str]]:
    """The names of each kind of entity, always the same; a name's ending tells its kind."""
    rng = random.Random(7)
    onsets = "b br c d dr f g h j k kl l m n p r s st t tr v w z".split()
    syllables = [o + v for o, v in product(onsets, "aeiou")]
    used: set[str] = set()

    def invent(endings: str, count: int, length: int) -> list[str]:
        names: list[str] = []
        while len(names) < count:
            ending = endings.split()[len(names) % len(endings.split())]
            name = "".join(rng.sample(syllables, length)).capitalize() + ending
            if name not in used:
                used.add(name)
                names.append(name)
        return names

    film_starts, film_ends = "Storm Moon Iron Silver Night Winter Glass River", "gate fall song rider light dance"
    book_starts, book_ends = "Ember Raven Thorn Amber Cedar Shadow Frost", "leaf letters verses chapters pages tales"
    return {
        "woman": invent("la ra na", 60, 2),
        "man": invent("rd nt ck", 60, 2),
        "film": [a + b for a, b in product(film_starts.split(), film_ends.split())],
        "book": [a + b for a, b in product(book_starts.split(), book_ends.split())],
        "city": invent("burg ton dal ford", 48, 1),
        "country": invent("nia land stan", 36, 1),
        "organisation": invent("corp labs works", 42, 1),
    }


NAMES = make_names()
NAMES["person"] = NAMES["woman"] + NAMES["man"]
NAMES["year"] = YEARS


@dataclass(frozen=True)
class Relation:
    subject: str  # kind of entity
    object: str
    sentences: tuple[str, ...]  # how a text states the fact
    question: str  # asks for the object
    noun: str = ""  # the object as a phrase, for chains: "the director of X"


RELATIONS = {
    "director": Relation(
        "film", "person",
        ("{s} was directed by {o}.", "The director of {s} is {o}.", "{o} directed {s}."),
        "Who directed {s}?", "the director of {s}"),
    "composer": Relation(
        "film", "person",
        ("{s} has music by {o}.", "The composer of {s} is {o}.", "{o} wrote the music for {s}."),
        "Who composed the music for {s}?", "the composer of {s}"),
    "release year": Relation(
        "film", "year",
        ("{s} was released in {o}.", "{s} came out in {o}."),
        "When was {s} released?"),
    "author": Relation(
        "book", "person",
        ("{s} was written by {o}.", "The author of {s} is {o}.", "{o} wrote {s}."),
        "Who wrote {s}?", "the author of {s}"),
    "publisher": Relation(
        "book", "organisation",
        ("{s} was published by {o}.", "The publisher of {s} is {o}."),
        "Who published {s}?", "the publisher of {s}"),
    "publication year": Relation(
        "book", "year",
        ("{s} was published in {o}.", "{s} appeared in {o}."),
        "When was {s} published?"),
    "mother": Relation(
        "person", "woman",
        ("The mother of {s} is {o}.", "{s} is a child of {o}, the mother."),
        "Who is the mother of {s}?", "the mother of {s}"),
    "father": Relation(
        "person", "man",
        ("The father of {s} is {o}.", "{s} is a child of {o}, the father."),
        "Who is the father of {s}?", "the father of {s}"),
    "spouse": Relation(
        "person", "person",
        ("{s} is married to {o}.", "The spouse of {s} is {o}."),
        "Who is the spouse of {s}?", "the spouse of {s}"),
    "birthplace": Relation(
        "person", "city",
        ("{s} was born in {o}.", "The birthplace of {s} is {o}."),
        "Where was {s} born?", "the birthplace of {s}"),
    "residence": Relation(
        "person", "city",
        ("{s} lives in {o}.", "The home of {s} is in {o}."),
        "Where does {s} live?", "the home city of {s}"),
    "birth year": Relation(
        "person", "year",
        ("{s} was born in the year {o}.", "The birth year of {s} is {o}."),
        "When was {s} born?"),
    "employer": Relation(
        "person", "organisation",
        ("{s} works for {o}.", "{o} employs {s}."),
        "Who does {s} work for?", "the employer of {s}"),
    "headquarters": Relation(
        "organisation", "city",
        ("{s} is based in {o}.", "The seat of {s} is in {o}."),
        "Where is {s} based?", "the seat of {s}"),
    "founder": Relation(
        "organisation", "person",
        ("{s} was founded by {o}.", "The founder of {s} is {o}.", "{o} founded {s}."),
        "Who founded {s}?", "the founder of {s}"),
    "founding year": Relation(
        "organisation", "year",
        ("{s} was founded in {o}.", "{s} has existed since {o}."),
        "When was {s} founded?"),
    "country": Relation(
        "city", "country",
        ("{s} is a city in {o}.", "{s} lies in {o}.", "The country of {s} is {o}."),
        "In which country is {s}?"),
    "mayor": Relation(
        "city", "person",
        ("The mayor of {s} is {o}.", "{o} is the mayor of {s}."),
        "Who is the mayor of {s}?", "the mayor of {s}"),
    "city year": Relation(
        "city", "year",
        ("{s} was built in {o}.", "{s} became a city in {o}."),
        "When was {s} built?"),
}  # fmt: skip
DESCRIBED = ("film", "book", "person", "organisation", "city")  # kinds of entity that have a paragraph
KINDS = {kind: [name for name, r in RELATIONS.items() if r.subject == kind] for kind in DESCRIBED}
FAMILY = ("mother", "father", "spouse")  # two of these in a row are a question of the type inference


def kind_of(entity: str) -> str:
    """The kind of an entity that has a paragraph."""
    return next(kind for kind in DESCRIBED if entity in NAMES[kind])


def fits(first: str, second: str) -> bool:
    """Whether the object of one relation can be the subject of the next."""
    kind = RELATIONS[first].object
    return RELATIONS[second].subject == ("person" if kind in ("woman", "man") else kind)


# Two-hop questions: every pair of relations that fits; some pairs are kept for the out-of-distribution split.
PAIRS = [(a, b) for a, b in product(RELATIONS, RELATIONS)
         if RELATIONS[a].noun and fits(a, b) and not (a in FAMILY and b in FAMILY)]  # fmt: skip
OOD_PAIRS = PAIRS[4::6]
COMPOSITIONS = [pair for pair in PAIRS if pair not in OOD_PAIRS]
INFERENCES = {
    ("mother", "mother"): "Who is the maternal grandmother of {s}?",
    ("mother", "father"): "Who is the maternal grandfather of {s}?",
    ("father", "mother"): "Who is the paternal grandmother of {s}?",
    ("father", "father"): "Who is the paternal grandfather of {s}?",
    ("spouse", "mother"): "Who is the mother-in-law of {s}?",
    ("spouse", "father"): "Who is the father-in-law of {s}?",
}
COMPARISONS = {  # relation → a question about two years; {when} is "first" or "later"
    "release year": "Which film was released {when}, {a} or {b}?",
    "publication year": "Which book was published {when}, {a} or {b}?",
    "birth year": "Who was born {when}, {a} or {b}?",
    "founding year": "Which organisation was founded {when}, {a} or {b}?",
}
SAME = {  # relation → a yes/no question
    "birthplace": "Were {a} and {b} born in the same city?",
    "employer": "Do {a} and {b} work for the same organisation?",
    "country": "Are {a} and {b} in the same country?",
    "headquarters": "Are {a} and {b} based in the same city?",
}
BRIDGE_COMPARISONS = {  # (bridge, relation) → the same about the entities that the bridge leads to
    ("director", "birth year"): "Which film has the director born {when}, {a} or {b}?",
    ("author", "birth year"): "Which book has the author born {when}, {a} or {b}?",
    ("publisher", "founding year"): "Which book has the publisher founded {when}, {a} or {b}?",
}
BRIDGE_SAME = {
    ("director", "birthplace"): "Were the directors of {a} and {b} born in the same city?",
    ("author", "employer"): "Do the authors of {a} and {b} work for the same organisation?",
}
TYPES = ("compositional", "comparison", "bridge_comparison", "inference")  # 2WikiMultihopQA's four
WEIGHTS = (45, 25, 20, 10)


# ------------------------------------------------------------------------------------------------ a world


@cache  # the same few are asked for a million times
def partners(split: str, a: str, kind: str) -> list[str]:
    """The names of a kind that may stand in one fact or one comparison with a in this split."""
    return [b for b in NAMES[kind] if a != b and split_of(a, b) == split]


class Impossible(Exception):
    """The random choices so far leave no question to ask (no name is allowed in this split, a tie): draw again."""


class World:
    """Facts drawn when first asked for and then kept, all of one split; `rng` decides everything."""

    def __init__(self, split: str, seed: str):
        self.split, self.rng = split, random.Random(seed)
        self.facts: dict[tuple[str, str], str] = {}

    def fact(self, subject: str, relation: str) -> str:
        if (subject, relation) not in self.facts:
            names = NAMES[RELATIONS[relation].object]
            if names is not YEARS:  # one object for one relation of a subject: nobody marries a parent
                taken = {self.facts.get((subject, other)) for other in KINDS[RELATIONS[relation].subject]}
                names = [n for n in partners(self.split, subject, RELATIONS[relation].object) if n not in taken]
                if relation == "spouse":  # nobody is married twice
                    names = [name for name in names if (name, relation) not in self.facts]
            if not names:
                raise Impossible
            self.facts[subject, relation] = self.rng.choice(names)
            if relation == "spouse":
                self.facts[self.facts[subject, relation], relation] = subject
        return self.facts[subject, relation]

    def make_equal(self, a: str, b: str, relation: str) -> None:
        """Let a and b share the object of a relation."""
        kind = RELATIONS[relation].object
        shared = [name for name in partners(self.split, a, kind) if name in partners(self.split, b, kind)]
        if not shared or (a, relation) in self.facts or (b, relation) in self.facts:
            raise Impossible
        self.facts[a, relation] = self.facts[b, relation] = self.rng.choice(shared)

    def pair(self, kind: str) -> tuple[str, str]:
        """Two names of a kind that may be compared in this split."""
        a = self.rng.choice(NAMES[kind])
        others = partners(self.split, a, kind)
        if not others:
            raise Impossible
        return a, self.rng.choice(others)

    def state(self, subject: str, relation: str) -> str:
        return self.rng.choice(RELATIONS[relation].sentences).format(s=subject, o=self.fact(subject, relation))

    def lookalike(self, subject: str, relation: str, asked: str) -> tuple[str, str]:
        """Where a step leads on to `asked`, the same about somebody else of whom the subject's text speaks.

        Who composed a film has a birthplace too, so a reader who looks for "born" alone cannot tell it from the
        director's → (a relation of the subject that names somebody else, or "", and their name).
        """
        others = [r for r in KINDS[kind_of(subject)] if r != relation and fits(r, asked)]
        other = self.rng.choice(others) if others else ""
        name = self.fact(subject, other) if other else self.rng.choice(NAMES[RELATIONS[asked].subject])
        then = self.fact(subject, relation)
        if {name, self.fact(name, asked)} & {subject, then, self.fact(then, asked)}:
            raise Impossible  # no second way to the answer, and no circle
        return other, name

    def paragraph(self, entity: str, needed: list[str], size: int = 3) -> tuple[list[str], dict[str, int]]:
        """`size` sentences about an entity, the needed relations among them → sentences, and index by relation."""
        others = [name for name in KINDS[kind_of(entity)] if name not in needed]
        relations = needed + self.rng.sample(others, max(0, min(size - len(needed), len(others))))
        self.rng.shuffle(relations)
        return [self.state(entity, r) for r in relations], {r: i for i, r in enumerate(relations)}

    # -------------------------------------------------------------------------------------------- questions

    def chain(self, relations: tuple[str, ...], question: str = "") -> tuple[str, str, list[tuple[str, str]]]:
        """Question, answer and steps [(subject, relation)] of a chain: the object of each step is the next subject."""
        start = self.rng.choice(NAMES[RELATIONS[relations[0]].subject])
        steps, entity, phrase = [], start, start
        for i, relation in enumerate(relations):
            steps.append((entity, relation))
            entity = self.fact(entity, relation)
            if not question and i < len(relations) - 1:
                phrase = RELATIONS[relation].noun.format(s=phrase)
        if len({start, entity, *(s for s, _ in steps)}) != len(steps) + 1:
            raise Impossible  # somebody's mother-in-law's child is oneself
        return (question or RELATIONS[relations[-1]].question).format(s=phrase), entity, steps

    def compare(self, bridge: str, relation: str, question: str) -> tuple[str, str, list[tuple[str, str]]]:
        """Question, answer, steps of a comparison of two entities, or of the entities that `bridge` leads to."""
        of_years = "{when}" in question
        equal = not of_years and self.rng.random() < 0.5
        kept = dict(self.facts)
        for _ in range(100):  # decided once, then names are drawn until it fits: else "yes" is rare in small splits
            try:
                a, b = self.pair(RELATIONS[bridge or relation].subject)
                ends = [self.fact(e, bridge) if bridge else e for e in (a, b)]
                if ends[0] == ends[1]:
                    raise Impossible
                if equal:
                    self.make_equal(*ends, relation)
                break
            except Impossible:
                self.facts = dict(kept)
        else:
            raise Impossible
        values = [self.fact(e, relation) for e in ends]
        later = self.rng.random() < 0.5
        if not of_years:
            answer = "yes" if values[0] == values[1] else "no"
        elif values[0] == values[1]:
            raise Impossible
        else:
            answer = a if (values[0] > values[1]) == later else b
        steps = [step for e, end in zip((a, b), ends, strict=True)
                 for step in ([(e, bridge), (end, relation)] if bridge else [(end, relation)])]  # fmt: skip
        return question.format(a=a, b=b, when="later" if later else "first"), answer, steps

    def ask(self, kind: str) -> tuple[str, str, list[tuple[str, str]]]:
        choose = self.rng.choice
        if kind == "compositional":
            return self.chain(choose(COMPOSITIONS))
        if kind == "inference":
            relations = choose(list(INFERENCES))
            return self.chain(relations, INFERENCES[relations])
        if kind == "unseen pair":
            return self.chain(choose(OOD_PAIRS))
        if kind == "three hops":
            return self.chain(choose([(a, *pair) for a, pair in product(RELATIONS, PAIRS) if (a, pair[0]) in PAIRS]))
        if kind == "one hop":
            return self.chain((choose(list(RELATIONS)),))
        years, same = (COMPARISONS, SAME) if kind == "comparison" else (BRIDGE_COMPARISONS, BRIDGE_SAME)
        table = same if self.rng.random() < 0.4 else years
        key = choose(list(table))
        return self.compare(*(("", key) if kind == "comparison" else key), table[key])

    def record(self, kind: str, distractors: int = 4) -> dict:
        """One question of a kind as a record of HotpotQA's official form, with 2WikiMultihopQA's `evidences`."""
        while True:
            kept = dict(self.facts)
            try:
                question, answer, steps = self.ask(kind)
                needed: dict[str, list[str]] = {}
                for subject, relation in steps:
                    needed.setdefault(subject, []).append(relation)
                asides = {}
                for (subject, relation), (then, asked) in itertools.pairwise(steps):
                    if self.facts[subject, relation] == then:
                        other, name = self.lookalike(subject, relation, asked)
                        needed[subject] += [other] * (other != "" and other not in needed[subject])
                        asides[subject] = name, asked
                paragraphs = {e: self.paragraph(e, relations) for e, relations in needed.items()}
                for subject, fact in asides.items():
                    paragraphs[subject][0].append(self.state(*fact))
                mentioned = [o for (s, _), o in self.facts.items() if s in needed and o not in YEARS]
                strangers = [self.rng.choice(NAMES[self.rng.choice(list(KINDS))]) for _ in range(distractors)]
                for entity in self.rng.sample(mentioned, min(distractors // 2, len(mentioned))) + strangers:
                    if len(paragraphs) < len(needed) + distractors and entity not in (*paragraphs, *NAMES["country"]):
                        paragraphs[entity] = self.paragraph(entity, [])
                break
            except Impossible:
                self.facts = kept
        context = [[title, sentences] for title, (sentences, _) in paragraphs.items()]
        self.rng.shuffle(context)
        return {
            "question": question,
            "answer": answer,
            "type": kind.replace(" ", "_"),
            "supporting_facts": [[s, paragraphs[s][1][r]] for s, r in steps],
            "evidences": [[s, r, self.facts[s, r]] for s, r in steps],
            "context": context,
        }


def records(split: str, seed: int = SEED, size: int | None = None) -> list[dict]:
    """The records of a split, always the same for a seed; a new world starts every QUESTIONS_PER_WORLD questions."""
    if split not in SPLITS:
        raise ValueError(f"TinyWiki has the splits {', '.join(SPLITS)}, not {split!r}")
    out: list[dict] = []
    asked: set[str] = set()
    kinds, weights = (("unseen pair", "three hops"), (1, 1)) if split == "ood" else (TYPES, WEIGHTS)
    for number in itertools.count():
        world = World(split, f"{split} {seed} {number}")
        for _ in range(QUESTIONS_PER_WORLD):
            record = world.record(world.rng.choices(kinds, weights)[0])
            if record["question"] not in asked:
                asked.add(record["question"])
                out.append({"_id": f"tiny-{split}-{seed}-{len(out)}", **record})
            if len(out) == (size or SIZES[split]):
                return out


def refuse_unknown_words(where: str, example, *lms) -> None:
    """Raises UserError where the embedded pair has never read a word of this `data.Example`, which comes from `where`.

    The pair's tokenizer has one piece for each word of TinyWiki, so that of any other word the pair reads single
    letters that mean nothing to it. Other LMs have pieces for all English, and nothing is refused.
    """
    words = re.findall(r"[^\s.,?:!]+", f"{example.question} {example.context}")
    for lm in lms:
        tokenizer = getattr(lm, "tokenizer", None)  # a served LM has none here
        if tokenizer is None or tokenizer.token_to_id("▁Stormgate") is None:  # a film of TinyWiki
            continue
        unknown = [word for word in dict.fromkeys(words) if tokenizer.token_to_id("▁" + word) is None]
        if unknown:
            some = ", ".join(map(repr, unknown[:8]))
            more = " …" if len(unknown) > 8 else ""
            raise UserError(f"{where} is outside TinyWiki: the tiny pair has never read {some}{more} and could only "
                            "guess: give other models with --small and --large")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the four files")
    parser.add_argument("--seed", type=int, default=SEED, help=f"{SEED} is the TinyWiki that results are reported on")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rows = records(split, args.seed)
        (args.out / f"{split}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        print(f"{args.out / split}.json: {len(rows)} questions")


if __name__ == "__main__":
    main()
