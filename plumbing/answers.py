"""What a language model's text states as its answer, and the reasoning before it.

For the tiny LMs a line would do: they end a chain of thought with "So the answer is Paris." Large LMs behind servers
write "**Final Answer:** Paris (because …)" and much else. tests/test_parsing.py has a row for each form.
"""

import re

from plumbing.markup import clean

# What states an answer: a label where a line or sentence begins, "### Final Answer: Paris"; or a phrase anywhere, 'the
# answer to the question "Who is it?" is Ann'. But "the answer is based on the text" states none.
_ANSWER = r"(?:(?:final|correct|right|short) ){0,2}ans(?:wer)?"
_ASKED = r"""(?: to (?:the|this|your)(?: \w+)? question(?: ["“][^\n]{1,300}?["”])?| (?:to|for|you) [^.\n]{1,200})?"""
_LABEL = rf"(?:^|(?<=[.!?]))[\W\d]{{0,9}}{_ANSWER}{_ASKED}(?:]|\s*[:=—]|[ \t]*\n| -| is\b)"
_NOTHING = r"(?!\s?(?-i:not|clear|based|found|given|stated|in the (?:context|text))\b)"
_PHRASE = rf"\b(?:the|my) {_ANSWER}{_ASKED}(?:,? (?:is|would be|must be)\b|\s?:){_NOTHING}"
_SO = r"\b(?:so|thus|hence|therefore|finally|in conclusion|(?:based on|according to) [^.,\n]{1,80})\b,?\s*"
_CONCLUSION = re.compile(rf"(?im)[,;:]?\s{{0,3}}(?:{_SO}){{0,2}}(?:(?:{_LABEL}|{_PHRASE})[\s:,]*(?-i:that )?)+(?=\S)")
_AFTERWARDS = re.compile(  # what follows an answer: another turn, "Question 2: …", or a remark, "(Note that …"
    r"(?im)\n\W{0,9}(?:question|q|user|human|context|passage|explanation)[ \d]{0,4}(?:[:.)]|$)"
    r"|[.!?(\n]\s{0,9}(?:please )?(?:note\b|let me know|(?:i )?hope)|\s(?-i:Question|Context|Q): "
)
_REASON = re.compile(r",? because\b|, (?:since|as|which|whose|who|where)\b")  # "Paris, which is in France"
_STOP = re.compile(r"""[.!?]+["”)]*(?:\s+|$)""")  # "Paris. It", 'Paris." It'
_NO_NAME = r"(?:Th[aei]\w*|It|He|She|We|I|An?|In|On|At|As|So|Both|His|Her|However|Not),?\s"  # how no name goes on
_END = re.compile(rf"""(?<=[^\W\d]{{5}})\.["”)]*\s+|\.["”)]*\s+(?={_NO_NAME})""")  # "Paris. Ann left", "X. He left"
_INITIAL = re.compile(r"(?<![\w.])(?:[A-Z]|(?![AEIOUY]|Jr|Sr|Ltd)[A-Z][b-df-hj-np-tv-xz]{1,3}|vs?)$")  # "X", "St", "v"
_CLAUSE = re.compile(r"(?![a-z\d])(?:(?!(?<!\b[A-Z])[.!?]\s).)*?\s(?!(?:of|and|the)\b)[a-z]")  # "It is", not "A of B"


def bare(prediction: str) -> str:
    """A prediction without bullet and quotation marks, and without what explains a yes or no: "Yes, they are" is a yes
    (the official F1 knows the bare word only), but "No. 10" and "Yes, Prime Minister" are names."""
    prediction = re.sub(r"^[-•]\s+", "", prediction.strip().rstrip(",;"))
    prediction = re.sub(r"""^["“]([^"“”]+)["”]?$""", r"\1", prediction)
    then = r"(?:[,;:!]\s*|\.\s+|\s*[–—(]|\s+-+\s+|\s+(?=(?:they|both|it|he|she|because)\b))(?!\d)"
    return re.sub(rf"^((?i:yes|no)){then}(?=.*(?<![\w'])[a-z]).*", r"\1", prediction)


def find_answer(text: str) -> str:
    """The answer that a text begins with: its first line, up to a reason (", because …") or to a full stop. A stop that
    may belong to a name is no end: "Lt. Gen. James Hill" stays whole, and of "Malcolm X. He left" the name is left."""
    text = text[:999].partition("\n")[0]
    reason = _REASON.search(text)
    end = reason.start() if reason else len(text)
    for stop in _STOP.finditer(text, 0, end):
        before, mark, after = text[: stop.start()], text[stop.start()], text[stop.end() :]
        new_clause = _CLAUSE.match(after) and not _INITIAL.search(before)
        if not after or new_clause or _END.match(text, stop.start()):
            belongs = mark != "." or re.search(r"(?:\.[A-Za-z]+|[JS]r)$", before)  # "Go!", "the U.S."
            return bare(before + mark if belongs else before)
    return bare(text[:end])


def parse_cot(text: str) -> tuple[str, str]:
    """Chain of thought → (reasoning, prediction); the prediction is "" where no "the answer is …" is found."""
    return split_conclusion(clean(text))


def split_conclusion(text: str) -> tuple[str, str]:
    """As `parse_cot`, for a text that is clean. The last "the answer is …" counts, of those before another question or
    a remark. The reasoning ends where that prediction is first stated: an answer said twice does not stay in it."""
    first = _CONCLUSION.search(text)
    if not first:
        return text, ""
    start = first.end() + 1  # inside the first answer
    text = text[:start] + _AFTERWARDS.split(text[start:], maxsplit=1)[0]
    marks = list(_CONCLUSION.finditer(text))
    predictions = [find_answer(text[mark.end() :]) for mark in marks]
    first = marks[predictions.index(predictions[-1])]
    return text[: first.start()].strip(), predictions[-1]


def parse_answer(text: str) -> str:
    """What a model says when asked for an answer → the prediction: what "the answer is …" states, in the first sentence
    or after other lines; else the first line that is no introduction ("Here it is:"), without a sentence that follows.
    Reasoning in one line is left as it is, for F1 and AI to judge."""
    text = re.sub(r"\A(?:[^\n]*:\s*\n)+", "", clean(text)).strip()
    text = text[:1] + _AFTERWARDS.split(text[1:], maxsplit=1)[0]
    before, prediction = split_conclusion(text)
    if prediction and ("\n" in text or not _STOP.search(before)):
        return prediction
    line = text.partition("\n")[0]
    first = _END.split(_REASON.split(line, maxsplit=1)[0], maxsplit=1)[0]
    is_reasoning = re.search(r"\b(?:is|are|was|were|has|had|[a-z]+ed)\b", first)
    return bare(line if is_reasoning else first)
