"""
What the task is, how an answer is scored, and what a run leaves behind. Read from top to bottom:

1. `Example`       one question with its context, its gold answers and the sentences that support them
2. `load`          TinyWiki, HotpotQA, 2WikiMultihopQA, MuSiQue, StrategyQA, your own JSONL: all become `Example`s
3. `fit_context`   a context too long for the model loses whole sentences from its end, never the question
4. the metrics     exact match, token F1 and answer inclusion, by the rules of the official scripts
5. the run folder  settings from the command line, JSONL logs, atomic files, one writer at a time
6. processes       what torchrun's processes share out, put together again and add up
7. downloads       the official files, fetched once

Whatever a user can get wrong (a path, a record, a flag, a folder) is a `UserError`: one sentence, shown by `run_main`.
"""

import argparse
import bisect
import contextlib
import dataclasses
import errno
import functools
import hashlib
import inspect
import itertools
import json
import os
import re
import shutil
import string
import sys
import time
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

import torch
import torch.distributed
from tqdm import tqdm

from model import UserError, read_json

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
        raise UserError(f"{path}: the top level is {_shown(records)} (expected a list of at least one record)")
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


def _shown(value: Any) -> str:
    """A value as it stands in the file, short enough for a sentence."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 60 else text[:60] + "…"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _field(place: str, record: dict, name: str, is_good: Callable[[Any], bool], expected: str) -> Any:
    """The value of a required field after its check."""
    if name not in record:
        raise UserError(f"{place}: field '{name}' is missing (expected {expected})")
    if not is_good(record[name]):
        raise UserError(f"{place}: field '{name}' is {_shown(record[name])} (expected {expected})")
    return record[name]


def _is_musique(record: dict) -> bool:
    return "paragraphs" in record and "context" not in record


def _example(place: str, record: Any, context: str) -> Example:
    """One record of any form → Example, or UserError."""
    if not isinstance(record, dict):
        raise UserError(f"{place}: this is {_shown(record)} (expected an object with question, context and answer)")
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
                raise UserError(f"{place}: field '{name}' holds {_shown(item)} (expected {CONTEXT_FORMS})")
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
            raise UserError(f"{place}: field 'supporting_facts' holds {_shown(fact)} ({problem})")
        facts.append((next((p for p in titled if index < len(paragraphs[p].sentences)), titled[0]), index))
    return facts


# ---- 3. Contexts that are too long -----------------------------------------------------------------------------------


def fit_context(
    example: Example, prompt_of: Callable[[str], str], count_tokens: Callable[[str], int], max_tokens: int
) -> tuple[str, bool]:
    """
    (context, whether it was cut), such that the prompt built around the context has at most `max_tokens` tokens.

    A tokenizer's own truncation would cut the end of the prompt, where the question's cue stands. Here the context
    alone loses whole sentences, from its end. `prompt_of` puts a context into the prompt, `count_tokens` is its length
    for the model. Where even an empty context is too long, the result is ("", True), for the caller to report.
    """
    if count_tokens(prompt_of(example.context)) <= max_tokens:
        return example.context, False
    sentences = example.sentences

    def first(n: int) -> str:
        return " ".join(sentences[:n])

    # Binary search over the shorter contexts: a tokenizer call per halving, not per sentence.
    fitting = bisect.bisect_right(range(len(sentences)), max_tokens, key=lambda n: count_tokens(prompt_of(first(n))))
    return first(max(0, fitting - 1)), True


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


# ---- 5. The run folder -----------------------------------------------------------------------------------------------


def parse_settings(cls: type, doc: str | None, argv: Sequence[str] | None = None) -> Any:
    """
    Command line → an instance of the dataclass `cls`, whose fields are `name: type = default  # meaning`.

    A field becomes `--name`, with - for _ (a bool: `--name` and `--no-name`), and the comment behind it the help text,
    so that default and meaning are each written once. Types: str, int, float, bool. `doc`, the script's docstring,
    heads `--help`. An unknown flag, a wrong value (numbers are finite and at least 0), and a ValueError from the
    settings' own `check()`, if there is one, end the program with the usage and one sentence.
    """
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        with contextlib.suppress(OSError, TypeError):  # no source at hand: flags without their explanation
            comments.update(re.findall(r"^\s+(\w+)\s*:.*?\s#\s*(.+)$", inspect.getsource(base), flags=re.MULTILINE))

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw, allow_abbrev=False)
    for field in dataclasses.fields(cls):
        assert field.type in (str, int, float, bool), f"no flag can be made for {field.name}: {field.type}"
        meaning = f"{comments.get(field.name, '')} (default: {field.default})".strip().replace("%", "%%")
        form = {"metavar": field.type.__name__.upper(), "type": field.type}
        if field.type is bool:
            form = {"action": argparse.BooleanOptionalAction}
        # A flag that is not given stays out of the result (SUPPRESS), and the dataclass fills in its default.
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=meaning, **form)
    try:
        settings = cls(**vars(parser.parse_args(argv)))
        for name, value in vars(settings).items():
            if isinstance(value, int | float) and not 0 <= value < (2**53 if isinstance(value, int) else float("inf")):
                raise ValueError(f"--{name.replace('_', '-')} is {value} (expected a number of at least 0)")
        if hasattr(settings, "check"):
            settings.check()
    except ValueError as error:
        parser.error(str(error))
    return settings


def at_least_one(settings: Any, *names: str) -> None:
    """For a settings' `check()`: ValueError names the first of these settings that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")


