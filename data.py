"""
What the task is, and how an answer is scored. Read from top to bottom:

1. `Example`       one question with its context, its gold answers and the sentences that support them
2. `load`          TinyWiki, HotpotQA, 2WikiMultihopQA, MuSiQue, StrategyQA, your own JSONL: all become `Example`s
3. `fit_context`   a context too long for the model loses whole sentences from its end, never the question
4. the metrics     exact match, token F1 and answer inclusion, by the rules of the official scripts

Whatever a user can get wrong (a path, a record, a split) is a `UserError`: one sentence.
"""

import bisect
import hashlib
import json
import re
import string
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbing.downloads import OFFICIAL, download
from plumbing.errors import UserError, shown
from plumbing.processes import gather, rank_and_size

# ---- 1. Example ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paragraph:
    title: str  # "" in own data that comes as plain text
    sentences: tuple[str, ...]  # as in the file: a blank sentence stays, because supporting facts count it


@dataclass(frozen=True)
class Example:
    """One question of the task. Immutable, so every method of a comparison sees the same example."""

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

CONTEXT_FORMS = "a string, a list of strings, or a list of [title, [sentence, ...]] or of MuSiQue's paragraphs"
DATA_FORMS = "'tiny', 'hotpotqa', '2wiki', a .json file in the form of HotpotQA, or a .jsonl file of your own"


def load(
    name_or_path: str | Path, split: str = "test", limit: int | None = None, context: str = "gold"
) -> list[Example]:
    """
    The examples of one split, in the order of their source.

    `name_or_path` is "tiny" (the embedded TinyWiki), "hotpotqa" (Yang et al., 2018, distractor setting) or "2wiki"
    (2WikiMultihopQA, Ho et al., 2020), whose official files are downloaded once into the folder LMCOT_DATA (default:
    ~/.cache/lmcot), or your file: a `.json` list of records, or a `.jsonl` file with one on each line. A record is
    - as in HotpotQA and 2WikiMultihopQA;
    - as in MuSiQue-Ans (Trivedi et al., 2022; an unanswerable question is an error): the supporting facts are all
      sentences of the supporting paragraphs, in the order of the question's decomposition;
    - as in StrategyQA (Geva et al., 2021): its `facts` are the context, all supporting, and the answer is yes or no;
    - your own: question, context (a string, or a list of strings: its paragraphs), answer; optional id, aliases, type.

    `split`: the answers of the official test files are hidden, so the official dev file is the test set, and "test" is
    the whole of any file. For a training file, "dev" is a fixed hold-out of about a tenth and "train" is the rest.
    `limit` takes the first so many. `context`: "gold" keeps the paragraphs that hold a supporting fact (all of them
    where a record names none), "all" keeps every paragraph.

    Raises UserError for an unknown name, split or context, a failed download, and anything wrong in the records read:
    it names the file, the record (counted from 0; a line from 1), its id and the field. But a faulty record of a
    downloaded file, which nobody can mend, is left out, and a line on stderr says so.
    """
    name = str(name_or_path)
    splits = ("train", "dev", "test", "ood") if name == "tiny" else ("train", "dev", "test")
    if split not in splits:
        raise UserError(f"{name}: there is no split '{split}' (expected one of {', '.join(splits)})")
    if context not in ("gold", "all"):
        raise UserError(f"{name}: there is no context '{context}' (expected gold or all)")
    if limit is not None and limit < 1:
        raise UserError(f"{name}: limit is {limit} (expected at least 1, or none for all examples)")

    if name == "tiny":
        from tiny import world  # here, because a reader of files needs no TinyWiki

        size = min(limit or world.SIZES[split], world.SIZES[split])
        places = [(f"tiny {split}: record {i}", record) for i, record in enumerate(world.records(split, size=size))]
    else:
        places = _official(name, "dev" if split == "test" else "train") if name in OFFICIAL else _read_file(Path(name))
    examples: list[Example] = []
    place_of_id: dict[str, str] = {}
    faults: list[UserError] = []
    for place, record in places:
        try:
            example = _example(place, record, context)
            if example.id in place_of_id:
                raise UserError(f"{place} (id {example.id}): the id is taken already, by {place_of_id[example.id]}")
        except UserError as fault:
            faults.append(fault)
            if name not in OFFICIAL or len(faults) == len(places):
                raise faults[0] from None
            continue
        place_of_id[example.id] = place
        if name == "tiny" or split == "test" or held_out(example.id) == (split == "dev"):
            examples.append(example)
        if len(examples) == limit:
            break
    if faults:
        print(f"{name}: {len(faults)} faulty records left out, the first is {faults[0]}", file=sys.stderr)
    return examples


