"""How a script begins, with its settings from the command line, and how it ends."""

import argparse
import dataclasses
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from plumbing.errors import UserError
from plumbing.processes import join_processes, rank_and_size


def parse_settings(cls: type, doc: str | None, argv: Sequence[str] | None = None) -> Any:
    """
    Command line → an instance of the dataclass `cls`, whose fields are written `name: type = default  # meaning`.

    So each default and each meaning is written once: a field becomes the flag `--name`, with - for _ (a bool: `--name`
    and `--no-name`), and its comment the help text. Types are str, int, float and bool. `doc` heads `--help`.

    An unknown flag, a wrong value, and a ValueError from the settings' own `check()`, if there is one, end the program
    with the usage and one sentence. Numbers are finite and at least 0; a whole number whose default is above 0 is a
    count, and at least 1.
    """
    layout_of_doc = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=layout_of_doc, allow_abbrev=False)
    comments = field_comments(cls)
    for field in dataclasses.fields(cls):
        meaning = f"{comments.get(field.name, '')} (default: {field.default})".strip().replace("%", "%%")
        form = {"type": field.type, "metavar": field.type.__name__.upper()}
        if field.type is bool:
            form = {"action": argparse.BooleanOptionalAction}
        # SUPPRESS: a flag that is not given is left out of the result, and the dataclass fills in its default.
        parser.add_argument(flag(field.name), default=argparse.SUPPRESS, help=meaning, **form)
    settings = cls(**vars(parser.parse_args(argv)))

    try:
        for field in dataclasses.fields(cls):
            value = getattr(settings, field.name)
            least = int(field.type is int and field.default > 0)
            if field.type in (int, float) and not least <= value < math.inf:
                raise ValueError(f"{flag(field.name)} is {value} (expected a number of at least {least})")
        if hasattr(settings, "check"):
            settings.check()
    except ValueError as error:
        parser.error(str(error))
    return settings


def parse_weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """ "factuality=2,fluency=0" → a weight for each name, 1 where none is given. A number alone is the weight of all:
    "0,fluency=1" leaves fluency. UserError for an unknown name and for what is no number."""
    weights = dict.fromkeys(names, 1.0)
    for part in filter(None, text.split(",")):
        name, equals, value = part.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"the weight {part!r} is no number (write for instance {names[0]}=2)")
        weights |= {name.strip(): weight} if equals else dict.fromkeys(names, weight)

    unknown = sorted(weights.keys() - set(names))
    if unknown:
        raise UserError(f"there is no weight of {', '.join(unknown)} (expected {', '.join(names)})")
    return weights


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def field_comments(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass and its base classes."""
    comments = {}
    for base in reversed(cls.__mro__[:-1]):  # without `object`
        for line in inspect.getsource(base).splitlines():
            code, _, comment = line.partition("  # ")
            name, colon, _ = code.partition(":")
            if colon and comment:
                comments[name.strip()] = comment.strip()
    return comments


def run_main(main: Callable[[], Any]) -> None:
    """
    Runs the `main` of a script. A mistake of the user, or a disk or network that fails (OSError), ends in one sentence
    and status 2; Ctrl-C in one sentence and status 130. Any other exception is a bug of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ? in its place
    try:
        join_processes()
        main()
        if rank_and_size()[1] > 1:
            torch.distributed.destroy_process_group()
    except KeyboardInterrupt:
        how = "without --overwrite" if "--overwrite" in sys.argv else "again"
        end(f"interrupted: run the same command {how} to continue", 130)
    except OSError as error:
        end(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", 2)
    except UserError as error:
        end(f"error: {error}", 2)


def end(sentence: str, status: int) -> None:
    """Ends the program with a sentence on a line of its own, below any progress bar."""
    bars = [bar for bar in tqdm._instances if hasattr(bar, "pos")]  # not one that Ctrl-C left half made
    for bar in sorted(bars, key=lambda bar: -abs(bar.pos)):  # the innermost first
        bar.close()
    print(sentence, file=sys.stderr)
    sys.exit(status)


def align(rows: list[list[str]]) -> str:
    """Rows of cells, the first one being the head → a Markdown table that also reads well in a terminal."""
    columns = []
    for cells in itertools.zip_longest(*rows, fillvalue=""):
        width = max(map(len, cells))
        head, *rest = [cell.ljust(width) for cell in cells]
        columns.append([head, "-" * width, *rest])
    lines = ["| " + " | ".join(cells) + " |" for cells in zip(*columns, strict=True)]
    lines[1] = lines[1].replace(" ", "-")  # the rule under the head
    return "\n".join(lines)
