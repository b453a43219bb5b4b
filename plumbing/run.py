"""The folder of one run: its settings, files, and one writer at a time."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from plumbing.errors import UserError, shown
from plumbing.files import as_json, atomic_write, read_json, read_jsonl, take_lock
from plumbing.processes import gather, rank_and_size


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

    def has(self, name: str) -> bool:
        """Whether the first process sees this file or folder: all of them must go on in the same way."""
        return gather([self.path(name).exists()])[0]

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

    def uses(self, files: dict[str, Path]) -> None:
        """Keeps the SHA-256 of the files of which this run is made, by their names, in inputs.json. UserError where a
        name that is kept there has another content now."""
        kept = read_json(self.path("inputs.json")) if self.path("inputs.json").exists() else {}
        now = {}
        for name, path in files.items():
            now[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            if name in kept and kept[name] != now[name]:
                raise UserError(f"{self.folder} was made from another {name} than {path}: "
                                "use --overwrite or another --out")  # fmt: skip
        self.write("inputs.json", kept | now)

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
            different += [f"{name} is {shown(there)} there and {shown(here)} here"] * (there != here)
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
            if not take_lock(file):
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