def held_out(example_id: str) -> bool:
    """
    Whether a training record belongs to the hold-out "dev". A hash of its id decides (sha256: Python's own hash of a
    string changes from run to run), so neither order nor `limit` nor a seed can move a record across the border.
    """
    return int(hashlib.sha256(example_id.encode()).hexdigest(), 16) % 10 == 0


def split_sentences(text: str) -> tuple[str, ...]:
    """
    Plain text → sentences, cut after . ! ? and at line breaks. "Dr. Who" is cut as well, which does no harm:
    the pieces are joined by a space again, and the cuts only say where an over-long context may end.
    """
    return tuple(s for part in re.split(r"(?<=[.!?])\s+|\n", text) if (s := part.strip()))


def _read_file(path: Path) -> list[tuple[str, Any]]:
    """The records of a user's file, each with its place."""
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        problem = "its name ends in neither .json nor .jsonl" if path.is_file() else "there is no such file"
        raise UserError(f"{path}: {'this is a folder' if path.is_dir() else problem} (expected {DATA_FORMS})")
    return _records(path, path.read_bytes())


def _records(path: Path, raw: bytes) -> list[tuple[str, Any]]:
    try:
        text = raw.decode("utf-8-sig")  # a byte order mark, which Windows' editors write, is read over
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text (save the file as UTF-8)") from None
    if not text or text.isspace():
        raise UserError(f"{path}: the file is empty (expected at least one record)")

    if path.suffix == ".jsonl":
        # Not str.splitlines: it also cuts at characters such as U+2028, which may stand inside a JSON string.
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return [(f"{path}: line {n}", _parse(path, line, n)) for n, line in lines]
    records = _parse(path, text)
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: the top level is {shown(records)} (expected a list of at least one record)")
    return [(f"{path}: record {i}", record) for i, record in enumerate(records)]


def _parse(path: Path, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}: line {line} is not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError):
        problem = "a number has thousands of digits, or lists are nested too deeply"
        raise UserError(f"{path}: from line {first_line} on, {problem}") from None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _field(place: str, record: dict, name: str, is_good: Callable[[Any], bool], expected: str) -> Any:
    """The value of a required field after its check."""
    if name not in record:
        raise UserError(f"{place}: field '{name}' is missing (expected {expected})")
    if not is_good(record[name]):
        raise UserError(f"{place}: field '{name}' is {shown(record[name])} (expected {expected})")
    return record[name]


def _is_musique(record: dict) -> bool:
    return "paragraphs" in record and "context" not in record


