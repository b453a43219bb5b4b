"""
The reward of a rationale: what its text is like, and whether M_L answers right from it.

    R = R_aspect + λ R_taskAcc,   R_aspect = Σ w_i s_i

1. the reward    R and its two parts
2. the aspects   eight functions: a Reading → a score s_i in [0, 1]
3. reading       how a text becomes sentences with names, and how a rationale is laid beside its context

The aspects have the names of Lee et al. 2024 (arXiv 2404.03414). How the paper measures them is not public, so the
definitions are ours: rules on text, no model. They judge form and support and never see the gold answer. Each docstring
says what its rule is blind to. `lab/validity.py` breaks one property at a time and looks whether its aspect falls.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import data
from lmcot import parse_cot
from plumbing.errors import UserError

ASPECTS = (
    "factuality", "relevance", "logicality", "consistency", "coherence", "fluency", "naturalness", "readability"
)  # fmt: skip
Words = frozenset[str]

# ---- 1. The reward ---------------------------------------------------------------------------------------------------


def quality(
    rationale: str, example: data.Example, prediction: str | None = None, weights: dict[str, float] | None = None
) -> dict[str, float]:
    """R_aspect and the eight aspects of a rationale for this question, before or after M_L's answer from it."""
    scores = aspects(rationale, example.question, example.context, prediction)
    return {"R_aspect": r_aspect(scores, weights), **scores}


def r_aspect(scores: dict[str, float], weights: dict[str, float] | None = None) -> float:
    """R_aspect = Σ w_i s_i. Without weights all w_i are 1, and R_aspect lies between 0 and 8."""
    weights = weights or dict.fromkeys(ASPECTS, 1.0)
    return sum(weights[name] * score for name, score in scores.items())


def r_task(prediction: str, answers: str | Sequence[str], metric: str = "em") -> float:
    """R_taskAcc in [0, 1]: exact match ("em") or token F1 ("f1") of M_L's prediction with the best gold answer."""
    score = {"em": data.exact_match, "f1": data.token_f1}[metric]
    return score(prediction, answers)


@dataclass
class Combination:
    """R of each rationale in a batch, from its R_aspect and its R_taskAcc.

    "sum" is R_aspect + λ R_taskAcc. "standardized" first turns both into (x − mean) / max(standard deviation, .05) over
    all values seen so far, with this batch (the parallel form of Welford's update, Chan et al. 1983).
    `vars(combination)` is its whole state, in plain numbers and lists; `Combination(**state)` continues from it.
    """

    how: str = "sum"
    task_weight: float = 1.0  # λ
    count: int = 0
    means: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of R_aspect and of R_taskAcc
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums of squared distances from the mean

    def __call__(self, aspect: Sequence[float], task: Sequence[float]) -> list[float]:
        standardized = self._standardize(0, aspect), self._standardize(1, task)
        self.count += len(aspect)
        if self.how == "standardized":
            aspect, task = standardized
        return [a + self.task_weight * t for a, t in zip(aspect, task, strict=True)]

    def _standardize(self, part: int, values: Sequence[float]) -> list[float]:
        n = len(values)
        total = self.count + n
        mean = math.fsum(values) / n
        gap = mean - self.means[part]
        self.squares[part] += math.fsum((x - mean) ** 2 for x in values) + gap**2 * self.count * n / total
        self.means[part] += gap * n / total
        deviation = max(math.sqrt(self.squares[part] / total), 0.05)
        return [(x - self.means[part]) / deviation for x in values]


def parse_weights(text: str) -> dict[str, float]:
    """ "factuality=2,fluency=0" → a weight for each aspect, 1 where none is given. A number alone is the weight of all:
    "0,fluency=1" leaves fluency. Raises UserError for an unknown aspect and for what is no number."""
    weights = dict.fromkeys(ASPECTS, 1.0)
    for part in filter(None, text.split(",")):
        name, equals, value = part.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"the weight {part!r} is no number (write for instance factuality=2,fluency=0)")
        weights |= {name.strip(): weight} if equals else dict.fromkeys(ASPECTS, weight)

    unknown = sorted(weights.keys() - set(ASPECTS))
    if unknown:
        raise UserError(f"there is no aspect {', '.join(unknown)!r} (expected {', '.join(ASPECTS)})")
    return weights


