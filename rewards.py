"""
What "a good rationale" is made to mean: eight aspects of its text, and whether M_L answers right from it.

1. reading      a text as sentences with their names; a rationale beside its question and context
2. the aspects  eight short functions Reading → [0, 1]; none of them ever sees the gold answer
3. the reward   R_aspect = Σ w_i s_i, R_taskAcc, and two ways of adding them up

The names are those of Lee et al. 2024 (arXiv 2404.03414); how the paper measures them is not public, so the definitions
are ours: rules on text, no model, easy to argue with. They judge form and support, and each docstring says what it is
blind to. `lab/validity.py` measures whether each falls when the property it is named after is broken.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import data
from data import Example
from lmcot import ABBREVIATIONS, parse_cot
from plumbing.errors import UserError

ASPECTS = (
    "factuality", "relevance", "logicality", "consistency", "coherence", "fluency", "naturalness", "readability"
)  # fmt: skip

# ---- 1. Reading ------------------------------------------------------------------------------------------------------

# The closed classes of English: determiners, prepositions, auxiliaries, conjunctions, pronouns. Any other word is open
# (class N) and one of the sentence's terms.
_CLASSES = {
    "D": "the a an his her its their my your our this that these those every each no",
    "P": "of in on at by for from with to into as after before between during since until about over under through",
    "V": "is was are were be been being am has have had does did do can could will would may might must not",
    "C": "and or but nor so because while although if than",
    "O": "he she it they we you i who which what whom whose where when why how him them there both same also",
}
CLASS = {word: name for name, words in _CLASSES.items() for word in words.split()}
PRONOUNS, NEGATIONS = (
    frozenset(words.split())
    for words in ("he she it they his her its their this these him them", "not no never neither nor cannot")
)

_WORD = re.compile(r"\d+(?:[.,]\d+)*\w*|[^\W_]+(?:['’][^\W_]+)*")
_STOP = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n\s*")
_ABBREVIATION = re.compile(rf"(?:^|[\s.(\"])(?:{'|'.join(ABBREVIATIONS)}|c|No)\.$")
_DEFINITE = re.compile(r"(?! [a-z]+(?: [a-z]+)? of\b) [a-z]")  # "the album peaked at", but not "the birth year of"
_VERB = re.compile(
    r"[a-z]{2,}(?:ed|[^us]s)$"
    r"|(?:born|built|came|became|began|found|held|known|led|left|lost|made|ran|saw|took|won|wrote)$"
)


@dataclass(frozen=True)
class Sentence:
    text: str
    words: tuple[str, ...]  # as written, without punctuation
    mentions: tuple[frozenset[str], ...]  # its names and numbers, each the set of its lower-cased words
    names: frozenset[str]  # the words of all mentions
    terms: frozenset[str]  # names, and the stems of the other open words
    subject: frozenset[str]  # the names before its first auxiliary
    points_back: bool  # it speaks of "he" or "the album" before it names anybody


def _stem(word: str) -> str:
    """The first five letters without an ending: live and lives are one term, and so are director and directed."""
    return (re.sub(r"(?:e[sd]?|s)$", "", word) if len(word) > 3 else word)[:5]


@lru_cache(maxsize=65536)
def read_sentence(text: str) -> Sentence:
    """A name is a word with a capital letter or a digit at its start that is not of a closed class, nor the first one
    before a preposition: so "Born in Rome" names Rome alone, and "Isabella of France", which is a mistake, France."""
    found = list(_WORD.finditer(text))
    words = tuple(match.group() for match in found)
    keys = [word.lower().removesuffix("'s").removesuffix("’s") for word in words]
    kinds = [CLASS.get(key, "N") for key in keys]
    mentions: list[set[str]] = []
    subject: set[str] = set()
    points_back = None  # until somebody is named
    last_name, verb = -2, False
    for i, (word, key) in enumerate(zip(words, keys, strict=True)):
        is_number = word[0].isdigit()
        is_name = kinds[i] == "N" and (is_number or len(word) > 1 and not word[0].islower())
        if i == 0 and kinds[1:2] == ["P"]:
            is_name = False
        if points_back is None and (key in PRONOUNS or key == "the" and _DEFINITE.match(text, found[i].end())):
            points_back = True
        if is_name:
            if last_name != i - 1 or text[found[i - 1].end() : found[i].start()] not in (" ", "-"):
                mentions.append(set())
            mentions[-1].add(key)
            last_name = i
            if not is_number:
                points_back = bool(points_back)
                if not (verb and subject):
                    subject.add(key)
        verb = verb or kinds[i] == "V"
    names = frozenset().union(*mentions)
    stems = {_stem(key) for key, kind in zip(keys, kinds, strict=True) if kind == "N" and key not in names}
    terms = names | {stem for stem in stems if len(stem) > 1}
    return Sentence(text, words, tuple(map(frozenset, mentions)), names, terms, frozenset(subject), bool(points_back))


@lru_cache(maxsize=8192)
def split(text: str) -> tuple[Sentence, ...]:
    """Text → its sentences; "D. P. Varma" and "St. Louis" stay whole."""
    parts, start = [], 0
    for stop in _STOP.finditer(text):
        if "\n" in stop.group() or not _ABBREVIATION.search(text[start : stop.start()]):
            parts.append(text[start : stop.end()].strip())
            start = stop.end()
    return tuple(read_sentence(part) for part in [*parts, text[start:].strip()] if _WORD.search(part))


class Context:
    """The sentences of a context, each with its subject: its own, or, where it points back, that of the one before."""

    def __init__(self, text: str):
        self.sentences = split(text)
        self.subjects: list[frozenset[str]] = []
        for s in self.sentences:
            before = self.subjects[-1] if self.subjects else frozenset()
            # A part of the subject's name (Lennon, after John Lennon) is still the same subject.
            self.subjects.append(before if s.points_back or s.subject <= before else s.subject)
        self.terms = [s.terms | subject for s, subject in zip(self.sentences, self.subjects, strict=True)]
        self.counts = Counter(term for terms in self.terms for term in terms)
        self.bigrams = {pair for s in self.sentences for pair in _pairs(s)}

    def rarity(self, term: str) -> float:
        """Inverse document frequency, a sentence being a document; 0 for a term that the context lacks."""
        return math.log(1 + len(self.sentences) / self.counts[term]) if term in self.counts else 0.0

    def share(self, terms: frozenset[str], said: frozenset[str]) -> float:
        """The share of terms that is among those said, weighted by rarity; 1 where the context knows none of them."""
        weights = {term: self.rarity(term) for term in terms}
        total = math.fsum(weights.values())  # fsum: the order of a set must not matter to the last digit
        return math.fsum(weight for term, weight in weights.items() if term in said) / total if total else 1.0

    def support(self, step: Sentence) -> tuple[float, int]:
        """How far one sentence, with its subject, says what the step says, in [0, 1], and the index of the best.

        The product over the step's mentions of the share of words found, times .9 + .1 × that of its other terms. Terms
        that the whole context lacks do not count: a paraphrase."""
        others = [term for term in step.terms - step.names if term in self.counts]
        best = (0.0, -1)
        for i, terms in enumerate(self.terms):
            if not step.terms.isdisjoint(terms):
                named = math.prod(len(m & terms) / len(m) for m in step.mentions)
                told = sum(term in terms for term in others) / len(others) if others else 1.0
                best = max(best, (named * (0.9 + 0.1 * told), i))
        return best


@lru_cache(maxsize=1024)
def read_context(text: str) -> Context:
    return Context(text)


def _pairs(sentence: Sentence) -> list[tuple[str, str]]:
    words = [word.lower() for word in sentence.words]
    return list(zip(words, words[1:], strict=False))


@dataclass(frozen=True)
class Reading:
    """A rationale beside what it is about: all that an aspect gets to see."""

    sentences: tuple[Sentence, ...]  # of the whole text
    steps: tuple[Sentence, ...]  # the statements of its reasoning, without the conclusion; at least one
    support: tuple[float, ...]  # of each step by the context
    about: tuple[frozenset[str], ...]  # the names of each step, and of the subject that it points back to
    conclusion: str  # "So the answer is …" in the text, else M_L's prediction, else ""
    question: Sentence
    context: Context


def read(rationale: str, question: str, context: str, prediction: str | None = None) -> Reading:
    reasoning, stated = parse_cot(rationale)
    asked, known = read_sentence(question), read_context(context)
    steps = tuple(s for s in split(reasoning) if _is_statement(s, asked))
    support, places = zip(*map(known.support, steps), strict=True) if steps else ((), ())
    about = [s.names | known.subjects[i] if s.points_back and i >= 0 else s.names
             for s, i in zip(steps, places, strict=True)]  # fmt: skip
    return Reading(split(rationale), steps, support, tuple(about), stated or (prediction or "").strip(), asked, known)


def _is_statement(s: Sentence, question: Sentence) -> bool:
    """Whether it says something of somebody: what a question, its repetition, a bare answer and a fragment do not."""
    somebody = s.names or any(w.lower() in PRONOUNS for w in s.words)
    verb = any(CLASS.get(w.lower()) == "V" or _VERB.match(w) for w in s.words)
    repeats = s.terms <= question.terms and len(s.terms) > 0.75 * len(question.terms)
    return len(s.words) >= 3 and bool(somebody) and verb and not repeats and not s.text.endswith("?")


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _union(sets: Sequence[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


# ---- 2. The eight aspects --------------------------------------------------------------------------------------------


def factuality(r: Reading) -> float:
    """
    What the steps say stands in the context: halfway between the mean and the worst of their supports, so that one
    false name costs much. After FActScore (Min et al. 2023), with overlap in place of a model that judges.
    Blind to names that change places inside one sentence of the context, and to what only other words tell.
    """
    return (_mean(r.support) + min(r.support)) / 2


def relevance(r: Reading) -> float:
    """
    It is about what was asked: the share of the question's terms that it takes up, the rare ones counting more, times
    the share of steps that hang on the question's names, directly or through other steps, times `_chosen`. The
    question's side of ROSCOE's semantic alignment (Golovneva et al. 2023). Blind to synonyms.
    """
    names, reached = r.question.names, 0
    for _ in r.steps:  # each pass reaches at least one step further
        linked = [about for about in r.about if about & names]
        names, reached = names | _union(linked), len(linked)
    said = _union([s.terms for s in r.steps]) | _union(r.about)
    return r.context.share(r.question.terms, said) * reached / len(r.steps) * _chosen(r)


def _chosen(r: Reading) -> float:
    """1 where at most half of the context's sentences are copied, down to 0 for all of them: nothing was selected."""
    copied = len({s.text for s in r.steps} & {s.text for s in r.context.sentences})
    return min(1.0, 2 - 2 * copied / max(4, len(r.context.sentences)))


