"""What rationales for TinyWiki's questions say, by their sentences: every step, a leap, or somebody else's steps.

    python lab/classes.py runs/rl                # M_S untrained, after KD, after RL, on 500 dev questions
    python lab/classes.py runs/eval tiny/small   # the greedy rationales of a comparison; a model

Where a question goes on from somebody (the birthplace of the director), the last sentence of the first paragraph says
the same of somebody else (of the composer): the lookalike. A rationale has the first class that fits:

    unfaithful            some sentence is none of the context; of all questions. Then, for two hops:
      full chain          it ends with the right second sentence, and has the first one
      right leap          it ends with the right second sentence, and the hop is not said
      lookalike chain     it ends with the lookalike's second sentence, and has one that leads to the lookalike
      lookalike leap      it ends with the lookalike's second sentence, and says nothing that leads there
      hop only            it has the right first sentence, and ends with neither
      other
    both facts, one fact, no fact: of the two that a comparison needs
    2, 1, 0 full chains: of the two of a bridge comparison; the first sentence stands before the second

True sentences that nobody needs change no class, but for two hops the last sentence counts, whatever it is.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
import lmcot  # noqa: E402
from eval import read_run  # noqa: E402
from plumbing.command import align, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import read_jsonl  # noqa: E402
from tiny import world  # noqa: E402

CLASSES = {  # group of questions → its classes
    "two hops": ("full chain", "right leap", "lookalike chain", "lookalike leap", "hop only", "other", "unfaithful"),
    "comparison": ("both facts", "one fact", "no fact", "unfaithful"),
    "bridge comparison": ("2 full chains", "1 full chain", "0 full chains", "unfaithful"),
}
GREEDY = ("CoT", "LM-guided, untrained", "LM-guided, KD", "LM-guided, RL")  # methods of eval.py


def group_of(example: data.Example) -> str:
    """The group of a question in CLASSES; "" for chains of three hops."""
    group = example.type.replace("_", " ")
    if group not in CLASSES and len(example.supporting_facts) == 2:
        return "two hops"  # compositional, inference, unseen pair
    return group if group in CLASSES else ""


def classify(example: data.Example, rationale: str) -> str:
    """The class of a rationale for a question of TinyWiki; "" where its group has none."""
    group, gold = group_of(example), example.supporting_sentences
    said = list(data.split_sentences(rationale))
    if not group:
        return ""
    if not set(said) <= set(example.sentences):
        return "unfaithful"
    if group == "comparison":
        return ("no fact", "one fact", "both facts")[len(set(gold) & set(said))]
    if group == "bridge comparison":
        full = has_chain(said, *gold[:2]) + has_chain(said, *gold[2:])
        return f"{full} full chain" if full == 1 else f"{full} full chains"

    hop, then = gold
    leading, others_then = lookalike(example)
    end = said[-1] if said else ""
    if end == then:
        return "full chain" if hop in said else "right leap"
    if end == others_then:
        return "lookalike leap" if set(said).isdisjoint(leading) else "lookalike chain"
    return "hop only" if hop in said else "other"


def has_chain(said: list[str], hop: str, then: str) -> bool:
    return hop in said and then in said[said.index(hop) :]


def lookalike(example: data.Example) -> tuple[list[str], str]:
    """Of a question of two hops: the sentences that lead to the lookalike (there may be none), and its own sentence."""
    paragraph = example.paragraphs[example.supporting_facts[0][0]]
    *sentences, last = paragraph.sentences
    name, _ = subject_and_object(last)
    leading = [sentence for sentence in sentences if subject_and_object(sentence)[1] == name]
    return leading, last


def subject_and_object(sentence: str) -> tuple[str, str]:
    """Of a sentence of TinyWiki; a ValueError if it is none."""
    for relation in world.RELATIONS.values():
        for wording in relation.sentences:
            form = re.escape(wording).replace(r"\{s\}", r"(?P<s>\w+)").replace(r"\{o\}", r"(?P<o>\w+)")
            found = re.fullmatch(form, sentence)
            if found:
                return found["s"], found["o"]
    raise ValueError(f"no sentence of TinyWiki: {sentence}")


# ------------------------------------------------------------------------------------------------ the command

Found = tuple[str, list[data.Example], list[lmcot.Answer]]  # who wrote, for which questions, what


def greedy_answers(place: str, split: str, limit: int) -> Iterator[Found]:
    """A run folder or a model → the greedy rationales of each M_S that is in it or led to it, and M_L's answers."""
    kind, settings = read_run(place)
    if kind == "eval":
        only_tiny(settings)
        examples = data.load(settings["data"], settings["split"], settings["limit"], settings["context"])
        for row in read_jsonl(Path(place) / "answers.jsonl", "method", "seed", "answers"):
            if row["method"] in GREEDY:
                yield f"{row['method']}, {row['seed']}", examples, [lmcot.Answer(**each) for each in row["answers"]]
        return
    smalls = {place: place if kind == "" else f"{place}/model"}
    if kind == "rl":  # the models and data are those of its KD run
        smalls = {settings["kd"]: f"{settings['kd']}/model", **smalls}
        kind, settings = read_run(settings["kd"])
    if kind == "kd":
        smalls = {"untrained": settings["small"], **smalls}
    only_tiny(settings)
    models = lmcot.Models(**{name: settings[name] for name in vars(lmcot.Models()) if name in settings})
    large = lmcot.load_large(models)
    examples = data.load("tiny", split, limit, settings.get("context", "gold"))
    for name, small in smalls.items():
        rationales = lmcot.write_rationales(lmcot.load_small(models, small), examples)
        yield name, examples, lmcot.guided(large, examples, rationales)


def only_tiny(settings: dict) -> None:
    if settings.get("data", "tiny") != "tiny":
        raise UserError(f"this run is about {settings['data']}: only TinyWiki's sentences have classes")


def table(group: str, everyone: list[Found]) -> str:
    """A row for each class: its share of the rationales, and in brackets how many of these are answered right, in %."""
    rows = [[f"{group}: %, and of these right", *[name for name, _, _ in everyone]]]
    rows += [[name] for name in CLASSES[group]]
    for _, examples, answers in everyone:
        rights = {name: [] for name in CLASSES[group]}
        for example, answer in zip(examples, answers, strict=True):
            if group_of(example) == group:
                right = data.exact_match(answer.prediction, example.answers)
                rights[classify(example, answer.rationale)].append(right)
        total = max(1, sum(map(len, rights.values())))
        for row, found in zip(rows[1:], rights.values(), strict=True):
            right = f" ({100 * sum(found) / len(found):.0f})" if found else ""
            row.append(f"{100 * len(found) / total:.1f}{right}")
    return align(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", metavar="FOLDER", help="run folders, or models")
    parser.add_argument("--split", default="dev", help="of TinyWiki, for M_S that write now (default: dev)")
    parser.add_argument("--limit", type=int, default=500, help="questions for them (default: 500)")
    given = parser.parse_args()
    everyone: list[Found] = []
    for place in given.places:
        everyone += greedy_answers(place, given.split, given.limit)
    print("\n\n".join(table(group, everyone) for group in CLASSES))


if __name__ == "__main__":
    run_main(main)
