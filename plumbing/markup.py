"""A language model's text: without what stands around its words, without accents, cut into sentences."""

import re
import unicodedata
from functools import lru_cache

_PLAIN = str.maketrans({"\u2010": "-", "\u2011": "-", "‘": "'", "’": "'", "：": ":", "\xa0": " ", "\u202f": " "})
_THOUGHTS = re.compile(  # "<think>Rome?</think>Paris". Some servers drop the first tag, and a cut text lacks the last.
    r"(?is)\A.*(?:[<[◁]/th(?:ink|ought)\w*[]>▷]|final<\|message\|>)|(?:[<[◁]th(?:ink|ought)\w*[]>▷]|analysis<\|).*"
)
_TOKEN = re.compile(  # "</s>", "<|eot_id|>", "[/INST]"; also with the role that it opens, "<start_of_turn>model"
    r"<\|?(?:start_header_id|start_of_turn)\|?>\s*\w+|<[|｜][^<>\n]{1,40}[|｜]>|</s>|<(?:eos|end_of_turn)>|\[/?INST\]"
)
# "Assistant: Paris", "Sure, the answer is Paris"
_OPENER = re.compile(r"(?i)\A\s*(?:(?:assistant|reasoning|a)\s?:|assistant\n|(?:sure|certainly|of course)[,.!])")
_COMMAND = re.compile(r"(?i)\\(?!boxed)[a-z]+\s*\{([^{}]*)\}|\\[][()]|\\(?=[&%$#])")  # "\text{km}", "\(", "\%"
_STATED = (
    re.compile(r"\${0,2}\s{0,9}\\{0,2}\bboxed\s?\{([^{}]*)\}?\s{0,9}\${0,2}"),  # "$\boxed{Paris}$"
    re.compile(r"(?i)<(?:final_?)?answer>([^<]*)"),  # "<answer>Paris</answer>"
    re.compile(r'(?i)"(?:final_?)?answer"\s?:\s?"?([^"\n}]*)'),  # '{"answer": "Paris"}'
)
# "```json", "### ", "> ", "<b>", "**Paris**", but not the stars of "M*A*S*H"
_MARKUP = re.compile(r"(?im)```\w*|`|^[ \t]*[#>]+[ \t]+|</?[a-z][\w-]*>|(?<![^\W_])[*_]+|[*_]+(?![^\W_])")


def clean(text: str) -> str:
    """A model's text without what stands around its words. A box, tag or JSON field of the answer becomes a line."""
    text = _THOUGHTS.sub("", text.translate(_PLAIN))
    turns = [turn for turn in _TOKEN.split(text) if turn.strip()]
    text = _OPENER.sub("", turns[0]) if turns else ""
    text = re.sub(r"\\[,;: ]", " ", text.replace("{,}", ","))  # LaTeX: "3.5\,km", "1{,}000"
    for _ in range(3):  # commands stand in commands; the innermost goes first
        text = _COMMAND.sub(r"\1", text)
    for pattern in _STATED:
        text = pattern.sub(r"\nAnswer: \1\n", text)
    return _MARKUP.sub("", text).strip()


# Letters that Unicode does not take apart into a plain letter and an accent.
_LETTERS = {"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "ı": "i", "ħ": "h",
            "ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th"}  # fmt: skip


@lru_cache(maxsize=8192)
def fold(text: str) -> str:
    """A text without accents, "Čapek" → "Capek": an M_S may lack such letters."""
    letters = unicodedata.normalize("NFKD", text.translate(str.maketrans(_LETTERS)))
    return re.sub("[\u0300-\u036f]", "", letters)  # the accents, which stand alone now


_STOP = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n\s*")  # what parts sentences: the space after "He won." and "(He won.)"
# Stops that do not: "in St.", "D. P.", and the number before a step ("1.", "Step 1.").
_ABBREVIATION = re.compile(
    r"(?:^|[\s.(\"])(?:[A-Z]|St|Ft|Mt|Dr|Mrs?|Ms|Jr|Sr|vs|Inc|Ltd|Co|Corp|c|No)\.$|^\W*(?:[A-Za-z]+ )?\d{1,2}\.$"
)


def split(text: str) -> list[str]:
    """Text → its sentences; "D. P. Varma" and "St. Louis" stay whole."""
    parts, start = [], 0
    for stop in _STOP.finditer(text):
        if "\n" in stop.group() or not _ABBREVIATION.search(text[start : stop.start()]):
            parts.append(text[start : stop.end()].strip())
            start = stop.end()
    parts.append(text[start:].strip())
    return [part for part in parts if re.search(r"[^\W_]", part)]