def logicality(r: Reading) -> float:
    """
    The conclusion follows from the premises. Three factors: enough premises that lead on (`hops`: one alone is a
    look-up and gets 1/4; side remarks cost the root of their share); they hold the question's names, and a number where
    it asks for a year; they support the conclusion (`follows`). Links between names stand for the entailment model of
    ROSCOE's reasoning alignment. Blind to what the links mean: a wrong relation between the right names passes.
    """
    leading = hops(r)
    premises = (1.0 if leading >= 2 else 0.25) * math.sqrt(leading / len(r.steps))
    _, groups = compared(r)
    if _WHEN.search(r.question.text) or groups and _ORDER.search(r.question.text):
        premises *= _mean([any(re.search(r"\d", s.text) for s in steps) for steps in groups or [r.steps]])
    return premises * r.context.share(r.question.names, _union(r.about)) * follows(r)


def hops(r: Reading) -> int:
    """How many steps lead on: the first with some name of the question, or with a name that an earlier step brought."""
    leading, brought, open_names = 0, frozenset(), r.question.names
    for about in r.about:
        leading += bool(about & (open_names | brought))
        open_names -= about
        brought |= about - r.question.names
    return leading


_WHEN = re.compile(r"\b(?:when|(?:what|which) (?:year|date))\b", re.I)
_EARLIER = re.compile(r"\b(?:first|earlier|earliest|older|oldest|elder)\b")
_ORDER = re.compile(_EARLIER.pattern + r"|\b(?:later|latest|last|younger|youngest|newer|more recently)\b")
_YES_NO = re.compile(r"(?:^|[.,] )(?:Is|Are|Was|Were|Do|Does|Did|Has|Have|Had|Can|Could)\b(?!.* or )")