def _example(place: str, record: Any, context: str) -> Example:
    """One record of any form → Example, or UserError."""
    if not isinstance(record, dict):
        raise UserError(f"{place}: this is {shown(record)} (expected an object with question, context and answer)")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{place}: lists or objects are nested too deeply") from None
    except UnicodeEncodeError:
        raise UserError(f"{place}: a text holds half a character, \\ud800 to \\udfff (mend or delete it)") from None
    if "facts" in record and "context" not in record:  # StrategyQA, whose facts often lack their full stop
        facts = _field(place, record, "facts", _is_texts, "a list of non-empty strings")
        facts = [fact.strip() + "." * (fact.strip()[-1] not in ".!?") for fact in facts]
        record = {"id": record.get("qid"), **record, "context": [["", facts]]}
        record["supporting_facts"] = [["", i] for i in range(len(facts))]
        if isinstance(record.get("answer"), bool):
            record["answer"] = "yes" if record["answer"] else "no"
    if record.get("answerable") is False:
        raise UserError(f"{place}: the question has no answer in its paragraphs (take MuSiQue-Ans, not MuSiQue-Full)")
    id_name = "_id" if "_id" in record else "id"
    if id_name in record:
        record_id = str(_field(place, record, id_name, lambda v: _is_text(v) or type(v) is int, "a non-empty string"))
        place = f"{place} (id {record_id})"
    else:  # the content names the record, so that a change of order does not move it to the other split
        content = json.dumps([record.get("question"), record.get("context")])
        record_id = hashlib.sha256(content.encode()).hexdigest()[:16]

    question = _field(place, record, "question", _is_text, "a non-empty string")
    answer = _field(place, record, "answer", _is_text, "a non-empty string")
    aliases: dict[str, None] = {}  # as a set, but in order
    for name in ("answer_aliases", "aliases"):
        given = _field(place, {name: [], **record}, name, _is_texts, "a list of non-empty strings")
        aliases |= dict.fromkeys(alias for alias in given if alias != answer)
    kind = _field(place, {"type": "", **record}, "type", lambda v: isinstance(v, str), "a string")

    paragraphs = _paragraphs(place, record)
    facts = _supporting_facts(place, record, paragraphs)
    if context == "gold" and facts:  # keep the paragraphs that hold a fact, and renumber the facts accordingly
        kept = sorted({p for p, _ in facts})
        paragraphs = [paragraphs[p] for p in kept]
        facts = [(kept.index(p), s) for p, s in facts]
    facts = [(p, s) for p, s in facts if s < len(paragraphs[p].sentences)]  # official training files have others, too
    return Example(record_id, question, tuple(paragraphs), answer, tuple(aliases), tuple(facts), kind)


def _paragraphs(place: str, record: dict) -> list[Paragraph]:
    name = "paragraphs" if _is_musique(record) else "context"
    context = _field(place, record, name, lambda v: isinstance(v, str | list), CONTEXT_FORMS)
    paragraphs = []
    for item in [context] if isinstance(context, str) else context:
        match item:
            case str():
                paragraphs.append(Paragraph("", split_sentences(item)))
            case [str(title), list(sentences)] if all(isinstance(s, str) for s in sentences):
                paragraphs.append(Paragraph(title, tuple(sentences)))
            case {"title": str(title), "paragraph_text": str(text), "is_supporting": bool()}:
                paragraphs.append(Paragraph(title, split_sentences(text)))
            case _:
                raise UserError(f"{place}: field '{name}' holds {shown(item)} (expected {CONTEXT_FORMS})")
    return paragraphs


def _supporting_facts(place: str, record: dict, paragraphs: list[Paragraph]) -> list[tuple[int, int]]:
    """
    [[title, sentence index], ...] → [(paragraph, sentence), ...]. Two paragraphs of a context may share their title
    (2WikiMultihopQA has such records): the fact then belongs to the first of them that has a sentence of that index,
    or to the first, if it is beyond the end of all. For MuSiQue see `load`.
    """
    if _is_musique(record):
        steps = _field(place, {"question_decomposition": [], **record}, "question_decomposition",
                       lambda v: isinstance(v, list) and all(isinstance(step, dict) for step in v), "a list of objects")
        gold = [p for p, item in enumerate(record["paragraphs"]) if isinstance(item, dict) and item["is_supporting"]]
        gold.sort(key=([step.get("paragraph_support_idx") for step in steps] + gold).index)
        return [(p, s) for p in gold for s in range(len(paragraphs[p].sentences))]
    given, facts = {"supporting_facts": [], **record}, []
    for fact in _field(place, given, "supporting_facts", lambda v: isinstance(v, list), "a list of [title, index]"):
        match fact:
            case [str(title), index] if type(index) is int and index >= 0:
                titled = [p for p, paragraph in enumerate(paragraphs) if paragraph.title == title]
                problem = "" if titled else "no paragraph of the context has that title"
            case _:
                problem = "expected [title, index]"
        if problem:
            raise UserError(f"{place}: field 'supporting_facts' holds {shown(fact)} ({problem})")
        facts.append((next((p for p in titled if index < len(paragraphs[p].sentences)), titled[0]), index))
    return facts


# ---- 3. Contexts that are too long -----------------------------------------------------------------------------------


