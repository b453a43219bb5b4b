"""Model files: found in a folder or on the Hugging Face hub, read without running their code, written all or none."""

import contextlib
import dataclasses
import os
import shutil
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


def fetch(place: str | Path, *names: str, beside: Path | None = None) -> Path:
    """The first of these files that there is in `place`.

    `place` is a folder, in the current directory or beside the program (the embedded "tiny/small"). A text that is no
    folder is a repository of the hub: "owner/name", or "owner/name@revision". Then this one file is downloaded, unless
    huggingface_hub's cache has it; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE act as usual. `beside` is a file
    fetched before: the new one is of the same commit. UserError says what is missing, or why the hub gave nothing.
    """
    for folder in (Path(place).expanduser(), PROGRAM / place):
        for name in names:
            if (folder / name).is_file():
                return folder / name
        if folder.is_dir():
            raise UserError(f"{place}: no {' or '.join(names)} there")
    if isinstance(place, Path):
        raise UserError(f"{place}: no such folder, so no {names[0]}")

    import huggingface_hub as hub  # here, since who has folders does not need it

    repository, _, revision = place.partition("@")
    if beside is not None:
        revision = beside.parent.name  # the cache has a folder for each commit
    failure = None
    for name in names:
        cached = failure is not None  # a lost connection must not lead to the next form of the weights
        try:
            return Path(hub.hf_hub_download(repository, name, revision=revision or None, local_files_only=cached))
        except hub.errors.RemoteEntryNotFoundError:
            continue
        except Exception as error:  # of HTTP, Xet, the disk …: they share no base class
            failure = failure or " ".join(str(error).split())
    if failure is None:
        raise UserError(f"{place}: no {' or '.join(names)} there")
    check = "check the name, the connection and HF_TOKEN"
    raise UserError(f"{place}: no such folder here, and no download ({failure}): {check}")


def fetch_all(place: str | Path, *names: str, beside: Path | None = None) -> list[Path]:
    """As `fetch`; but a file may also be there in parts, which its index (its name and .index.json) lists."""
    either = []
    for name in names:
        either += [name, f"{name}.index.json"]
    file = fetch(place, *either, beside=beside)
    if file.suffix != ".json":
        return [file]
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{file}: expected a weight_map")
    files = []
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name:
            raise UserError(f"{file}: weight_map names {shown(name)}, which is no file of the same folder")
        files.append(fetch(place, name, beside=file))
    return files


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, mapped into memory on the CPU: they cost nothing until they are used.

    A .bin file is a pickle; weights_only keeps it from running code. What torch wrote before 1.6 cannot be mapped.
    """
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise TypeError("integers, as in a quantised model")
    except Exception as e:  # of many kinds; torch's own texts explain how to run a pickle's code after all
        raise UserError(f"{file}: damaged, or not a file of floating-point tensors ({type(e).__name__})") from None
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
    except Exception as e:
        raise UserError(f"{file}: not a tokenizer ({e})") from None
    return tokenizer


def from_json(kind: type, values: dict, file: str) -> Any:
    """A dataclass from what a JSON file holds. UserError names a field that is missing or cannot be right."""
    found = {}
    for field in dataclasses.fields(kind):
        value = values.get(field.name, field.default)
        if value is dataclasses.MISSING:
            raise UserError(f"{file}: field {field.name!r} is missing")
        kinds = (int, float) if field.type is float else (field.type,)
        most = 1.0 if field.type is float else 2**31  # shares, and counts
        if type(value) not in kinds or (field.type is not str and not 0 <= value <= most):
            raise UserError(f"{file}: field {field.name!r} cannot be {shown(value)} (type {field.type.__name__})")
        found[field.name] = value
    return kind(**found)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write files into. At the end they are moved to `folder`; until then its old files stay whole."""
    new = folder / ".saving"
    shutil.rmtree(new, ignore_errors=True)  # what a killed program left
    new.mkdir(parents=True)
    try:
        yield new
        files = list(new.iterdir())
        for file in files:
            with open(file, "rb+") as f:
                os.fsync(f.fileno())  # on disk before it takes the old one's name
        for file in files:
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