def follows(r: Reading) -> float:
    """
    How well the steps support the conclusion: 1 where there is none; where they decide a comparison, whether that is
    the verdict; else the largest share of its words in one step, and half of that for an answer that the question gave.
    """
    if not r.conclusion:
        return 1.0
    answer, said = data.normalize_answer(r.conclusion), read_sentence(r.conclusion)
    if (answer in ("yes", "no")) != bool(_YES_NO.search(r.question.text)):
        return 0.0  # yes to "who", a name to "are both"
    names, groups = compared(r)
    if answer in ("yes", "no"):
        if not names or not re.search(r"\bsame\b", r.question.text):
            return 0.5  # nothing can be told
        first, second = (set(steps[-1].mentions) for steps in groups)
        return float((answer == "yes") == bool(first & second))
    years = [[y for s in steps for y in re.findall(r"\b[12]\d{3}\b", s.text)[:1]][-1:] for steps in groups]
    if names and all(years) and years[0] != years[1] and _ORDER.search(r.question.text):
        return float(bool(said.names & names[(years[0] > years[1]) == bool(_EARLIER.search(r.question.text))]))
    words = set(answer.split())
    found = [len(words & set(data.normalize_answer(s.text).split())) for s in r.steps]
    given = not names and said.names and said.names <= r.question.names
    return max(found) / len(words) * (0.5 if given else 1.0) if words else 0.0


