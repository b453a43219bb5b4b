"""
What the task is, and how an answer is scored. Read from top to bottom:

1. `Example`      one question with its context, its gold answers and the sentences that support them
2. `load`         a data set or your own file → `Example`s; its docstring lists the forms of records
3. the forms      one small function for each: HotpotQA and your own, MuSiQue, StrategyQA
4. `fit_context`  a context that is too long for the model loses whole sentences from its end
5. the metrics    exact match, token F1 and answer inclusion, by the rules of the official scripts
"""

import hashlib
import json
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbing.downloads import OFFICIAL
from plumbing.errors import UserError, shown
from plumbing.records import check_text, check_texts, read_records, record_fault, record_id

# ---- 1. Example ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paragraph:
    title: str  # "" in own data, which is plain text
    sentences: tuple[str, ...]  # as in the file: a blank sentence stays, because supporting facts count it


@dataclass(frozen=True)
class Example:
    """One question of the task. It cannot be changed, so every method of a comparison sees the same example."""

    id: str
    question: str
    paragraphs: tuple[Paragraph, ...]
    answer: str
    aliases: tuple[str, ...] = ()  # other gold answers; a score takes the best over all of them
    supporting_facts: tuple[tuple[int, int], ...] = ()  # (paragraph, sentence), positions in `paragraphs`
    type: str = ""  # "bridge", "comparison", ...: for tables by question type

    @property
    def sentences(self) -> list[str]:
        """All sentences in reading order, stripped, without the blank ones."""
        return [s.strip() for paragraph in self.paragraphs for s in paragraph.sentences if s.strip()]

    @property
    def context(self) -> str:
        """What the models read: plain text without titles."""
        return " ".join(self.sentences)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every gold answer, the main one first."""
        return (self.answer, *self.aliases)

    @property
    def supporting_sentences(self) -> list[str]:
        """The gold sentences, stripped, in the order in which the record names them."""
        return [self.paragraphs[p].sentences[s].strip() for p, s in self.supporting_facts]


# ---- 2. Loading ------------------------------------------------------------------------------------------------------


def load(
    name_or_path: str | Path, split: str = "test", limit: int | None = None, context: str = "gold"
) -> list[Example]:
    """The examples of one split, in the order of their source; with a `limit` the first so many.

    `name_or_path` is "tiny" (the embedded TinyWiki), "hotpotqa" (Yang et al., 2018, distractor setting) or "2wiki"
    (2WikiMultihopQA, Ho et al., 2020), whose official files are downloaded once into the folder LMCOT_DATA (default:
    ~/.cache/lmcot), or your file: a `.json` list of records, or a `.jsonl` file with one record on each line.

    FORM OF RECORD      FIELDS (the id and `type` may be missing; `aliases` may list other right answers)
    HotpotQA, TinyWiki  _id, question, answer, type, context [[title, [sentence, ...]], ...],
    2WikiMultihopQA         supporting_facts [[title, number of the sentence from 0], ...]
    HotpotQA            id, question, answer, type, context {title: [...], sentences: [[...], ...]},
    as on the hub           supporting_facts {title: [...], sent_id: [...]}
    MuSiQue-Ans         id, question, answer, answer_aliases, paragraphs [{title, paragraph_text, is_supporting}, ...],
                            question_decomposition [{paragraph_support_idx}, ...]
    StrategyQA          qid, question, answer (true or false), facts [sentence, ...]
    your own            question, answer, context (a text, or a list of texts: its paragraphs)

    `split`: the answers of the official test files are hidden, so the official dev file is the test set, and "test" is
    the whole of any file. Of a training file, "dev" is a fixed hold-out of about a tenth and "train" is the rest.
    TinyWiki also has "ood". `context`: "gold" keeps the paragraphs that hold a supporting fact, or all where a record
    names none; "all" keeps all. UserError names the file, the record (counted from 0; a line from 1), its id and its
    fault. Only faulty records of the official files, which nobody can mend, are left out, and stderr says so."""
    name = str(name_or_path)
    splits = ("train", "dev", "test", "ood") if name == "tiny" else ("train", "dev", "test")
    if split not in splits:
        raise UserError(f"{name}: there is no split '{split}' (expected one of {', '.join(splits)})")
    if context not in ("gold", "all"):
        raise UserError(f"{name}: there is no context '{context}' (expected gold or all)")

    if name == "tiny":
        from tiny import world  # here, because a reader of files needs no TinyWiki
        size = min(limit or world.SIZES[split], world.SIZES[split])
        records = [("tiny", record) for record in world.records(split, size=size)]
    else:
        records = read_records(name, "dev" if split == "test" else "train")

    examples: list[Example] = []
    place_of_id: dict[str, str] = {}
    faults: list[UserError] = []
    for place, record in records:
        try:
            example = _example(record, context)
            if example.id in place_of_id:
                raise ValueError(f"the id is taken already, by {place_of_id[example.id]}")
        except (KeyError, TypeError, IndexError, ValueError, RecursionError) as error:
            faults.append(record_fault(place, record, error))
            if name not in OFFICIAL:
                raise faults[0] from None
            continue
        place_of_id[example.id] = place
        if name == "tiny" or split == "test" or held_out(example.id) == (split == "dev"):
            examples.append(example)
        if len(examples) == limit:
            break

    if faults and not place_of_id:  # not one good record
        raise faults[0]
    if not examples:
        raise UserError(f"{name}: the split '{split}' has no records (few records may all be in the other)")
    if faults:
        print(f"{name}: {len(faults)} faulty records left out, the first is {faults[0]}", file=sys.stderr)
    return examples


def held_out(example_id: str) -> bool:
    """Whether a training record belongs to the hold-out "dev": a hash of its id decides, so that neither order nor
    `limit` nor a seed can move a record to the other split. (Python's own hash of a string changes from run to run.)"""
    return int(hashlib.sha256(example_id.encode()).hexdigest(), 16) % 10 == 0


# ---- 3. The forms of records -----------------------------------------------------------------------------------------


def _example(record: dict, context: str) -> Example:
    """One record of any form → Example. What a record lacks or has in a wrong shape raises KeyError, TypeError,
    IndexError or ValueError; check_text and check_texts see to what Python itself would let pass."""
    json.dumps(record, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError, for half a character (\ud800 …)
    question, answer = check_text(record["question"], "question"), record["answer"]
    if "paragraphs" in record and "context" not in record:
        paragraphs, facts = _musique(record)
    elif "facts" in record and "context" not in record:
        paragraphs, facts = _strategyqa(record)
        if isinstance(answer, bool):
            answer = "yes" if answer else "no"
    else:
        paragraphs, facts = _hotpotqa_or_own(record)
    check_text(answer, "answer")

    aliases = check_texts(record.get("answer_aliases", []) + record.get("aliases", []), "aliases")
    aliases = dict.fromkeys(check_text(alias, "aliases") for alias in aliases if alias != answer)  # once each, in order
    kept = list(range(len(paragraphs)))
    if context == "gold" and facts:
        kept = sorted({p for p, _ in facts})  # the paragraphs that hold a fact
    # Facts get the new numbers. Official training files also name sentences beyond a paragraph's end: those facts go.
    facts = [(kept.index(p), s) for p, s in facts if s < len(paragraphs[p].sentences)]
    paragraphs = [paragraphs[p] for p in kept]

    kind = str(record.get("type", ""))
    return Example(record_id(record), question, tuple(paragraphs), answer, tuple(aliases), tuple(facts), kind)


def _hotpotqa_or_own(record: dict) -> tuple[list[Paragraph], list[tuple[int, int]]]:
    """HotpotQA, 2WikiMultihopQA and TinyWiki; your own data, whose paragraphs are plain text without a title."""
    context, given = record["context"], record.get("supporting_facts", [])
    if isinstance(context, dict):  # as on the hub: columns → rows
        context = zip(context["title"], context["sentences"], strict=True)
    if isinstance(given, dict):
        given = zip(given["title"], given["sent_id"], strict=True)

    paragraphs = []
    for item in [context] if isinstance(context, str) else context:
        if isinstance(item, str):
            paragraphs.append(Paragraph("", split_sentences(item)))
        else:
            title, sentences = item
            paragraphs.append(Paragraph(str(title), tuple(check_texts(sentences, "context"))))

    facts = []
    for title, sentence in given:
        titled = [p for p, paragraph in enumerate(paragraphs) if paragraph.title == str(title)]
        if not titled:
            raise ValueError(f"the context lacks the title {shown(title)} (of HotpotQA, take the distractor file)")
        if not isinstance(sentence, int) or sentence < 0:
            raise ValueError(f"supporting fact {shown([title, sentence])} names no sentence (they count from 0)")
        # Paragraphs of 2WikiMultihopQA may share a title: the first of them that has this sentence is meant.
        long_enough = [p for p in titled if sentence < len(paragraphs[p].sentences)]
        facts.append(((long_enough or titled)[0], sentence))
    return paragraphs, facts


def _musique(record: dict) -> tuple[list[Paragraph], list[tuple[int, int]]]:
    """MuSiQue-Ans (Trivedi et al., 2022): all sentences of the supporting paragraphs are facts."""
    if record.get("answerable") is False:
        raise ValueError("the question has no answer in its paragraphs (take MuSiQue-Ans, not MuSiQue-Full)")
    paragraphs, supporting = [], []
    for number, paragraph in enumerate(record["paragraphs"]):
        paragraphs.append(Paragraph(str(paragraph["title"]), split_sentences(paragraph["paragraph_text"])))
        if paragraph["is_supporting"]:
            supporting.append(number)

    # The facts stand in the order of the question's steps; those that no step names come last.
    named = [step["paragraph_support_idx"] for step in record.get("question_decomposition", [])]
    facts = []
    for p in dict.fromkeys(named + supporting):
        if p in supporting:
            for s in range(len(paragraphs[p].sentences)):
                facts.append((p, s))
    return paragraphs, facts


def _strategyqa(record: dict) -> tuple[list[Paragraph], list[tuple[int, int]]]:
    """StrategyQA (Geva et al., 2021): its facts, which often lack their full stop, are the context; all are gold."""
    sentences, facts = [], []
    for fact in check_texts(record["facts"], "facts"):
        sentence = check_text(fact, "facts").strip()
        facts.append((0, len(sentences)))
        sentences.append(sentence if sentence[-1] in ".!?" else sentence + ".")
    return [Paragraph("", tuple(sentences))], facts


def split_sentences(text: str) -> tuple[str, ...]:
    """Plain text → sentences, cut after . ! ? and at line breaks. "Dr. Who" is cut as well, which does no harm: the
    pieces are joined by a space again, and the cuts only say where a context that is too long may end."""
    pieces = re.split(r"(?<=[.!?])\s+|\n", text)
    return tuple(piece.strip() for piece in pieces if piece.strip())


# ---- 4. Contexts that are too long -----------------------------------------------------------------------------------


def fit_context(
    example: Example, prompt_of: Callable[..., str], count_tokens: Callable[[str], int], max_tokens: int
) -> tuple[str, bool]:
    """(context, whether it was cut), such that the prompt built around the context has at most `max_tokens` tokens.

    A tokenizer's own truncation would cut the end of the prompt, where "Answer:" stands. Here the context alone loses
    whole sentences, from its end. Where even an empty context is too long, the result is ("", True)."""
    prompt = prompt_of(context=example.context)
    if len(prompt.encode()) < max_tokens or count_tokens(prompt) <= max_tokens:  # a token has a byte; and EOS
        return example.context, False

    # Binary search for the number of sentences: the tokenizer is asked once per halving, not once per sentence.
    sentences = example.sentences
    fits, too_many = 0, len(sentences)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if count_tokens(prompt_of(context=" ".join(sentences[:middle]))) <= max_tokens:
            fits = middle
        else:
            too_many = middle
    return " ".join(sentences[:fits]), True


# ---- 5. Metrics ------------------------------------------------------------------------------------------------------
# Normalisation, exact match and F1 follow hotpot_evaluate_v1.py, as 2WikiMultihopQA's own script does. `answer` is one
# gold answer or several (`example.answers`): the best score counts. A score lies between 0.0 and 1.0.

def normalize_answer(text: str) -> str:
    """Lower case, then no punctuation, then no articles, then single spaces: the order matters ("A.N." → "an" → "")."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _gold_answers(answer: str | Sequence[str]) -> list[str]:
    answers = [answer] if isinstance(answer, str) else answer
    return list(map(normalize_answer, answers))


def exact_match(prediction: str, answer: str | Sequence[str]) -> float:
    """1.0 when prediction and answer are the same after normalisation."""
    return float(normalize_answer(prediction) in _gold_answers(answer))


def token_f1(prediction: str, answer: str | Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the multisets of normalised tokens. Yes, no and noanswer are right or
    wrong as a whole: "no, he did not" shares a token with "no" and still gets 0."""
    predicted = normalize_answer(prediction)
    best = 0.0
    for gold in _gold_answers(answer):
        if predicted != gold and {predicted, gold} & {"yes", "no", "noanswer"}:
            continue
        predicted_tokens, gold_tokens = predicted.split(), gold.split()
        common = (Counter(predicted_tokens) & Counter(gold_tokens)).total()
        if common > 0:
            precision, recall = common / len(predicted_tokens), common / len(gold_tokens)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def answer_inclusion(prediction: str, answer: str | Sequence[str]) -> float:
    """1.0 when the normalised answer's tokens stand in a row in the normalised prediction: "York" is in "New York
    City", "art" is not in "party". An answer that normalises to nothing is only in a prediction that does so too."""
    predicted = normalize_answer(prediction)
    for gold in _gold_answers(answer):
        if gold == predicted or (gold and f" {gold} " in f" {predicted} "):
            return 1.0
    return 0.0