# ---- 2. The eight aspects --------------------------------------------------------------------------------------------


def aspects(rationale: str, question: str, context: str, prediction: str | None = None) -> dict[str, float]:
    """The eight scores of a rationale, each in [0, 1], in the order of `ASPECTS`.

    `context` is the text of the paragraphs. `prediction`, M_L's answer from the rationale, counts as the conclusion
    where the text states none. A text without a statement (empty, a question, a bare answer) gets 0 throughout.
    """
    r = read(rationale, question, context, prediction)
    if not r.steps:
        return dict.fromkeys(ASPECTS, 0.0)
    measures = (factuality, relevance, logicality, consistency, coherence, fluency, naturalness, readability)
    return {measure.__name__: measure(r) for measure in measures}


def factuality(r: Reading) -> float:
    """What the steps say stands in the context. Halfway between the mean and the worst of their supports, so that one
    false name costs much. After FActScore (Min et al. 2023), with word overlap in place of a model that judges.
    Blind to names that change places inside one sentence, and to facts that the context tells in other words."""
    supports = [step.support for step in r.steps]
    mean = sum(supports) / len(supports)
    return (mean + min(supports)) / 2


def relevance(r: Reading) -> float:
    """It is about what was asked. The share of the question's terms that it takes up, where rare ones count more, times
    the share of steps that names link to the question, directly or through other steps, times `selection`.
    The question's side of ROSCOE's semantic alignment (Golovneva et al. 2023). Blind to synonyms."""
    reached = r.question.names
    for _ in r.steps:  # each pass reaches at least one step further
        linked = 0
        for step in r.steps:
            if step.about & reached:
                reached |= step.about
                linked += 1
    said = r.names.union(*[step.terms for step in r.steps])
    return r.context.share(r.question.terms, said) * linked / len(r.steps) * selection(r)


def selection(r: Reading) -> float:
    """1 where at most half of the context's sentences are copied, down to 0 where all are: nothing was selected."""
    copied = r.context.texts & r.texts
    return min(1.0, 2 - 2 * len(copied) / max(4, len(r.context.sentences)))


def logicality(r: Reading) -> float:
    """The conclusion follows from the premises. A product: two steps lead on (one alone is a look-up and gets 1/4; side
    remarks cost the root of their share); the steps hold the years and the names that the question needs; they support
    the conclusion. Links between names stand for the entailment model of ROSCOE's reasoning alignment.
    Blind to what a link means: a wrong relation between the right names passes."""
    sides = compared(r)
    leading = hops(r)
    enough = 1.0 if leading >= 2 else 0.25
    premises = enough * math.sqrt(leading / len(r.steps)) * dated(r, sides)
    return premises * r.context.share(r.question.names, r.names) * follows(r, sides)


def hops(r: Reading) -> int:
    """How many steps lead on: with a name of the question that is new, or with one that an earlier step brought."""
    leading = 0
    not_yet_named, brought = r.question.names, frozenset()
    for step in r.steps:
        if step.about & (not_yet_named | brought):
            leading += 1
        not_yet_named -= step.about
        brought |= step.about - r.question.names
    return leading


@dataclass
class Side:
    """One of the two things that a question compares, and the steps about it."""

    names: Words  # in the question
    known: Words  # these, and what its first step brings in
    steps: list[Step] = field(default_factory=list)
    year: str = ""  # the first of its last step with a year

    def nearness(self, step: Step) -> tuple[int, int]:
        return len(step.about & self.names), len(step.about & self.known)

    def add(self, step: Step, other: Side) -> None:
        if not self.steps:
            self.known |= step.about - other.known
        self.steps.append(step)
        year = re.search(r"\b[12]\d{3}\b", step.text)
        if year:
            self.year = year.group()


