"""Does an LM know whose fact is whose? Single questions about contexts of the dev split, answered freely.

    python tiny/probe.py                                    # the embedded pair
    python tiny/probe.py runs/pair/small --questions 1000   # any folders

Six cells ask about one of 2, 3 or 4 rivals of one kind who have the asked relation in common. The sentence that answers
names the asked subject X before its object Y ("X was directed by Y"), or after it ("Y directed X"). Two cells ask about
facts in contexts of real questions, without and with four distractor paragraphs. A sentence is right if it is the
context's, word for word; an answer is right if it is the object.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lmcot  # noqa: E402
from plumbing.command import align, run_main  # noqa: E402
from tiny import pretrain, world  # noqa: E402


class Asked(NamedTuple):
    """A single question, its context, and what is right."""

    relation: str
    question: str
    context: str
    sentence: str
    object: str


def ask(reading: pretrain.Reading, fact: tuple[str, str]) -> Asked:
    subject, relation = fact
    question = world.RELATIONS[relation].question.format(s=subject)
    return Asked(relation, question, reading.context, reading.sentences[fact], reading.world.facts[fact])


def about_rivals(number: int, subject_first: bool, size: int) -> list[Asked]:
    """`size` questions, each with a context of its own, about facts that all `number` rivals of the context have."""
    found, seed = [], 0
    while len(found) < size:
        w = world.World("dev", f"probe {number} {seed}")
        seed += 1
        try:
            reading = pretrain.rivals(w, number)
        except world.Impossible:
            continue
        shared = Counter(relation for _, relation in reading.sentences)
        facts = []
        for (subject, relation), sentence in reading.sentences.items():
            names = [word.strip(".,") for word in sentence.split()]
            is_first = names.index(subject) < names.index(w.facts[subject, relation])
            if shared[relation] == number and is_first == subject_first:
                facts.append((subject, relation))
        if facts:
            found.append(ask(reading, w.rng.choice(facts)))
    return found


def about_records(distractors: int, size: int) -> list[Asked]:
    """`size` questions, each about any fact in the context of a real question of its own."""
    found = []
    for seed in range(size):
        w = world.World("dev", f"probe records {seed}")
        reading = pretrain.context_of_a_question(w, distractors)
        found.append(ask(reading, random.Random(seed).choice(sorted(reading.sentences))))
    return found


def cells(size: int) -> dict[str, list[Asked]]:
    """Name of each cell → its questions."""
    asked = {}
    for number in (2, 3, 4):
        asked[f"{number} rivals, X … Y"] = about_rivals(number, True, size)
        asked[f"{number} rivals, Y … X"] = about_rivals(number, False, size)
    asked["records"] = about_records(0, size)
    asked["records, 4 distractors"] = about_records(4, size)
    return asked


def probe(lm: lmcot.LM, asked: list[Asked]) -> tuple[list[bool], list[bool]]:
    """Which sentences (M_S's prompt) and which answers (the standard prompt) are right."""
    prompts = [lmcot.RATIONALE.format(question=each.question, context=each.context) for each in asked]
    sentences = [written.text for written in lm.complete(prompts, 24)]
    prompts = [lmcot.STANDARD.format(question=each.question, context=each.context) for each in asked]
    answers = [written.text for written in lm.complete(prompts, 8)]
    right_sentences = [text == each.sentence for text, each in zip(sentences, asked, strict=True)]
    right_answers = [text == each.object for text, each in zip(answers, asked, strict=True)]
    return right_sentences, right_answers


def worst_relation(asked: list[Asked], right: list[bool]) -> str:
    """The relation with the smallest share of right sentences, of those that are asked 20 times or more."""
    total, hits = Counter(), Counter()
    for each, is_right in zip(asked, right, strict=True):
        total[each.relation] += 1
        hits[each.relation] += is_right
    shares = {relation: hits[relation] / n for relation, n in total.items() if n >= 20}
    worst = min(shares, key=shares.get, default="")
    return f"{worst} {shares[worst]:.2f}" if worst else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=["tiny/small", "tiny/large"], help="folders of LMs")
    parser.add_argument("--questions", type=int, default=400, help="of each cell (default 400)")
    args = parser.parse_args()
    asked = cells(args.questions)
    for folder in args.folders:
        lm = lmcot.LocalLM.load(folder)
        rows, every, all_right = [[folder, "sentence", "answer", "worst relation"]], [], []
        for name, questions in asked.items():
            sentences, answers = probe(lm, questions)
            shares = [f"{sum(right) / len(right):.3f}" for right in (sentences, answers)]
            rows.append([name, *shares, worst_relation(questions, sentences)])
            every += questions
            all_right += sentences
        rows.append(["all cells", f"{sum(all_right) / len(every):.3f}", "", worst_relation(every, all_right)])
        print(align(rows) + "\n")


if __name__ == "__main__":
    run_main(main)