def atomic_write(path: str | Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """
    The whole new file or the whole old one, whatever happens in between: write beside it, force it to disk, rename.
    `content` may be a function that writes into the open file.
    Raises OSError (no space, no permission); the old file is then untouched and no temporary file stays.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a folder that takes nothing gives nothing back either
            new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # a full disk names no file
        raise


def as_json(content: Any) -> str:
    """How the files of a run hold JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_jsonl(path: Path, *keys: str) -> list[dict]:
    """
    The records of a JSONL file, [] where there is none. A line counts once its line end is written, so what a crash
    left after the last one is ignored. Raises UserError for any other line that is no JSON object with these keys.
    """
    records: list[dict] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], start=1):
        with contextlib.suppress(ValueError, RecursionError):
            records.append(json.loads(line))
        if len(records) < number or not (isinstance(records[-1], dict) and records[-1].keys() >= set(keys)):
            raise UserError(f"{path}: line {number} is damaged (delete that line, or start again with --overwrite)")
    return records


class Run(contextlib.AbstractContextManager):
    """
    The folder of one run, for one process at a time: `with Run("runs/kd", settings) as run: ...`. Under torchrun the
    first process writes (`writes` is True), and the others read.

    `settings` is a dataclass instance and is saved as settings.json. A folder that has one already is continued if the
    settings agree, apart from those that the class attribute NOT_COMPARED names (where to compute, for example).
    `overwrite` empties the folder first, but only a folder that is evidently a run of this kind.
    Raises UserError when the folder belongs to another run, to something else, or to a process that is still running.
    """

    _lock_file = None

    def __init__(self, folder: str | Path, settings: Any, overwrite: bool = False):
        self.folder, self.writes = Path(folder), rank_and_size()[0] == 0
        if self.writes:
            self._prepare(settings, overwrite)
        gather([])  # the others wait until the folder is ready

    def _prepare(self, settings: Any, overwrite: bool) -> None:
        wanted = json.loads(json.dumps(dataclasses.asdict(settings)))  # as JSON gives it back: a tuple becomes a list
        saved = self._saved_settings(wanted)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            for left in [*self.folder.glob(".*.new"), *self.folder.glob("*/.saving-*")]:  # by a save that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            if saved and overwrite:
                if saved.keys() - wanted.keys():
                    what = "is a run of another script or version"
                    raise UserError(f"{self.folder} {what}: delete it, or use another --out")
                self._clear()
            elif saved:
                self._compare(saved, wanted, getattr(settings, "NOT_COMPARED", ()))
            if overwrite or not saved:
                atomic_write(self.path("settings.json"), as_json(wanted))
        except BaseException:
            self.close()
            raise

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: Any) -> None:
        """Replaces a file in one step. Text and bytes are written as they are, anything else as JSON."""
        if self.writes:
            atomic_write(self.path(name), content if isinstance(content, str | bytes) else as_json(content))
        gather([])  # the other processes may read it from here on

    def save(self, name: str, content: dict) -> None:
        """Replaces a file in one step by tensors, numbers and texts, for torch.load(…, weights_only=True)."""

        def write(file: BinaryIO) -> None:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # this is how torch reports a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

        if self.writes:
            atomic_write(self.path(name), write)
        gather([])

    def load(self, name: str, device: str | torch.device) -> dict:
        """What `save` wrote, or UserError."""
        try:
            return torch.load(self.path(name), map_location=device, weights_only=True)
        except Exception as error:  # of many kinds, whose texts explain how to run a pickle's code
            damaged = f"{self.path(name)} is damaged ({type(error).__name__}): start again with --overwrite"
            raise UserError(damaged) from None

    def rewrite(self, name: str, records: Iterable[dict]) -> None:
        """Replaces a JSONL file in one step."""
        self.write(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def append(self, name: str, *records: dict) -> None:
        """Adds lines to a JSONL file; a last line that a crash left without its end is removed first."""
        if not self.writes:
            return
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        with open(self.path(name), "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())  # before a state is saved that counts on them

    def read(self, name: str, *keys: str) -> list[dict]:
        """The records of a JSONL file of this run, [] where there is none; UserError for one without these keys."""
        return read_jsonl(self.path(name), *keys)

    def has_ended(self) -> bool:
        """Whether the run wrote its table, results.md; prints it, so that a finished command given again shows it."""
        table = self.path("results.md")
        if table.exists():
            print(f"{self.folder} has ended already (--overwrite starts anew):\n\n{table.read_text('utf-8')}")
        return table.exists()

    def uses(self, *seeds: Sequence[str]) -> None:
        """Keeps the SHA-256 of the M_S in these run folders, of which this run is made, in trained.json. Each argument
        is a role, with a folder for each seed. UserError where a folder that is kept there holds another M_S now, or
        where a new one has taken the place of such a folder's seed."""
        kept = read_json(self.path("trained.json")) if self.path("trained.json").exists() else {}
        now = {}
        for folders in seeds:
            known = [folder in kept for folder in folders]
            if known != sorted(known, reverse=True):
                raise UserError(f"{self.folder} was made before {folders[known.index(False)]} came between its seeds: "
                                "use --overwrite or another --out")  # fmt: skip
        for folder in dict.fromkeys([*kept, *itertools.chain(*seeds)]):
            weights = Path(folder) / "model" / "model.safetensors"
            now[folder] = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
            if folder in kept and kept[folder] != now[folder]:
                raise UserError(f"{self.folder} was made from an M_S that is no longer the one in {folder}: "
                                "use --overwrite or another --out")  # fmt: skip
        self.write("trained.json", now)

    def stop(self, what: str, batch: dict) -> NoReturn:
        """Ends a run whose numbers went wrong, before they reach its weights. All processes come here together."""
        self.save("bad_batch.pt", batch)
        raise UserError(f"{what} is not a finite number: its batch is in {self.path('bad_batch.pt')}, the weights "
                        "saved before stay; lower --lr, with --overwrite or another --out")  # fmt: skip

    def close(self) -> None:
        """Gives the folder free for other processes."""
        if self._lock_file:
            with contextlib.suppress(OSError):  # Windows deletes no open file: there it stays, and harms nobody
                self.path("lock").unlink()
            self._lock_file.close()
            self._lock_file = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _saved_settings(self, wanted: dict) -> dict | None:
        """The settings found in the folder; None if it is new or empty; UserError if it is somebody else's."""
        beginning = {"lock", ".settings.json.new"}  # all that a run killed in its first moments leaves
        if not self.folder.exists() or {entry.name for entry in self.folder.iterdir()} <= beginning:
            return None
        with contextlib.suppress(OSError, UserError):
            saved = read_json(self.path("settings.json"))
            if saved.keys() & wanted.keys():  # code editors have a settings.json, too
                return saved
        raise UserError(f"{self.folder} is not empty and has no settings.json of such a run: choose another --out")

    def _compare(self, saved: dict, wanted: dict, not_compared: Sequence[str]) -> None:
        different = []
        for name in [name for name in wanted | saved if name not in not_compared]:
            there, here = saved.get(name, "(absent)"), wanted.get(name, "(absent)")
            different += [f"{name} is {_shown(there)} there and {_shown(here)} here"] * (there != here)
        if different:
            raise UserError(f"{self.folder} holds a run with other settings ({'; '.join(different)}): "
                            "use --overwrite or another --out")  # fmt: skip

    def _clear(self) -> None:
        """Deletes all but the lock and settings.json. That marks a run, and is replaced in one step afterwards."""
        places = [Path.cwd(), Path(os.path.expanduser("~")).resolve()]
        places += [path.parent.resolve() for path in self.folder.glob("*/**/settings.json")]  # other runs inside
        for place in places:
            if place.is_relative_to(self.folder.resolve()):
                raise UserError(f"{self.folder} is not overwritten because {place} lies in it: choose another --out")
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in ("lock", "settings.json"):
                entry.unlink()

    def _lock(self) -> None:
        """Takes the operating system's lock on the file "lock". It ends with the process, however that ends, so that no
        lock is ever stale; the file itself may stay, and the number in it is for people."""
        lock = self.path("lock")
        while not self._lock_file:
            file = open(lock, "a+")  # noqa: SIM115 (as long as the run)
            if not _take(file):
                file.seek(0)
                pid = file.read()
                file.close()
                raise UserError(f"{self.folder} is in use by process {pid}: wait for it, or choose another --out")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):  # else its last holder has just deleted it
                    self._lock_file = file
        self._lock_file.truncate(0)
        self._lock_file.write(str(os.getpid()))
        self._lock_file.flush()


def _take(file: IO) -> bool:
    """Locks an open file for this process; False if another has it. A file system without locks grants everything."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # Windows lets nobody read what is locked: not the number at the beginning
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


# ---- 6. Processes ----------------------------------------------------------------------------------------------------

# Under torchrun each process runs the same script on its own device. All take the same steps on the same data; each
# computes its share, and what the shares give is gathered or added up, so that all know the same. The first one writes.


def join_processes() -> None:
    """Under torchrun, let the processes find each other; all but the first then print nothing and show no bars."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if rank_and_size()[0] > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
            tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)


