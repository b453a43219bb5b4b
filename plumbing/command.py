"""How a command begins, its settings, and how it ends, in a table or one sentence."""

import argparse
import contextlib
import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from plumbing.errors import UserError
from plumbing.processes import join_processes, rank_and_size


def parse_settings(cls: type, doc: str | None, argv: Sequence[str] | None = None) -> Any:
    """
    Command line → an instance of the dataclass `cls`, whose fields are `name: type = default  # meaning`.

    A field becomes `--name`, with - for _ (a bool: `--name` and `--no-name`), and the comment behind it the help text,
    so that default and meaning are each written once. Types: str, int, float, bool. `doc`, the script's docstring,
    heads `--help`. An unknown flag, a wrong value (numbers are finite and at least 0), and a ValueError from the
    settings' own `check()`, if there is one, end the program with the usage and one sentence.
    """
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        with contextlib.suppress(OSError, TypeError):  # no source at hand: flags without their explanation
            comments.update(re.findall(r"^\s+(\w+)\s*:.*?\s#\s*(.+)$", inspect.getsource(base), flags=re.MULTILINE))

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw, allow_abbrev=False)
    for field in dataclasses.fields(cls):
        assert field.type in (str, int, float, bool), f"no flag can be made for {field.name}: {field.type}"
        meaning = f"{comments.get(field.name, '')} (default: {field.default})".strip().replace("%", "%%")
        form = {"metavar": field.type.__name__.upper(), "type": field.type}
        if field.type is bool:
            form = {"action": argparse.BooleanOptionalAction}
        # A flag that is not given stays out of the result (SUPPRESS), and the dataclass fills in its default.
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=meaning, **form)
    try:
        settings = cls(**vars(parser.parse_args(argv)))
        for name, value in vars(settings).items():
            if isinstance(value, int | float) and not 0 <= value < (2**53 if isinstance(value, int) else float("inf")):
                raise ValueError(f"--{name.replace('_', '-')} is {value} (expected a number of at least 0)")
        if hasattr(settings, "check"):
            settings.check()
    except ValueError as error:
        parser.error(str(error))
    return settings


def at_least_one(settings: Any, *names: str) -> None:
    """For a settings' `check()`: ValueError names the first of these settings that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")


def run_main(main: Callable[[], Any]) -> None:
    """
    Runs a script's `main`. A user's mistake or a failing disk or network (OSError) ends in one sentence and status 2,
    Ctrl-C in status 130. Any other exception is a bug of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ? in its place
    try:
        join_processes()
        main()
        if rank_and_size()[1] > 1:
            torch.distributed.destroy_process_group()
    except (KeyboardInterrupt, UserError, OSError) as error:
        for bar in list(tqdm._instances):  # the sentence gets a line of its own
            bar.close()
        if isinstance(error, KeyboardInterrupt):
            how = " without --overwrite" * ("--overwrite" in sys.argv)
            print(f"interrupted: run the same command again{how} to continue", file=sys.stderr)
            sys.exit(130)
        is_named = isinstance(error, OSError) and error.filename
        print(f"error: {error.filename}: {error.strerror}" if is_named else f"error: {error}", file=sys.stderr)
        sys.exit(2)


def align(rows: list[list[str]]) -> str:
    """Rows of cells, the first one being the head → a Markdown table that also reads well in a terminal."""
    columns = list(itertools.zip_longest(*rows, fillvalue=""))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