def compared(r: Reading) -> list[Side]:
    """The two sides of "A or B" or "A and B" in the question; [] without them, or where one of them has no step."""
    question = r.question.text
    for link in re.finditer(r" (?:or|and) ", question):
        left = read_sentence(question[: link.start()]).names
        right = read_sentence(question[link.start() :]).names
        a = Side(left - right, left - right)
        b = Side(right - left, right - left)
        for step in r.steps:
            if a.nearness(step) > b.nearness(step):
                a.add(step, b)
            elif a.nearness(step) < b.nearness(step):
                b.add(step, a)
        if a.steps and b.steps:
            return [a, b]
    return []


_WHEN = re.compile(r"(?i)\b(?:when|(?:what|which) (?:year|date))\b")
_EARLIER = re.compile(r"\b(?:first|earlier|earliest|older|oldest|elder)\b")
_ORDER = re.compile(_EARLIER.pattern + r"|\b(?:later|latest|last|younger|youngest|newer|more recently)\b")
# "Are both actors?" and "Vega is a film. Is it old?", but not "Is it A or B?"
_YES_NO = re.compile(r"(?:^|[.,] )(?:Is|Are|Was|Were|Do|Does|Did|Has|Have|Had|Can|Could)\b(?!.* or )")


def dated(r: Reading, sides: list[Side]) -> float:
    """If the question asks for a time: the share of its sides that have a number in some step. Without sides, the steps
    are one side. If it does not: 1."""
    asks_order = sides and _ORDER.search(r.question.text)
    if not asks_order and not _WHEN.search(r.question.text):
        return 1.0
    groups = [side.steps for side in sides] or [r.steps]
    with_number = 0
    for steps in groups:
        with_number += any(re.search(r"\d", step.text) for step in steps)
    return with_number / len(groups)


def follows(r: Reading, sides: list[Side]) -> float:
    """How well the steps support the conclusion; 1 if there is none. If they decide a comparison: whether it agrees.
    Else the largest share of its words that one step has, and half of that for a name that the question gave."""
    if not r.conclusion:
        return 1.0
    answer = data.normalize_answer(r.conclusion)
    if (answer in ("yes", "no")) != bool(_YES_NO.search(r.question.text)):
        return 0.0  # yes to "who", a name to "are both"
    if answer in ("yes", "no"):
        return _same(r, sides, answer == "yes")

    names = read_sentence(r.conclusion).names
    winner = _winner(r, sides)
    if winner:
        return float(not names.isdisjoint(winner.names))

    words = set(answer.split())
    most = 0
    for step in r.steps:
        found = words.intersection(data.normalize_answer(step.text).split())
        most = max(most, len(found))
    is_given = not sides and names and names <= r.question.names
    return most / max(1, len(words)) * (0.5 if is_given else 1.0)


def _same(r: Reading, sides: list[Side], says_yes: bool) -> float:
    """Whether yes or no is right: do the last steps of both sides share a name? Half where that is not the question."""
    if not sides or not re.search(r"\bsame\b", r.question.text):
        return 0.5
    a, b = sides
    shared = set(a.steps[-1].mentions) & set(b.steps[-1].mentions)
    return float(says_yes == bool(shared))


def _winner(r: Reading, sides: list[Side]) -> Side | None:
    """The side that the question asks for ("Who was born first, A or B?"), if both have a year and the years differ."""
    if not sides or not _ORDER.search(r.question.text):
        return None
    a, b = sides
    if not a.year or not b.year or a.year == b.year:
        return None
    asks_earlier = bool(_EARLIER.search(r.question.text))
    return a if asks_earlier == (a.year < b.year) else b


def consistency(r: Reading) -> float:
    """No step contradicts another: 1 / (1 + contradicting pairs). Two steps contradict where one negates the other, or
    where they say the same of one subject with another name or number in one place (born in 1945, born in 1950).
    ROSCOE's self-consistency, with rules in place of a model. Blind to contradiction in other words."""
    pairs = itertools.combinations(r.steps, 2)
    return 1 / (1 + sum(contradict(earlier, later) for earlier, later in pairs))


