"""What a user can mend, said in one sentence."""

import json
from typing import Any


class UserError(ValueError):
    """Something the user can mend (a path, a flag, a file); scripts print its one sentence without a traceback.

    What it quotes may be a stranger's: control characters are escaped, and the middle of a long text is left out."""

    def __init__(self, sentence: str):
        sentence = sentence if len(sentence) <= 900 else f"{sentence[:600]} … {sentence[-280:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence))


def shown(value: Any) -> str:
    """A value as it stands in the file, short enough for a sentence."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 60 else text[:60] + "…"
