"""Model files: found in a folder or on the Hugging Face hub, read without running their code, written all or none."""

import contextlib
import dataclasses
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from plumbing.errors import UserError, shown
from plumbing.files import read_json

PROGRAM = Path(__file__).resolve().parents[1]
FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # no way out of the folder


def fetch(place: str | Path, *names: str, beside: Path | None = None) -> Path:
    """The first of these files that there is in `place`.

    `place` is a folder, in the current directory or beside the program (the embedded "tiny/small"). A text that is no
    folder is a repository of the hub: "owner/name", or "owner/name@revision". Then this one file is downloaded, unless
    huggingface_hub's cache has it; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE act as usual. `beside` is a file
    fetched before: the new one is of the same commit. UserError says what is missing, or why the hub gave nothing.
    """
    for folder in (Path(place).expanduser(), PROGRAM / place):
        if folder.is_dir():
            found = [folder / name for name in names if (folder / name).is_file()]
            if not found:
                raise UserError(f"{place}: no {' or '.join(names)} there")
            return found[0]
    if isinstance(place, Path):
        raise UserError(f"{place}: no such folder, so no {names[0]}")

    import huggingface_hub as hub  # here, since who has folders does not need it

    repository, _, revision = place.partition("@")
    if beside is not None:
        revision = beside.parent.name  # the cache has a folder for each commit
    failure = None
    for name in names:
        cached = failure is not None  # after one failure, only the cache is asked for the other names
        try:
            return Path(hub.hf_hub_download(repository, name, revision=revision or None, local_files_only=cached))
        except hub.errors.RemoteEntryNotFoundError:
            continue
        except Exception as e:  # of HTTP, Xet, the disk …: they share no base class
            failure = failure or e
    if failure is None:
        raise UserError(f"{place}: no {' or '.join(names)} there")
    raise UserError(f"{place}: {what_to_do(failure)}")


def what_to_do(failure: Exception) -> str:
    """Why the hub gave nothing, in words."""
    match type(failure).__name__:
        case "HFValidationError":
            return "no such folder, and no id of a repository on the hub"
        case "RepositoryNotFoundError":
            return "no such folder here, no such repository on the hub (if it is private, set HF_TOKEN)"
        case "GatedRepoError":
            return "the repository is gated: ask for access on its page of the hub, then set HF_TOKEN"
        case "RevisionNotFoundError":
            return "the repository has no such revision: give a branch, a tag or a commit hash"
        case "LocalEntryNotFoundError":
            reason = str(failure.__cause__).partition(". ")[0]
            return (
                f"no such folder here, not in the hub's cache, and no hub ({reason}): "
                "load it once with a connection and without HF_HUB_OFFLINE, or give a folder"
            )
    reason = " ".join(str(failure).split())
    return f"download failed ({reason}): try again; on a full disk, make room or set HF_HOME"


def fetch_all(place: str | Path, *names: str, beside: Path | None = None) -> list[Path]:
    """As `fetch`; but a file may also be there in parts, which its index (its name and .index.json) lists."""
    either = []
    for name in names:
        either += [name, f"{name}.index.json"]
    file = fetch(place, *either, beside=beside)
    if file.suffix != ".json":
        return [file]
    weight_map = read_json(file).get("weight_map")
    parts = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else {""}
    for name in parts:
        if not FILE_NAME.fullmatch(name):
            raise UserError(f"{file}: weight_map must map keys to names of files in the same folder")
    return [fetch(place, name, beside=file) for name in sorted(parts)]


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, mapped into memory on the CPU: they cost nothing until they are used.

    A .bin file is a pickle; weights_only keeps it from running code. What torch wrote before 1.6 cannot be mapped.
    """
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        floating = all(tensor.is_floating_point() for tensor in tensors.values())
    except Exception as e:  # of many kinds; torch's own texts explain how to run a pickle's code after all
        raise UserError(f"{file}: damaged, or not a file of named tensors ({type(e).__name__})") from None
    if not floating:
        raise UserError(f"{file}: holds tensors that are not floating-point numbers (a quantised model?)")
    return tensors


def write_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as e:  # a full disk, for instance
        raise OSError(f"{file}: {e}") from None


def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json, without the padding and truncation that it may have been saved with."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("\ue000")  # a character that no vocabulary has: a tokenizer without <unk> fails here
    except BaseException as e:  # the library's panics are not even an Exception
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise UserError(f"{file}: not a tokenizer ({e})") from None
    return tokenizer


def from_json(kind: type, values: dict, file: str) -> Any:
    """A dataclass from what a JSON file holds. UserError names a field that is missing or mistyped."""
    found = {}
    for field in dataclasses.fields(kind):
        value = values.get(field.name, field.default)
        if value is dataclasses.MISSING:
            raise UserError(f"{file}: field {field.name!r} is missing")
        kinds = (int, float) if field.type is float else (field.type,)
        most = {int: 2**31, float: 1.0}.get(field.type)  # counts, and shares
        if type(value) not in kinds or (most and not 0 <= value <= most):
            expected = {int: "a count", float: "a number from 0 to 1"}.get(field.type, f"a {field.type.__name__}")
            raise UserError(f"{file}: field {field.name!r} is {shown(value)}, expected {expected}")
        found[field.name] = value
    return kind(**found)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write files into. At the end they are moved to `folder`; until then its old files stay whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as new:
        yield Path(new)
        files = list(Path(new).iterdir())
        for file in files:
            with open(file, "rb+") as f:
                os.fsync(f.fileno())  # on disk before it takes the old one's name
        for file in files:
            file.replace(folder / file.name)