def contradict(a: Sentence, b: Sentence) -> bool:
    """Whether one step negates the other, or gives another value for the same."""
    if len(a.terms & b.terms) < 2:
        return False
    words_a = [word for word in a.lower if word not in NEGATIONS]
    words_b = [word for word in b.lower if word not in NEGATIONS]
    negations = len(a.lower) - len(words_a) + len(b.lower) - len(words_b)
    if negations % 2 == 1:
        return len(a.terms ^ b.terms) <= 0.2 * len(a.terms | b.terms)

    # Take away what both begin with and what both end with. Of "born in 1945" and "born in 1950", the years are left.
    beginning = []
    while words_a and words_b and words_a[0] == words_b[0]:
        beginning.append(words_a.pop(0))
        words_b.pop(0)
    while words_a and words_b and words_a[-1] == words_b[-1]:
        words_a.pop()
        words_b.pop()
    kind = _kind_of_value(words_a, a)
    return kind != "" and kind == _kind_of_value(words_b, b) and not a.names.isdisjoint(beginning)


def _kind_of_value(words: list[str], sentence: Sentence) -> str:
    """ "number" or "name"; "" where there are other words, or none."""
    if not words or not set(words) <= sentence.names | CLASS.keys():
        return ""
    return "number" if any(word[0].isdigit() for word in words) else "name"


def coherence(r: Reading) -> float:
    """Each step picks up what is already there: the share of steps with a name of the question or of an earlier step. A
    step that points back ("He was …") counts half, unless the step just before is about its subject. Given before new
    (Clark & Haviland 1977; entity grids, Barzilay & Lapata 2008). Blind to order where all steps share a name."""
    given, just_before = r.question.names, frozenset()
    total = 0.0
    for step in r.steps:
        link = 1.0 if step.about & given else 0.0
        subject = step.about - step.names or step.about
        if step.points_back and not subject & just_before:
            link /= 2
        total += link
        given |= step.about
        just_before = step.about
    return total / len(r.steps)


# How well a word of one class follows another (classes: see CLASS). "DN" is "the film", ^ and $ are the sentence's
# start and end. A pair that is not listed gets 0.
_PAIRS = {
    1.0: "^D ^N ^O ^P DN PD PN VD VN VP CD CN CO OV ON NP NV NC N$",
    0.5: "^C PO VV CP CV OP OD NO",
    0.4: "NN",
    0.3: "ND",
}
_FOLLOWS = {pair: score for score, pairs in _PAIRS.items() for pair in pairs.split()}


def fluency(r: Reading) -> float:
    """The words stand in an order that English allows, with capitals and stops in place. The square of the mean over
    sentences of the mean over neighbouring words. A pair that the context has gets 1, others what their classes allow:
    a bigram model of the context that backs off to word classes. Blind to grammar beyond two words."""
    total = 0.0
    for sentence in r.sentences:
        scores = _flow(sentence, r.context)
        total += sum(scores) / len(scores)
    return (total / len(r.sentences)) ** 2


def _flow(s: Sentence, context: Context) -> list[float]:
    """How well each word follows the one before, from the sentence's start (^) to its end ($)."""
    classes = ["^", *[CLASS.get(word, "N") for word in s.lower], "$"]
    is_name = [not word[0].islower() and word.lower() not in CLASS for word in s.words] + [False]
    scores = [_FOLLOWS.get(a + b, 0.0) for a, b in itertools.pairwise(classes)]
    for i, pair in enumerate(itertools.pairwise(s.lower), start=1):
        if pair in context.bigrams or (is_name[i - 1] and is_name[i]):
            scores[i] = 1.0
        has_capital = s.words[i][0].isupper() and s.words[i] != "I"
        if has_capital and s.lower[i] in CLASS and not is_name[i + 1]:
            scores[i] = 0.0  # "is The director", but not "in The Hague"

    if s.words[0][0].islower():
        scores[0] = 0.0
    if not re.search(r"[.!?][\"'”’)\]]*$", s.text):
        scores[-1] = 0.0
    return scores