def compared(r: Reading) -> tuple[list[frozenset[str]], list[list[Sentence]]]:
    """The two things that a question compares ("A or B", "A and B"), as names, and the steps about each; or [], []."""
    for glue in re.finditer(r" (?:or|and) ", r.question.text):
        left, right = read_sentence(r.question.text[: glue.start()]), read_sentence(r.question.text[glue.start() :])
        names = [left.names - right.names, right.names - left.names]
        known, groups = list(names), [[], []]
        for step, about in zip(r.steps, r.about, strict=True):
            shared = [(len(about & n), len(about & k)) for n, k in zip(names, known, strict=True)]
            if shared[0] != shared[1]:
                side = int(shared[1] > shared[0])
                if not groups[side]:  # whom the first step brings in, the next may be about
                    known[side] |= about - known[1 - side]
                groups[side].append(step)
        if all(groups):
            return names, groups
    return [], []


def consistency(r: Reading) -> float:
    """
    No step contradicts another: 1 / (1 + contradicting pairs). Two steps contradict where one is the other's negation,
    or where they say the same of one subject with another name or number in one place (born in 1945, born in 1950).
    ROSCOE's self-consistency over pairs j < i, with rules in place of a model. Blind to contradiction in other words.
    """
    return 1 / (1 + sum(contradict(a, b) for i, b in enumerate(r.steps) for a in r.steps[:i]))


def contradict(a: Sentence, b: Sentence) -> bool:
    if len(a.terms & b.terms) < 2:
        return False
    one, two = ([w.lower() for w in s.words if w.lower() not in NEGATIONS] for s in (a, b))
    if (len(a.words) - len(one) + len(b.words) - len(two)) % 2:
        return len(a.terms ^ b.terms) <= 0.2 * len(a.terms | b.terms)
    shorter = min(len(one), len(two))
    start = next((i for i in range(shorter) if one[i] != two[i]), shorter)
    end = next((i for i in range(shorter - start) if one[-1 - i] != two[-1 - i]), shorter - start)
    values = one[start : len(one) - end], two[start : len(two) - end]
    if not all(values) or not set(one[:start]) & a.names:
        return False
    of_names = all(w in s.names or w in CLASS for value, s in zip(values, (a, b), strict=True) for w in value)
    return of_names and len({any(w[0].isdigit() for w in value) for value in values}) == 1


def coherence(r: Reading) -> float:
    """
    Each step picks up what is already there: share of the steps with a name of the question or of an earlier step. One
    that points back needs its subject in the step before; without such a step it counts half. Given before new (Clark &
    Haviland 1977; entity grids, Barzilay & Lapata 2008). Blind to order where every step shares a name with all.
    """
    given, links = r.question.names, []
    for i, (step, about) in enumerate(zip(r.steps, r.about, strict=True)):
        link = float(bool(about & given))
        if step.points_back and not (i and ((about - step.names) or about) & r.about[i - 1]):
            link /= 2
        links.append(link)
        given |= about
    return _mean(links)