def rank_and_size() -> tuple[int, int]:
    """This process's number, counted from 0, and how many there are; (0, 1) without torchrun."""
    is_alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return (0, 1) if is_alone else (torch.distributed.get_rank(), torch.distributed.get_world_size())


def share(items: Sequence) -> Sequence:
    """This process's part of the items: a run of neighbours, so that `gather` need only join the parts."""
    rank, size = rank_and_size()
    return items[len(items) * rank // size : len(items) * (rank + 1) // size]


def micro_batches(rows: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """This process's share of the rows in pieces of at most `size`, 0 for one piece; none where it has no share."""
    mine = share(rows)
    return mine.split(size or len(mine)) if len(mine) else ()


def gather(part: list) -> list:
    """The parts of all processes, joined in their order. No process goes on before all have come here."""
    parts = [part]
    if rank_and_size()[1] > 1:
        parts = [[] for _ in range(rank_and_size()[1])]
        torch.distributed.all_gather_object(parts, part)
    return [item for part in parts for item in part]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Each gradient becomes its sum over all processes; one that had no share of the batch adds 0."""
    for p in parameters if rank_and_size()[1] > 1 else ():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.distributed.all_reduce(p.grad)


def run_main(main: Callable[[], Any]) -> None:
    """
    Runs a script's `main`. A user's mistake or a failing disk or network (OSError) ends in one sentence and status 2,
    Ctrl-C in status 130. Any other exception is a bug of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ? in its place
    try:
        join_processes()
        main()
        if rank_and_size()[1] > 1:
            torch.distributed.destroy_process_group()
    except (KeyboardInterrupt, UserError, OSError) as error:
        for bar in list(tqdm._instances):  # the sentence gets a line of its own
            bar.close()
        if isinstance(error, KeyboardInterrupt):
            how = " without --overwrite" * ("--overwrite" in sys.argv)
            print(f"interrupted: run the same command again{how} to continue", file=sys.stderr)
            sys.exit(130)
        is_named = isinstance(error, OSError) and error.filename
        print(f"error: {error.filename}: {error.strerror}" if is_named else f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ---- 7. Downloads ----------------------------------------------------------------------------------------------------

# name → official file → (address, bytes, SHA-256, number of records). HotpotQA's address is plain http, as its README
# has it: whatever happens on the way, only the right bytes pass.
_HOTPOTQA = "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_"
_2WIKI = ("https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?dl=1", 258_968_175,
          "95df2bf56fdabe034e27aebc580e02264232203cf52552f9efe8a919e5529eef")  # fmt: skip
OFFICIAL = {
    "hotpotqa": {
        "train": (_HOTPOTQA + "train_v1.1.json", 566_426_227,
                  "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316", 90_447),
        "dev": (_HOTPOTQA + "dev_distractor_v1.json", 46_320_117,
                "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea", 7_405),
    },
    "2wiki": {"train": (*_2WIKI, 167_454), "dev": (*_2WIKI, 12_576)},
}  # fmt: skip


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


def download(url: str, size: int, sha256: str) -> Path:
    """
    The file of `size` bytes at `url`, downloaded into the folder LMCOT_DATA (~/.cache/lmcot) if it is not there.

    What has arrived stays in a .part file, and the next call goes on with it; of several processes one downloads.
    Raises UserError where the download fails; the sentence says where to put the file by hand.
    """
    folder = Path(os.environ.get("LMCOT_DATA") or "~/.cache/lmcot").expanduser()
    path = folder / url.split("?")[0].split("/")[-1]
    part = folder / f"{path.name}.part"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "ab") as file:
            while not _take(file):  # another process is downloading it
                time.sleep(0.5)
            if path.exists():
                return path
            here = part.stat().st_size
            if here < size:
                request = urllib.request.Request(url, headers={"Range": f"bytes={here}-"} if here else {})
                with urllib.request.urlopen(request, timeout=60) as response:  # seconds without a byte
                    if here and response.status != 206:  # 206: the rest, as asked for; 200: all of it
                        here = file.truncate(0)
                    if response.length not in (None, size - here):
                        raise OSError(f"the file there has {here + response.length:,} bytes instead of {size:,}")
                    with tqdm(desc=path.name, total=size, initial=here, unit="B", unit_scale=True) as bar:
                        while chunk := response.read1(min(1 << 20, size - here)):
                            here += file.write(chunk)
                            bar.update(len(chunk))
            if here < size:
                raise OSError(f"the connection was cut after {here:,} of {size:,} bytes")
            file.flush()
            with open(part, "rb") as whole:
                found = hashlib.file_digest(whole, "sha256").hexdigest()
            if found != sha256:
                file.truncate(0)
                raise OSError("what came is not the official file, for its SHA-256 differs")
        with contextlib.suppress(FileNotFoundError):  # another process, which had waited, was faster
            part.replace(path)
    except (OSError, HTTPException) as error:
        by_hand = f"or put {path.name} into {folder} by hand"
        raise UserError(f"{url}: {error}; run the same command again to go on, {by_hand}") from None
    return path
