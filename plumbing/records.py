"""Records as they stand in files (a list in a .json file, or one on each line of a .jsonl file), and their faults."""

import hashlib
import json
from pathlib import Path
from typing import Any

from plumbing.downloads import OFFICIAL, official_file
from plumbing.errors import UserError, shown
from plumbing.files import parse_json


def read_records(name: str, part: str) -> list[tuple[str, Any]]:
    """The records of a part ("train" or "dev") of an official data set, or of a file; each with its place for messages.

    UserError says what is wrong with the file, and where."""
    path = Path(name)
    if name in OFFICIAL:
        path, content = official_file(name, part)
    elif path.is_file() and path.suffix in (".json", ".jsonl"):
        content = path.read_bytes()
    else:
        known = ", ".join(["tiny", *OFFICIAL])
        raise UserError(f"{name}: there is no such file that ends in .json or .jsonl (or take one of {known})")

    records = []
    if path.suffix == ".jsonl":
        for number, line in enumerate(content.split(b"\n"), start=1):
            place = f"{path}: line {number}"
            if line.strip():
                records.append((place, parse_json(line, place)))
    else:
        listed = parse_json(content, str(path))
        if not isinstance(listed, list):
            raise UserError(f"{path}: the top level is {shown(listed)} (expected a list of records)")
        for number, record in enumerate(listed):
            records.append((f"{path}: record {number}", record))
    if not records:
        raise UserError(f"{path}: there are no records")
    return records


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