# How well a word class (^ start, $ end, N open) is followed by another; 0 where nothing is given.
_FOLLOWED = {
    "^": {"D": 1, "N": 1, "O": 1, "P": 1, "C": 0.5}, "D": {"N": 1}, "P": {"D": 1, "N": 1, "O": 0.5},
    "V": {"D": 1, "N": 1, "P": 1, "V": 0.5}, "C": {"D": 1, "N": 1, "O": 1, "P": 0.5, "V": 0.5},
    "O": {"V": 1, "N": 1, "P": 0.5, "D": 0.5}, "N": {"P": 1, "V": 1, "C": 1, "N": 0.4, "D": 0.3, "O": 0.5, "$": 1},
}  # fmt: skip


def fluency(r: Reading) -> float:
    """
    The words stand in an order that English allows, with capitals and stops in place: square of the mean over sentences
    of the mean over neighbouring words. A pair that the context has gets 1, others what their classes allow: a bigram
    model whose corpus is the context, backing off to word classes. Blind to grammar beyond two words.
    """
    return _mean([_mean(_flow(s, r.context)) for s in r.sentences]) ** 2


def _flow(s: Sentence, context: Context) -> list[float]:
    kinds = ["^", *(CLASS.get(w.lower(), "N") for w in s.words), "$"]
    is_name = [False, *(kind == "N" and not w[0].islower() for kind, w in zip(kinds[1:], s.words, strict=False)), False]
    scores = [_FOLLOWED[a].get(b, 0.0) for a, b in zip(kinds, kinds[1:], strict=False)]
    for i, pair in enumerate(_pairs(s), start=1):  # the words i-1 and i of s.words, the kinds i and i+1
        if pair in context.bigrams or is_name[i] and is_name[i + 1]:
            scores[i] = 1.0
        if kinds[i + 1] != "N" and s.words[i][0].isupper() and s.words[i] != "I" and not is_name[i + 2]:
            scores[i] = 0.0  # "is The director"
    if s.words[0][0].islower():
        scores[0] = 0.0
    if not re.search(r"[.!?][\"'”’)\]]*$", s.text):
        scores[-1] = 0.0
    return scores


_BOILERPLATE = re.compile(
    r"\bas an ai\b|\blanguage model\b|\b(?:let us|let's|let me)\b|\bstep by step\b|\b(?:please|needless to say)\b"
    r"|\b(?:it is|it's) (?:important|worth)\b|\bin (?:conclusion|summary|other words|order to)\b"
    r"|\bbased on the\b.{0,20}\b(?:context|information|text|passage)\b|\b(?:this|the|your|great) question\b"
    r"|\b(?:i|we) (?:hope|think|believe|will|need|am|can|know|should|must|have|do)\b",
    re.I,
)


def naturalness(r: Reading) -> float:
    """
    It reads as if somebody meant it: product of the share of steps that say more than an earlier step did, the squared
    share of words outside on-the-spot loops, the share of sentences that are no filler (stock phrases; statements that
    name nothing known), and `_chosen`: people do not recite. Repetition after Welleck et al. 2020.
    """
    fresh = _mean([not any(s.terms <= earlier.terms for earlier in r.steps[:i]) for i, s in enumerate(r.steps)])
    loops = sum(map(_looped, r.sentences)) / sum(len(s.words) for s in r.sentences)
    meant = _mean([not _is_filler(s, r) for s in r.sentences])
    return fresh * (1 - loops) ** 2 * meant * _chosen(r)


def _is_filler(s: Sentence, r: Reading) -> bool:
    if _BOILERPLATE.search(s.text):
        return True
    known = [term in r.context.counts or term in r.question.terms for term in s.terms]
    named = any(name in r.context.counts or name in r.question.names for name in s.names)
    return s in r.steps and not named and sum(known) < 0.75 * len(known)


def _looped(s: Sentence) -> int:
    """How many words repeat on the spot a phrase of up to eight words: 3 in "was born in was born in 1950"."""
    words = [w.lower() for w in s.words]
    repeats = [range(i, i + n) for n in range(1, 9) for i in range(n, len(words) - n + 1)
               if words[i] == words[i - n] and words[i : i + n] == words[i - n : i]]  # fmt: skip
    return len({i for repeat in repeats for i in repeat})


