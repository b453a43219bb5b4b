"""The folder of one run: its settings and files, for one program at a time."""

import dataclasses
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from filelock import FileLock, Timeout

from plumbing.errors import UserError, shown
from plumbing.files import as_json, as_jsonl, atomic_write, read_json, read_jsonl, sha256
from plumbing.processes import gather, rank_and_size


class Run:
    """
    The folder of one run: `with Run("runs/kd", settings) as run: ...`.

    `settings` is a dataclass instance; it is saved as settings.json. If the folder has that file already, the run goes
    on there, and the settings must agree, except those that the class attribute NOT_COMPARED names. `overwrite` deletes
    the files and the model of a run of the same script; other folders in it stay.

    A lock keeps other programs out until the `with` block ends. Under torchrun the first process writes (`writes` is
    True there). UserError if the folder belongs to another run, to something else, or to a program that still runs.
    """

    def __init__(self, folder: str | Path, settings: Any, overwrite: bool = False):
        self.folder = Path(folder)
        self.writes = rank_and_size()[0] == 0
        self._lock = FileLock(self.path(".lock"), timeout=0, fallback_to_soft=False)
        if self.writes:
            self._check(settings, overwrite)  # before anything is written there
            self._take_lock()
            self._check(settings, overwrite)  # again: another program may have been there in between
            if overwrite:
                self._clear()
            for file in self.folder.glob("*.jsonl"):  # a killed program may have left half a line
                os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
            if overwrite or not self.path("settings.json").exists():
                atomic_write(self.path("settings.json"), as_json(dataclasses.asdict(settings)))
        gather([])  # the other processes wait until the folder is ready

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _check(self, settings: Any, overwrite: bool) -> None:
        """UserError if a run with these settings may not begin or go on in the folder."""
        file = self.path("settings.json")
        if not file.exists():
            # Hidden files do not count: a run that was killed in its first moments leaves its lock.
            if self.folder.exists() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise UserError(f"{self.folder} is not empty, and no run is in it: choose another --out")
            return
        saved = read_json(file)
        wanted = json.loads(as_json(dataclasses.asdict(settings)))  # as JSON gives it back: a tuple becomes a list
        if overwrite and saved.keys() != wanted.keys():
            raise UserError(f"{self.folder} is a run of another script or version: delete it, or use another --out")
        differences = []
        for name in wanted | saved:
            there, here = saved.get(name, "(absent)"), wanted.get(name, "(absent)")
            if there != here and name not in getattr(settings, "NOT_COMPARED", ()):
                differences.append(f"{name} is {shown(there)} there and {shown(here)} here")
        if differences and not overwrite:
            other = f"{self.folder} holds a run with other settings ({'; '.join(differences)})"
            raise UserError(f"{other}: use --overwrite or another --out")

    def _take_lock(self) -> None:
        """Takes the operating system's lock on the file .lock. The file stays; the lock ends with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            in_use = f"{self.folder} is in use by another process"
            raise UserError(f"{in_use}: wait for it, or choose another --out") from None
        except OSError as error:  # some file systems have no locks
            print(f"warning: no lock ({error}): do not start a second run in {self.folder}", file=sys.stderr)

    def _clear(self) -> None:
        """Deletes the visible files and the model. settings.json stays until it is replaced: it marks a run."""
        for entry in self.folder.iterdir():
            if entry.name.startswith(".") or entry.name == "settings.json":
                continue
            if entry.is_symlink() or entry.is_file():
                entry.unlink()
            elif entry.name == "model":
                shutil.rmtree(entry)

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether the first process sees this file or folder. So all processes go on in the same way."""
        return gather([self.path(name).exists()])[0]

    def write(self, name: str, content: Any) -> None:
        """Replaces a file in one step. Text and bytes are written as they are, anything else as JSON."""
        if self.writes:
            atomic_write(self.path(name), content if isinstance(content, str | bytes) else as_json(content))
        gather([])  # from here on, the other processes may read it

    def append(self, name: str, *records: dict) -> None:
        """Adds lines to a JSONL file."""
        if not self.writes:
            return
        with open(self.path(name), "ab") as file:
            file.write(as_jsonl(records).encode())
            file.flush()
            os.fsync(file.fileno())  # on disk before a state is saved that counts on these lines

    def rewrite(self, name: str, records: Iterable[dict]) -> None:
        """Replaces a JSONL file in one step."""
        self.write(name, as_jsonl(records))

    def read(self, name: str, *keys: str) -> list[dict]:
        """The records of a JSONL file, [] if there is no file; UserError for a record without one of these keys."""
        return read_jsonl(self.path(name), *keys)

    def trim(self, name: str, key: str, last: int) -> list[dict]:
        """Keeps the records of a JSONL file whose `key` is at most `last`, and returns them: what was logged after the
        last saved state will be logged again."""
        kept = [record for record in self.read(name, key) if record[key] <= last]
        self.rewrite(name, kept)
        return kept

    def save(self, name: str, content: dict) -> None:
        """Replaces a file of tensors, numbers and texts in one step."""
        buffer = io.BytesIO()
        if self.writes:
            torch.save(content, buffer)
        self.write(name, buffer.getvalue())

    def save_state(self, numbers: dict, parts: dict[str, Any]) -> None:
        """Saves where training stands in state.pt: numbers, and the state_dict of each part (module, optimizer …)."""
        states = {name: part.state_dict() for name, part in parts.items()}
        self.save("state.pt", numbers | states)

    def load_state(self, parts: dict[str, Any], device: str | torch.device) -> dict:
        """Puts every part back to where `save_state` left it and returns the numbers; {} if nothing was saved."""
        if not self.has("state.pt"):
            return {}
        file = self.path("state.pt")
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # of many kinds; their texts advise to run the code in the file
            raise UserError(f"{file} is damaged ({type(error).__name__}): start again with --overwrite") from None
        for name, part in parts.items():
            part.load_state_dict(state.pop(name))
        return state

    def uses(self, files: dict[str, Path]) -> None:
        """
        Names the files that this run is made from; inputs.json keeps their SHA-256 (null: no such file). New names may
        come. UserError if a known one has another content now: old and new results do not belong together.
        """
        path = self.path("inputs.json")
        inputs = read_json(path) if path.exists() else {}
        for name, file in files.items():
            found = sha256(file) if file.is_file() else None
            if inputs.setdefault(name, found) != found:
                changed = f"{self.folder} was made from another {name} than {file} is now"
                raise UserError(f"{changed}: use --overwrite or another --out")
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
