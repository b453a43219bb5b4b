"""JSON and JSON lines; a file is replaced as a whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plumbing.errors import UserError


def parse_json(text: str | bytes, place: str) -> Any:
    """What a JSON text holds; UserError with its place if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    """The object in a JSON file; UserError if something else is there."""
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def read_jsonl(path: Path, *keys: str) -> list[dict]:
    """
    The records of a JSONL file, [] if there is no file. UserError for a line that is no object with these keys.

    A line counts only when its line end is written. So half a line that a crash left at the end is ignored.
    """
    records = []
    complete_lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(complete_lines, start=1):
        place = f"{path}: line {number}"
        record = parse_json(line, place)
        if not isinstance(record, dict) or not set(keys) <= record.keys():
            raise UserError(f"{place} is damaged (delete that line, or start again with --overwrite)")
        records.append(record)
    return records


def as_json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_jsonl(records: Iterable[dict]) -> str:
    """One line of JSON for each record."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_json(path: Path, content: dict) -> None:
    path.write_text(as_json(content), encoding="utf-8")


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """
    Replaces a file. Whatever happens, `path` is the whole old file or the whole new one: the new one is written beside
    it, forced to disk and renamed. OSError, for example on a full disk, leaves the old file as it was.
    """
    new = Path(path).with_name(f".{Path(path).name}.new")
    try:
        with open(new, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        error.filename = str(path)  # the error of a full disk names no file
        raise