def naturalness(r: Reading) -> float:
    """It reads as if somebody meant it. A product: the share of steps that say more than each earlier one, the squared
    share of words outside loops ("was born in was born in"), the share of sentences that are no filler, and `selection`
    (people do not recite). Repetition after Welleck et al. 2020. Blind to stock phrases that are not listed."""
    fresh = 0
    for i, step in enumerate(r.steps):
        fresh += not any(step.terms <= earlier.terms for earlier in r.steps[:i])
    words, looped, meant = 0, 0, 0
    for sentence in r.sentences:
        words += len(sentence.words)
        looped += _looped(sentence)
        meant += not _is_filler(sentence, r)
    return fresh / len(r.steps) * (1 - looped / words) ** 2 * (meant / len(r.sentences)) * selection(r)


def _looped(s: Sentence) -> int:
    """How many words repeat on the spot a phrase of up to eight words: 3 in "was born in was born in 1950"."""
    words = s.lower
    if len(set(words)) == len(words):
        return 0
    repeated: set[int] = set()
    for size in range(1, 9):
        for start in range(size, len(words) - size + 1):
            if words[start : start + size] == words[start - size : start]:
                repeated.update(range(start, start + size))
    return len(repeated)


_BOILERPLATE = re.compile(
    r"(?i)\bas an ai\b|\blanguage model\b|\b(?:let us|let's|let me)\b|\bstep by step\b|\b(?:please|needless to say)\b"
    r"|\b(?:it is|it's) (?:important|worth)\b|\bin (?:conclusion|summary|other words|order to)\b"
    r"|\bbased on the\b.{0,20}\b(?:context|information|text|passage)\b|\b(?:this|the|your|great) question\b"
    r"|\b(?:i|we) (?:hope|think|believe|will|need|am|can|know|should|must|have|do)\b"
)


def _is_filler(s: Sentence, r: Reading) -> bool:
    """A stock phrase; or a step that names nothing known, and of whose terms more than a quarter are unknown."""
    if _BOILERPLATE.search(s.text):
        return True
    in_context = s.terms & r.context.counts.keys()
    known_names = s.names & (in_context | r.question.names)
    known_terms = in_context | (s.terms & r.question.terms)
    return s.text in r.texts and not known_names and len(known_terms) < 0.75 * len(s.terms)


def readability(r: Reading) -> float:
    """Easy on the eye: 1 / (1 + (length/30)² + (clutter/.15)²). Length, in words, is that of the sentence in which an
    average word stands: short sentences do not make up for a run-on. Clutter is symbols per word, other than
    . , ! ? quotes and dashes. Sentence length is the core of readability formulas (Flesch 1948); their syllable counts
    would only measure names. Blind to hard words."""
    words, squares, symbols = 0, 0, 0
    for sentence in r.sentences:
        words += len(sentence.words)
        squares += len(sentence.words) ** 2
        symbols += len(re.findall(r"[^\w\s.,!?'’\"“”–-]", sentence.text))
    return 1 / (1 + (squares / words / 30) ** 2 + (symbols / words / 0.15) ** 2)


# ---- 3. Reading ------------------------------------------------------------------------------------------------------

# The small words of English in five classes: determiners, prepositions, auxiliaries, conjunctions, pronouns. All other
# words are open (class N).
_CLASSES = {
    "D": "the a an his her its their my your our this that these those every each no",
    "P": "of in on at by for from with to into as after before between during since until about over under through",
    "V": "is was are were be been being am has have had does did do can could will would may might must not",
    "C": "and or but nor so because while although if than",
    "O": "he she it they we you i who which what whom whose where when why how him them there both same also",
}
CLASS = {word: name for name, words in _CLASSES.items() for word in words.split()}
PRONOUNS = {"he", "she", "it", "they", "his", "her", "its", "their", "this", "these", "him", "them"}
NEGATIONS = {"not", "no", "never", "neither", "nor", "cannot"}


@dataclass(frozen=True)
class Reading:
    """A rationale beside its question and context: all that an aspect gets to see."""

    sentences: tuple[Sentence, ...]  # of the whole text
    steps: tuple[Step, ...]  # the statements of its reasoning, without the conclusion
    texts: set[str]  # of the steps
    names: Words  # what the steps are about, all together
    conclusion: str  # "So the answer is …" in the text, else M_L's prediction, else ""
    question: Sentence
    context: Context


