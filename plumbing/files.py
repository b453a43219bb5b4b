"""JSON and JSON lines; files that are replaced as a whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from plumbing.errors import UserError


def read_json(path: Path) -> dict:
    """The object in a JSON file; UserError if something else is there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def as_json(content: Any) -> str:
    """The form of JSON in the files of a run."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_jsonl(records: Iterable[dict]) -> str:
    """One line of JSON for each record."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_jsonl(path: Path, *keys: str) -> list[dict]:
    """
    The records of a JSONL file, [] if there is no file. UserError for a line that is no object with these keys.

    A line counts only when its line end is written. So half a line that a crash left at the end is ignored.
    """
    if not path.exists():
        return []
    records = []
    complete_lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(complete_lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not set(keys) <= record.keys():
            raise UserError(f"{path}: line {number} is damaged (delete that line, or start again with --overwrite)")
        records.append(record)
    return records


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """
    An open file that replaces `path` at the end of the `with` block. Whatever happens, `path` is the whole old file or
    the whole new one: the new one is written beside it, forced to disk and renamed. An error, for example OSError on a
    full disk, leaves the old file as it was.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a folder that has become read-only
            new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # the error of a full disk names no file
        raise


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Replaces a file as a whole or not at all; OSError if the disk is full or the folder read-only."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