def fit_context(
    example: Example, prompt_of: Callable[..., str], count_tokens: Callable[[str], int], max_tokens: int
) -> tuple[str, bool]:
    """
    (context, whether it was cut), such that the prompt built around the context has at most `max_tokens` tokens.

    A tokenizer's own truncation would cut the end of the prompt, where the question's cue stands. Here the context
    alone loses whole sentences, from its end. `prompt_of(context=…)` puts a context into the prompt, `count_tokens` is
    its length for the model. Where even an empty context is too long, the result is ("", True).
    """
    prompt = prompt_of(context=example.context)
    # A token has at least one byte, so most prompts need no counting.
    if len(prompt.encode(errors="replace")) < max_tokens or count_tokens(prompt) <= max_tokens:
        return example.context, False
    sentences = example.sentences

    def tokens_with(n: int) -> int:
        return count_tokens(prompt_of(context=" ".join(sentences[:n])))

    # Binary search over the shorter contexts: a tokenizer call per halving, not per sentence.
    fitting = bisect.bisect_right(range(len(sentences)), max_tokens, key=tokens_with)
    return " ".join(sentences[: max(0, fitting - 1)]), True


# ---- 4. Metrics ------------------------------------------------------------------------------------------------------

# Normalisation, exact match and F1 follow hotpot_evaluate_v1.py, as 2WikiMultihopQA's own script does. `answer` is one
# gold answer or several (`example.answers`): the best score counts. A score lies between 0.0 and 1.0.


def normalize_answer(text: str) -> str:
    """Lower case, then no punctuation, then no articles, then single spaces: the order matters ("A.N." → "an" → "")."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _best(score: Callable[[str, str], float], prediction: str, answer: str | Sequence[str]) -> float:
    answers = [answer] if isinstance(answer, str) else answer
    return max(float(score(normalize_answer(prediction), normalize_answer(gold))) for gold in answers)


def exact_match(prediction: str, answer: str | Sequence[str]) -> float:
    """1.0 when prediction and answer are the same after normalisation."""
    return _best(lambda predicted, gold: predicted == gold, prediction, answer)


def token_f1(prediction: str, answer: str | Sequence[str]) -> float:
    """
    Harmonic mean of precision and recall over the multisets of normalised tokens. Yes, no and noanswer are right or
    wrong as a whole: "no, he did not" shares a token with "no" and still gets 0.
    """

    def score(predicted: str, gold: str) -> float:
        if predicted != gold and {predicted, gold} & {"yes", "no", "noanswer"}:
            return 0.0
        predicted_tokens, gold_tokens = predicted.split(), gold.split()
        common = (Counter(predicted_tokens) & Counter(gold_tokens)).total()
        if common == 0:
            return 0.0
        precision, recall = common / len(predicted_tokens), common / len(gold_tokens)
        return 2 * precision * recall / (precision + recall)

    return _best(score, prediction, answer)


def answer_inclusion(prediction: str, answer: str | Sequence[str]) -> float:
    """
    1.0 when the normalised answer's tokens stand in a row in the normalised prediction: "York" is in "New York City",
    "art" is not in "party". An answer that normalises to nothing is only in a prediction that does so too.
    """
    return _best(lambda predicted, gold: f" {gold} " in f" {predicted} " if gold else not predicted, prediction, answer)


# ---- 5. Official files -----------------------------------------------------------------------------------------------

def _official(name: str, part: str) -> list[tuple[str, Any]]:
    """The records of an official file, part "train" or "dev", each with its place for error messages."""
    url, size, sha256, count = OFFICIAL[name][part]
    if rank_and_size()[0] == 0:
        download(url, size, sha256)
    gather([])  # the other processes wait for the first one's download
    path = download(url, size, sha256)
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.namelist() if Path(member).name == f"{part}.json"]
                places = _records(path, archive.read(next(iter(members), f"{part}.json")))  # checks its CRC
        else:
            places = _records(path, path.read_bytes())
        if len(places) != count:
            raise UserError(f"it has {len(places):,} {part} records, and the official file has {count:,}")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, UserError) as error:
        fault = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path} is damaged ({fault}): delete it, and the same command downloads it anew") from None
    return places
