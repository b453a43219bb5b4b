"""Mistakes that the user can correct."""

import json
from typing import Any


class UserError(ValueError):
    """A mistake that the user can correct: a wrong path, flag or file. Scripts print its sentence without a traceback.

    The sentence may quote a stranger's file. So control characters are escaped, and a long text loses its middle.
    """

    def __init__(self, sentence: str):
        if len(sentence) > 900:
            sentence = f"{sentence[:600]} … {sentence[-280:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence))


def shown(value: Any) -> str:
    """A value as it stands in a JSON file, short enough for a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "…"