@dataclass(frozen=True)
class Sentence:
    """Names, terms and subject are in lower case and without 's."""

    text: str
    words: tuple[str, ...]  # as written, without punctuation
    lower: tuple[str, ...]  # the same in lower case
    mentions: tuple[Words, ...]  # names and numbers, each the set of its words: {"ann", "lie"}, {"1950"}
    names: Words  # the words of all mentions
    terms: Words  # names, and the stems of the other open words
    subject: Words  # the names before the first auxiliary, else the first name
    points_back: bool  # it speaks of "he" or "the album" before it names anybody


@dataclass(frozen=True)
class Step(Sentence):
    """A statement of the reasoning, beside the context."""

    support: float  # how far a sentence of the context says the same
    about: Words  # its names, and those of the subject that it points back to


def read(rationale: str, question: str, context: str, prediction: str | None = None) -> Reading:
    reasoning, stated = parse_cot(rationale)
    conclusion = stated or (prediction or "").strip()
    asked, known = read_sentence(question), read_context(context)
    steps, texts, names = [], set(), frozenset()
    for sentence in split(reasoning):
        if _is_statement(sentence, asked):
            support, subject = known.support(sentence)
            about = sentence.names | subject if sentence.points_back else sentence.names
            steps.append(Step(**vars(sentence), support=support, about=about))
            texts.add(sentence.text)
            names |= about
    return Reading(split(rationale), tuple(steps), texts, names, conclusion, asked, known)


_VERB = re.compile(  # an open word that is a verb: directed, lives (but not status, class), won
    r"[a-z]{2,}(?:ed|[^us]s)$"
    r"|(?:born|built|came|became|began|found|held|known|led|left|lost|made|ran|saw|took|won|wrote)$"
)


def _is_statement(s: Sentence, question: Sentence) -> bool:
    """Whether it says something of somebody: what a question, its repetition, a bare answer and a fragment do not."""
    repeats = s.terms <= question.terms and len(s.terms) > 0.75 * len(question.terms)
    if repeats or len(s.words) < 3 or s.text.endswith("?"):
        return False
    has_verb = any(CLASS.get(word.lower()) == "V" or _VERB.match(word) for word in s.words)
    return has_verb and bool(s.names or PRONOUNS.intersection(s.lower))


_STOP = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n\s*")  # what parts sentences: the space after "He won." and "(He won.)"
ABBREVIATIONS = ("[A-Z]", "St", "Ft", "Mt", "Dr", "Mr", "Mrs", "Ms", "Jr", "Sr", "vs", "Inc", "Ltd", "Co", "Corp")
_ABBREVIATION = re.compile(rf"(?:^|[\s.(\"])(?:{'|'.join(ABBREVIATIONS)}|c|No)\.$")  # "in St.", "D. P."
_WORD = re.compile(r"\d+(?:[.,]\d+)*\w*|[^\W_]+(?:['’][^\W_]+)*")  # 1,000th, Lyra's


@lru_cache(maxsize=8192)
def split(text: str) -> tuple[Sentence, ...]:
    """Text → its sentences; "D. P. Varma" and "St. Louis" stay whole."""
    parts, start = [], 0
    for stop in _STOP.finditer(text):
        if "\n" in stop.group() or not _ABBREVIATION.search(text[start : stop.start()]):
            parts.append(text[start : stop.end()])
            start = stop.end()
    parts.append(text[start:])
    return tuple([read_sentence(part.strip()) for part in parts if _WORD.search(part)])


_DEFINITE = re.compile(r"(?! [a-z]+(?: [a-z]+)? of\b) [a-z]")  # after "the": " album peaked", but not " birth year of"