def readability(r: Reading) -> float:
    """
    Easy on the eye: 1 / (1 + (L/30)² + (C/.15)²). L: length in words of the sentence that an average word stands in, so
    that short sentences do not make up for a run-on. C: symbols per word other than . , ! ? quotes and dashes. Sentence
    length is the core of readability formulas (Flesch 1948); their syllable counts would only measure names.
    """
    lengths = [len(s.words) for s in r.sentences]
    length = sum(n * n for n in lengths) / sum(lengths)
    clutter = sum(len(re.findall(r"[^\w\s.,!?'’\"“”–-]", s.text)) for s in r.sentences) / sum(lengths)
    return 1 / (1 + (length / 30) ** 2 + (clutter / 0.15) ** 2)


_FUNCTIONS = (factuality, relevance, logicality, consistency, coherence, fluency, naturalness, readability)


def aspects(rationale: str, question: str, context: str, prediction: str | None = None) -> dict[str, float]:
    """
    The eight scores of a rationale, each in [0, 1], in the order of `ASPECTS`. `context` is the paragraphs' text;
    `prediction`, M_L's answer from the rationale, stands in for a conclusion that the text does not state. A text
    without a single statement (empty, a question, a bare answer) leaves nothing to judge and gets 0 throughout.
    """
    reading = read(rationale, question, context, prediction)
    if not reading.steps:
        return dict.fromkeys(ASPECTS, 0.0)
    return {name: float(measure(reading)) for name, measure in zip(ASPECTS, _FUNCTIONS, strict=True)}


# ---- 3. The reward ---------------------------------------------------------------------------------------------------


def parse_weights(text: str) -> dict[str, float]:
    """ "factuality=2,fluency=0" → a weight for each aspect, 1 if none is given; "0" → 0 for all. Raises UserError."""
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
    if unknown := weights.keys() - set(ASPECTS):
        raise UserError(f"there is no aspect {', '.join(sorted(unknown))!r} (expected {', '.join(ASPECTS)})")
    return weights


def r_aspect(scores: dict[str, float], weights: dict[str, float] | None = None) -> float:
    """R_aspect = Σ w_i s_i; all w_i = 1 by default, so between 0 and 8."""
    return sum(score * (weights[name] if weights else 1.0) for name, score in scores.items())


def quality(
    rationale: str, example: Example, prediction: str | None = None, weights: dict[str, float] | None = None
) -> dict[str, float]:
    """R_aspect and the eight aspects of a rationale for this question, before or after M_L's answer from it."""
    scores = aspects(rationale, example.question, example.context, prediction)
    return {"R_aspect": r_aspect(scores, weights), **scores}


def r_task(prediction: str, answers: str | Sequence[str], metric: str = "em") -> float:
    """R_taskAcc in [0, 1]: exact match ("em"), or token F1 ("f1"), of M_L's prediction with the best gold answer."""
    return {"em": data.exact_match, "f1": data.token_f1}[metric](prediction, answers)


@dataclass
class Combination:
    """
    R of a batch from its R_aspect and R_taskAcc: "sum" is R_aspect + λ R_taskAcc; "standardized" is the same of
    (x − mean) / max(standard deviation, .05), over all values seen so far, the batch included (parallel form of
    Welford's update, Chan et al. 1983). `vars(combination)` is its whole state, plain numbers and lists, and
    `Combination(**state)` continues.
    """

    how: str = "sum"
    task_weight: float = 1.0  # λ
    count: int = 0
    means: list[float] = field(default_factory=lambda: [0.0, 0.0])
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums of squared distances from the mean

    def __call__(self, aspect: Sequence[float], task: Sequence[float]) -> list[float]:
        n, scaled = len(aspect), []
        for k, values in enumerate((aspect, task)):
            mean = math.fsum(values) / n
            gap = mean - self.means[k]
            total = self.count + n
            self.squares[k] += math.fsum((x - mean) ** 2 for x in values) + gap**2 * self.count * n / total
            self.means[k] += gap * n / total
            std = math.sqrt(self.squares[k] / total)
            scaled.append([(x - self.means[k]) / max(std, 0.05) for x in values])
        self.count += n
        aspect, task = scaled if self.how == "standardized" else (aspect, task)
        return [a + self.task_weight * t for a, t in zip(aspect, task, strict=True)]
