"""Records as they stand in files (a list in a .json file, or one on each line of a .jsonl file), and their faults."""

import hashlib
import json
from pathlib import Path
from typing import Any

from plumbing.downloads import OFFICIAL, official_records
from plumbing.errors import UserError, shown


def read_records(name: str, part: str) -> list[tuple[str, Any]]:
    """The records of a part ("train" or "dev") of an official data set, or of a file; each with its place for messages.

    UserError says what is wrong with the file, and where."""
    if name in OFFICIAL:
        return official_records(name, part)
    path = Path(name)
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        known = ", ".join(["tiny", *OFFICIAL])
        raise UserError(f"{name}: there is no such file that ends in .json or .jsonl (or take one of {known})")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")  # without the byte order mark that editors on Windows write
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text (save the file as UTF-8)") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty (expected at least one record)")

    if path.suffix == ".jsonl":
        places = []
        # Not str.splitlines: it also cuts at characters such as U+2028, which may stand inside a JSON string.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                places.append((f"{path}: line {number}", _parse(path, line, number)))
        return places

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


def given_id(record: dict) -> Any:
    return record.get("_id", record.get("id", record.get("qid")))


def record_id(record: dict) -> str:
    """The id that a record brings along, or else a hash of its content: its place in the file does not count."""
    if given_id(record) is not None:
        return check_text(str(given_id(record)), "id")
    content = json.dumps([record.get("question"), record.get("context")])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def record_fault(place: str, record: Any, error: Exception) -> UserError:
    """What is wrong with a record, in one sentence with its place and its id."""
    problem = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
    if not isinstance(record, dict):
        problem = f"this is {shown(record)} (expected an object)"
    elif given_id(record) is not None:
        place = f"{place} (id {given_id(record)})"
    return UserError(f"{place}: {problem} (for the forms of records see `load` in data.py)")


def check_text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field '{field}' holds {shown(value)} (expected a text)")
    return value


def check_texts(values: Any, field: str) -> list[str]:
    """A list of strings. (A string in its place would fall apart into characters without an error.)"""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"field '{field}' holds {shown(values)} (expected a list of texts)")
    return values