@lru_cache(maxsize=65536)
def read_sentence(text: str) -> Sentence:
    matches = list(_WORD.finditer(text))
    words = tuple([match.group() for match in matches])
    lower = tuple(map(str.lower, words))
    keys = [word.removesuffix("'s").removesuffix("’s") for word in lower]
    is_name = [_looks_like_name(word, key) for word, key in zip(words, keys, strict=True)]
    if len(keys) > 1 and CLASS.get(keys[1]) == "P":
        is_name[0] = False  # "Born in Rome" names Rome alone, and "Isabella of France", which is a mistake, France

    mentions: list[Words] = []
    subject: set[str] = set()
    points_back = after_auxiliary = False
    name_end = 0
    for i, key in enumerate(keys):
        if is_name[i]:
            # Names with only a space or a hyphen between them are one mention.
            if mentions and text[name_end : matches[i].start()] in (" ", "-"):
                mentions[-1] |= {key}
            else:
                mentions.append(frozenset({key}))
            name_end = matches[i].end()
            if not key[0].isdigit() and not (subject and after_auxiliary):
                subject.add(key)
        elif not subject:
            is_definite = key == "the" and _DEFINITE.match(text, matches[i].end())
            points_back = points_back or key in PRONOUNS or bool(is_definite)
        after_auxiliary = after_auxiliary or CLASS.get(key) == "V"

    names = frozenset().union(*mentions)
    stems = [_stem(key) for key in keys if len(key) > 1 and key not in CLASS and key not in names]
    terms = names.union(stems)
    return Sentence(text, words, lower, tuple(mentions), names, terms, frozenset(subject), points_back)


def _looks_like_name(word: str, key: str) -> bool:
    """It begins with a digit or a capital letter, and is no small word of English."""
    has_capital = len(word) > 1 and not word[0].islower()
    return key not in CLASS and (has_capital or word[0].isdigit())


def _stem(word: str) -> str:
    """The first five letters without an ending: live and lives are one term, and so are director and directed."""
    stem = re.sub(r"(?:e[sd]?|s)$", "", word) if len(word) > 3 else word
    return stem[:5]


class Context:
    """The sentences of a context. The subject of one that points back is that of the sentence before."""

    def __init__(self, text: str):
        self.sentences = split(text)
        self.texts: set[str] = set()
        self.bigrams: set[tuple[str, str]] = set()
        self.subjects: list[Words] = []
        self.terms: list[Words] = []  # of each sentence and its subject
        self.counts: Counter[str] = Counter()  # how many sentences have a term
        subject: Words = frozenset()
        for s in self.sentences:
            self.texts.add(s.text)
            self.bigrams.update(itertools.pairwise(s.lower))
            # A part of the subject's name (Lennon, after John Lennon) is still the same subject.
            if not s.points_back and not s.subject <= subject:
                subject = s.subject
            self.subjects.append(subject)
            self.terms.append(s.terms | subject)
            self.counts.update(s.terms | subject)

    def rarity(self, term: str) -> float:
        """Inverse document frequency, a sentence being a document; 0 for a term that the context lacks."""
        return math.log(1 + len(self.sentences) / self.counts[term]) if term in self.counts else 0.0

    def share(self, terms: Words, said: Words) -> float:
        """The share of the terms that is said, weighted by rarity; 1 where the context has none of them."""
        total = math.fsum(map(self.rarity, terms))  # fsum: the order of a set does not matter
        found = math.fsum(map(self.rarity, terms & said))
        return found / total if total else 1.0

    def support(self, step: Sentence) -> tuple[float, Words]:
        """How far the best sentence, with its subject, says what the step says, in [0, 1]; and that sentence's subject.

        The product over the step's mentions of the share of words found, times .9 + .1 × the share of its other terms.
        Terms that the whole context lacks do not count: they are a paraphrase."""
        others = (step.terms - step.names) & self.counts.keys()
        best, best_subject = 0.0, frozenset()
        for terms, subject in zip(self.terms, self.subjects, strict=True):
            if step.terms.isdisjoint(terms):
                continue
            named = 1.0
            for mention in step.mentions:
                named *= len(mention & terms) / len(mention)
            told = len(others & terms) / len(others) if others else 1.0
            support = named * (0.9 + 0.1 * told)
            if support >= best:  # of equals, the last
                best, best_subject = support, subject
        return best, best_subject


read_context = lru_cache(maxsize=1024)(Context)
