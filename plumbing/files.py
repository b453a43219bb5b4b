"""Files that are whole or absent: JSON, JSON lines, atomic writing, locks."""

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from plumbing.errors import UserError


def read_json(path: Path) -> dict:
    """The object in a JSON file. UserError where there is none, or where an object has a key twice."""

    def each_once(pairs: list[tuple]) -> dict:
        if len(content := dict(pairs)) < len(pairs):
            raise ValueError("an object has a key twice")
        return content

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({e})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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


def take_lock(file: IO) -> bool:
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
