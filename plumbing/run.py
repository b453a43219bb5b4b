"""The folder of one run: its settings and files, for one program at a time."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

import torch
from filelock import FileLock, Timeout

from plumbing.errors import UserError, shown
from plumbing.files import as_json, as_jsonl, atomic_file, atomic_write, read_json, read_jsonl
from plumbing.processes import gather, rank_and_size

FIRST_FILES = {".lock", ".settings.json.new"}  # all that a run leaves if it is killed in its first moments
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # what a file system without locks answers


class Run:
    """
    The folder of one run: `with Run("runs/kd", settings) as run: ...`.

    `settings` is a dataclass instance; it is saved as settings.json. If the folder has that file already, the run goes
    on there, and the settings must agree. The class attribute NOT_COMPARED names settings that may differ (where to
    compute, for example). `overwrite` empties the folder first, but only if it holds a run of the same script.

    A lock keeps other programs out of the folder until the `with` block ends. Under torchrun the first process writes
    (`writes` is True there), and the others only read.

    Raises UserError if the folder belongs to another run, to something else, or to a program that is still running.
    """

    def __init__(self, folder: str | Path, settings: Any, overwrite: bool = False):
        self.folder = Path(folder)
        self.writes = rank_and_size()[0] == 0
        self._lock: FileLock | None = None
        if self.writes:
            self._prepare(settings, overwrite)
        gather([])  # the other processes wait until the folder is ready

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other programs use the folder."""
        if self._lock is not None:
            self._lock.release()

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether the first process sees this file or folder. So all processes go on in the same way."""
        return gather([self.path(name).exists()])[0]

    def write(self, name: str, content: Any) -> None:
        """Replaces a file in one step. Text and bytes are written as they are, anything else as JSON."""
        if not isinstance(content, str | bytes):
            content = as_json(content)
        if self.writes:
            atomic_write(self.path(name), content)
        gather([])  # from here on, the other processes may read it

    def rewrite(self, name: str, records: Iterable[dict]) -> None:
        """Replaces a JSONL file in one step."""
        self.write(name, as_jsonl(records))

    def append(self, name: str, *records: dict) -> None:
        """Adds lines to a JSONL file."""
        if not self.writes:
            return
        with open(self.path(name), "ab") as file:
            file.write(as_jsonl(records).encode())
            file.flush()
            os.fsync(file.fileno())  # on disk before a state is saved that counts on these lines

    def read(self, name: str, *keys: str) -> list[dict]:
        """The records of a JSONL file, [] if there is no file; UserError for a record without one of these keys."""
        return read_jsonl(self.path(name), *keys)

    def save(self, name: str, content: dict) -> None:
        """Replaces a file of tensors, numbers and texts in one step; `load` reads it."""
        if self.writes:
            with atomic_file(self.path(name)) as file:
                save_tensors(content, file)
        gather([])

    def load(self, name: str, device: str | torch.device) -> dict:
        """What `save` wrote, its tensors on this device. UserError if the file is damaged."""
        path = self.path(name)
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # of many kinds; their texts advise to run the code in the file
            raise UserError(f"{path} is damaged ({type(error).__name__}): start again with --overwrite") from None

    def save_state(self, numbers: dict, parts: dict[str, Any]) -> None:
        """Saves where training stands in state.pt: numbers, and the state_dict of each part (module, optimizer …)."""
        states = {name: part.state_dict() for name, part in parts.items()}
        self.save("state.pt", numbers | states)

    def load_state(self, parts: dict[str, Any], device: str | torch.device) -> dict:
        """Puts every part back to where `save_state` left it and returns the numbers; {} if nothing was saved."""
        if not self.has("state.pt"):
            return {}
        state = self.load("state.pt", device)
        for name, part in parts.items():
            part.load_state_dict(state.pop(name))
        return state

    def trim(self, name: str, key: str, last: int) -> list[dict]:
        """Keeps the records of a JSONL file whose `key` is at most `last`, and returns them: what was logged after the
        last saved state will be logged again."""
        kept = [record for record in self.read(name, key) if record[key] <= last]
        self.rewrite(name, kept)
        return kept

    def uses(self, files: dict[str, Path]) -> None:
        """
        Names the files that this run is made from; inputs.json keeps their SHA-256 (null: no such file). New names may
        come. UserError if a known one has another content now: old and new results do not belong together.
        """
        path = self.path("inputs.json")
        inputs = read_json(path) if path.exists() else {}
        for name, file in files.items():
            sha256 = None
            if file.is_file():
                with open(file, "rb") as opened:
                    sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            if name in inputs and inputs[name] != sha256:
                changed = f"{self.folder} was made from another {name} than {file} is now"
                raise UserError(f"{changed}: use --overwrite or another --out")
            inputs[name] = sha256
        self.write("inputs.json", inputs)

    def has_ended(self) -> bool:
        """Whether the run has written its table, results.md. If so, the table is printed."""
        if not self.has("results.md"):
            return False
        table = self.path("results.md").read_text("utf-8")
        print(f"{self.folder} has ended already (--overwrite starts anew):\n\n{table}")
        return True

    def stop(self, what: str, batch: dict) -> NoReturn:
        """Ends a run in which a number became infinite or NaN, before it reaches the weights; keeps the batch."""
        self.save("bad_batch.pt", batch)  # all processes come here together
        here = f"its batch is in {self.path('bad_batch.pt')}, the weights saved before stay"
        raise UserError(f"{what} is not a finite number: {here}; lower --lr, with --overwrite or another --out")

    def _prepare(self, settings: Any, overwrite: bool) -> None:
        """Locks the folder and makes it ready for a run with these settings."""
        wanted = json.loads(json.dumps(dataclasses.asdict(settings)))  # as JSON gives it back: a tuple becomes a list
        self._saved_settings(wanted)  # refuses a foreign folder before anything is written there
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            saved = self._saved_settings(wanted)  # again: another program may have been there in between
            if saved and overwrite:
                self._clear(saved, wanted)
            elif saved:
                self._compare(saved, wanted, getattr(settings, "NOT_COMPARED", ()))
            self._remove_unfinished()
            if overwrite or not saved:
                atomic_write(self.path("settings.json"), as_json(wanted))
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        """Takes the operating system's lock on the file .lock. The file stays; the lock ends with the process."""
        self._lock = FileLock(self.path(".lock"), timeout=0, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout:
            in_use = f"{self.folder} is in use by another process"
            raise UserError(f"{in_use}: wait for it, or choose another --out") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            no_locks = "is on a file system without locks"
            print(f"warning: {self.folder} {no_locks}: do not start a second run with this --out", file=sys.stderr)

    def _saved_settings(self, wanted: dict) -> dict | None:
        """The settings in the folder; None if the folder is new or empty; UserError if it holds something else."""
        if not self.folder.exists():
            return None
        names = {entry.name for entry in self.folder.iterdir()}
        if names <= FIRST_FILES:
            return None
        try:
            saved = read_json(self.path("settings.json"))
        except (OSError, UserError):
            saved = {}
        if saved.keys().isdisjoint(wanted):  # code editors have a settings.json, too
            raise UserError(f"{self.folder} is not empty and has no settings.json of such a run: choose another --out")
        return saved

    def _remove_unfinished(self) -> None:
        """Removes what killed programs left: new files, new model folders, half a line at the end of JSON lines."""
        for file in self.folder.glob(".*.new"):
            file.unlink()
        for folder in self.folder.glob("*/.saving-*"):
            shutil.rmtree(folder)
        for file in self.folder.glob("*.jsonl"):
            content = file.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(file, content.rfind(b"\n") + 1)

    def _compare(self, saved: dict, wanted: dict, not_compared: Iterable[str]) -> None:
        """UserError names the settings that differ from those in the folder."""
        differences = []
        for name in wanted | saved:
            there, here = saved.get(name, "(absent)"), wanted.get(name, "(absent)")
            if there != here and name not in not_compared:
                differences.append(f"{name} is {shown(there)} there and {shown(here)} here")
        if differences:
            other = f"{self.folder} holds a run with other settings ({'; '.join(differences)})"
            raise UserError(f"{other}: use --overwrite or another --out")

    def _clear(self, saved: dict, wanted: dict) -> None:
        """Deletes the files of a run of the same script. settings.json stays until it is replaced: it marks a run."""
        if not saved.keys() <= wanted.keys():
            other = f"{self.folder} is a run of another script or version"
            raise UserError(f"{other}: delete it, or use another --out")

        for inside in self.folder.glob("*/**/settings.json"):
            inner = f"another run, {inside.parent}, lies in it"
            raise UserError(f"{self.folder} is not overwritten because {inner}: choose another --out")
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (".lock", "settings.json"):
                entry.unlink()


def save_tensors(content: dict, file: BinaryIO) -> None:
    """torch.save; a full disk is an OSError here as elsewhere (torch puts a RuntimeError before it)."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
