"""
The reward of a rationale: what its text is like, and whether M_L answers right from it.

    R = R_aspect + w_task R_taskAcc,   R_aspect = Σ w_i s_i

First R and its two parts, then what an aspect sees and the aspects (eight functions from a Reading to a score s_i in
[0, 1]), then how a text is read. The aspects have the names of Lee et al. 2024 (arXiv 2404.03414). How the paper
measures them is not public, so the definitions are ours: rules on text with constants set by hand, no model. They never
see the gold answer. Each docstring says what its rule is blind to. `lab/validity.py` breaks one at a time.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import data
from plumbing.answers import split_conclusion
from plumbing.markup import clean, fold, split

ASPECTS = (
    "factuality", "relevance", "logicality", "consistency", "coherence", "fluency", "naturalness", "readability"
)  # fmt: skip
Words = frozenset[str]

# ---- 1. The reward ---------------------------------------------------------------------------------------------------


def quality(rationale: str, example: data.Example, prediction: str | None = None, weights: dict | None = None) -> dict:
    """R_aspect and the eight aspects of a rationale for this question, before or after M_L's answer from it."""
    scores = aspects(rationale, example.question, example.context, prediction)
    return {"R_aspect": r_aspect(scores, weights), **scores}


def r_aspect(scores: dict, weights: dict | None = None) -> float:
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

    "sum" is R_aspect + w_task R_taskAcc. "standardized" first turns both into (x − mean) / max(standard deviation, .05)
    over all values seen so far, with this batch (the parallel form of Welford's update, Chan et al. 1983).
    `vars(combination)` is its whole state, in plain numbers and lists; train_rl.py saves it.
    """

    how: str = "sum"
    task_weight: float = 4.0  # w_task
    count: int = 0
    means: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of R_aspect and of R_taskAcc
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums of squared distances from the mean

    def __call__(self, aspect: Sequence[float], task: Sequence[float]) -> list[float]:
        if self.how == "standardized":
            aspect, task = self._standardize(0, aspect), self._standardize(1, task)
            self.count += len(aspect)
        return [a + self.task_weight * t for a, t in zip(aspect, task, strict=True)]

    def _standardize(self, part: int, values: Sequence[float]) -> list[float]:
        total = self.count + len(values)
        mean = math.fsum(values) / len(values)
        gap = mean - self.means[part]
        self.squares[part] += math.fsum((x - mean) ** 2 for x in values)
        self.squares[part] += gap**2 * self.count * len(values) / total
        self.means[part] += gap * len(values) / total
        deviation = max(math.sqrt(self.squares[part] / total), 0.05)
        return [(x - self.means[part]) / deviation for x in values]


# ---- 2. What an aspect sees, and the eight aspects -------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A rationale beside its question and context: all that an aspect gets to see."""

    sentences: list[Sentence]  # of the whole text
    steps: list[Sentence]  # the statements of its reasoning, without the conclusion
    conclusion: str  # "So the answer is …" in the text, else M_L's prediction, else ""
    is_concluded: bool  # whether the text itself states the conclusion
    question: Sentence
    context: Context


@dataclass(frozen=True)
class Sentence:
    """Names, terms and subject are in lower case and without 's."""

    text: str
    words: list[str]  # in lower case, without punctuation
    mentions: list[Words]  # names and numbers, each the set of its words: {"ann", "lie"}, {"1950"}
    names: Words  # the words of all mentions
    terms: Words  # names, and the stems of the other open words
    subject: Words  # the names before the first verb, else the first name
    points_back: bool  # it speaks of "he" or "the album" before it names anybody
    # Of a step of the reasoning, beside the context:
    support: float = 0.0  # how far a sentence of the context says the same
    about: Words = frozenset()  # its names, and those of the subject that it points back to


def aspects(rationale: str, question: str, context: str, prediction: str | None = None) -> dict[str, float]:
    """The eight scores of a rationale, each in [0, 1], in the order of `ASPECTS`. M_L's `prediction` counts as the
    conclusion where the text states none. A text without a statement (empty, a question, a bare answer) gets 0s."""
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
    return (sum(supports) / len(supports) + min(supports)) / 2


def relevance(r: Reading) -> float:
    """It is about what was asked. The share of the question's terms that it takes up, times the share of steps that
    names link to it, directly or through earlier steps, times `brevity`. The question's side of ROSCOE's semantic
    alignment (Golovneva et al. 2023). Blind to synonyms."""
    reached, said, linked = r.question.names, frozenset(), 0
    for step in r.steps:
        said |= step.terms | step.about
        if step.about & reached:
            reached |= step.about
            linked += 1
    return r.context.share(r.question.terms, said) * linked / len(r.steps) * brevity(r)


def brevity(r: Reading) -> float:
    """1 up to half as many steps as the context has sentences, down to 0 for as many: nothing was selected. A context
    counts as four sentences at least: two steps are never too many."""
    crowding = len(r.steps) / max(4, len(r.context.sentences))
    return max(0.0, min(1.0, 2 - 2 * crowding))


def logicality(r: Reading) -> float:
    """The conclusion follows from the premises. A product: the squared share of steps that lead on (of at least two,
    because one alone is a look-up); the share of the question's names that they hold; `follows`. Links between names
    stand for the entailment model of ROSCOE's reasoning alignment. Blind to what a link means."""
    leading, named = 0, frozenset()
    for step in r.steps:  # it leads on with a new name of the question, or with one that an earlier step brought
        leading += not step.about.isdisjoint(r.question.names ^ named)
        named |= step.about
    chain = (leading / max(2, len(r.steps))) ** 2
    return chain * r.context.share(r.question.names, named) * follows(r)


def follows(r: Reading) -> float:
    """How well the steps support the conclusion: 1 if it fits, 0 if not, .5 if nothing can be told. For "yes", "no" and
    "who was first" the two sides are compared. Else it is the largest share of the conclusion's words in one step; 1
    without a conclusion."""
    answer = data.normalize_answer(r.conclusion)
    a, b = compared(r)
    if answer in ("yes", "no"):
        if not a or not b or " same " not in r.question.text:
            return 0.5
        shared = set(a[-1].mentions) & set(b[-1].mentions)
        return float((answer == "yes") == bool(shared))

    if a and b and _ORDER.search(r.question.text):  # a side's last step has the year, its first the name
        year_a = _YEAR.search(a[-1].text)
        year_b = _YEAR.search(b[-1].text)
        if not year_a or not year_b:
            return 0.5
        if answer and year_a[0] != year_b[0]:
            asks_earlier = bool(_EARLIER.search(r.question.text))
            if (year_a[0] < year_b[0]) != asks_earlier:
                a, b = b, a  # a has won
            winner = a[0].about - b[0].about
            return float(not winner.isdisjoint(read_sentence(r.conclusion).names))

    words, most = set(answer.split()), 0
    for step in r.steps:
        found = words.intersection(data.normalize_answer(step.text).split())
        most = max(most, len(found))
    return most / len(words) if words else 1.0


_YEAR = re.compile(r"\b[12]\d{3}\b")
_EARLIER = re.compile(r"\b(?:first|earlier|earliest|older|oldest|elder)\b")
_ORDER = re.compile(_EARLIER.pattern + r"|\b(?:later|latest|last|younger|youngest|newer|more recently)\b")


def compared(r: Reading) -> tuple[list[Sentence], list[Sentence]]:
    """The steps about A and those about B, for a question about "A or B" or "A and B". A step belongs to the side with
    which it shares more names, and brings its other names into that side."""
    between = " or " if " or " in r.question.text else " and "
    left, _, right = r.question.text.rpartition(between)
    left_names, right_names = read_sentence(left).names, read_sentence(right).names
    shared = left_names & right_names  # they tell nothing: Lie, of Ann Lie and Bo Lie
    names_a, names_b = left_names - shared, right_names - shared
    steps_a, steps_b = [], []
    for step in r.steps:
        nearer_a = len(step.about & names_a) - len(step.about & names_b)
        if nearer_a > 0:
            steps_a.append(step)
            names_a |= step.about - names_b - shared
        elif nearer_a < 0:
            steps_b.append(step)
            names_b |= step.about - names_a - shared
    return steps_a, steps_b


def consistency(r: Reading) -> float:
    """No step contradicts another: 1 / (1 + contradicting pairs). Two steps contradict where one negates the other, or
    where they say the same of one subject with another name or number (born in 1945, born in 1950).
    ROSCOE's self-consistency, with rules in place of a model. Blind to contradiction in other words."""
    pairs = itertools.combinations(r.steps, 2)
    return 1 / (1 + sum(contradict(earlier, later) for earlier, later in pairs))


def contradict(a: Sentence, b: Sentence) -> bool:
    """Whether one step negates the other, or gives another value for the same."""
    only_a, only_b = a.terms - b.terms, b.terms - a.terms
    differing = only_a | only_b
    if NEGATIONS.isdisjoint(a.words) != NEGATIONS.isdisjoint(b.words):
        return len(differing) <= 0.2 * len(a.terms | b.terms)
    if not only_a or not only_b or a.subject.isdisjoint(b.subject):
        return False
    if not differing <= a.names | b.names:  # they also differ in what they say
        return False
    return min(only_a)[0].isdigit() == min(only_b)[0].isdigit()  # two names, or two numbers


def coherence(r: Reading) -> float:
    """Each step picks up what is already there: the share of steps with a name of the question or of an earlier step. A
    step that points back ("He was …") counts half, unless the step just before is about its subject. Given before new
    (Clark & Haviland 1977; entity grids, Barzilay & Lapata 2008). Blind to order where all steps share a name."""
    given, just_before, total = r.question.names, frozenset(), 0.0
    for step in r.steps:
        subject = step.about - step.names or step.about
        if step.about & given:
            total += 0.5 if step.points_back and not subject & just_before else 1.0
        given |= step.about
        just_before = step.about
    return total / len(r.steps)


# Which class of word follows which (classes: see CLASS). "DN" is "the film", ^ and $ are the sentence's start and end.
_LIKELY = "^D ^N ^O ^P DN PD PN VD VN VP CD CN CO OV ON NP NV NC N$"
_POSSIBLE = "^C PO VV CP CV OP OD NO NN ND"


def fluency(r: Reading) -> float:
    """The words stand in an order that English allows. The squared mean over neighbouring words: 1 for a pair that the
    context has, else 1, .5 or 0 by the classes of the two; 0 for a start in lower case. A bigram model of the context
    that backs off to word classes. Blind to grammar beyond two words."""
    scores = []
    for s in r.sentences:
        start = "?" if s.text[0].islower() else "^"  # "?": no pair begins with it
        classes = [start, *[CLASS.get(word, "N") for word in s.words], "$"]
        neighbours = itertools.pairwise(["^", *s.words, "$"])
        for words, (a, b) in zip(neighbours, itertools.pairwise(classes), strict=True):
            if words in r.context.bigrams or a + b in _LIKELY:
                scores.append(1.0)
            else:
                scores.append(0.5 if a + b in _POSSIBLE else 0.0)
    return (sum(scores) / len(scores)) ** 2


def naturalness(r: Reading) -> float:
    """It reads as if somebody meant it. A product: the share of steps that say more than each earlier one; the squared
    share of words without a loop (three words that the sentence has had; Welleck et al. 2020); the share of sentences
    that say something of what is known, or conclude; `brevity`. Blind to boilerplate about what is known."""
    fresh = meant = 0
    for i, step in enumerate(r.steps):
        fresh += not any(step.terms <= earlier.terms for earlier in r.steps[:i])
        known = step.terms & (r.question.terms | r.context.counts.keys())
        meant += bool(known & step.names) or len(known) >= 0.75 * len(step.terms)
    words, looped = 0, 0
    for sentence in r.sentences:
        words += len(sentence.words)
        phrases = list(zip(sentence.words, sentence.words[1:], sentence.words[2:], strict=False))
        looped += len(phrases) - len(set(phrases))
    unlooped = (1 - looped / words) ** 2
    spoken = min(1.0, (meant + r.is_concluded) / len(r.sentences))
    return fresh / len(r.steps) * unlooped * spoken * brevity(r)


def readability(r: Reading) -> float:
    """Easy on the eye: 1 / (1 + (length/30)² + (clutter/.15)²). Length, in words, is that of the sentence in which an
    average word stands: short sentences do not make up for a run-on. Clutter is symbols per word, other than
    . , ! ? quotes and dashes. Sentence length is the core of most formulas (Flesch 1948). Blind to hard words."""
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
PRONOUNS = {"he", "she", "it", "they", "his", "her", "its", "their", "this", "these"}
NEGATIONS = {"not", "no", "never", "neither", "nor", "cannot"}
# An open word that is a verb: directed, lives (but not status, class), won.
_VERB = re.compile(r"[a-z]{2,}(?:ed|[^us]s)$|(?:born|built|came|became|began|found|held|led|left|lost|made|won|wrote)$")


def read(rationale: str, question: str, context: str, prediction: str | None = None) -> Reading:
    text = fold(clean(rationale))
    reasoning, stated = split_conclusion(text)
    asked, known = read_sentence(fold(question)), read_context(context)
    said = sentences_of(reasoning, asked, known)
    steps = [s for s in said if is_statement(s, asked)]
    # "Since Ann was born in Oslo, the answer is Oslo." counts as two sentences.
    rest = re.sub(r"^, *(.)", lambda first: "\n" + first[1].upper(), text.removeprefix(reasoning))
    sentences = sentences_of(reasoning + rest, asked, known) if rest else said
    return Reading(sentences, steps, stated or fold(prediction or ""), bool(stated), asked, known)


# An opener says nothing.
_CLOSED = "|".join([word for word in CLASS if CLASS[word] in "DPO"])
_BULLET = re.compile(r"[\s*•#>→–—-]+")
# A label: "Step 1:", "(a)", "2."
_LABEL = re.compile(r"[(\[]?(?:[A-Za-z'’]+ ){0,3}#?\w{1,9}(?:[:)\]]+|(?<=\d)\.|(?= [–—-] ))(?:\W+|$)")
# A phrase in lower case: "In addition,", "It is known that", "We can see that"
_PHRASE = re.compile(r"(?:We(?: [a-z]+)?|It is) [a-z]+ that |[A-Za-z]+(?: [a-z]+){0,5}(?:, | that (?=[A-Z]))")
# A word before a small word or a name, which is the group: "Next the film", "Then Ann"
_ADVERB = re.compile(rf"(?!(?i:{'|'.join(CLASS)})\b)[A-Z]\w+ (?=[\"“‘'(]*(?:(?i:{_CLOSED})\b|\d|([A-Z]\w*)))")
# What begins a name: a capital after a small word or a stop, but not in "However, …"; "According to …" names nobody.
_BEGINS = re.compile(r"(?:^|[^\w\s]\s?|\b[a-z]+ )([^\W\d_a-z]\w+)(?![\w,])")
_NO_NAME = re.compile(rf"([A-Z]\w+) (?:{_CLASSES['P'].replace(' ', '|')})\b")


def without_opener(text: str, context: Context) -> str:
    """ "1) First, Ann was born." → "Ann was born." What begins with a name that the context knows stays as it is."""
    for form in (_BULLET, _LABEL, _PHRASE, _ADVERB):
        opener = form.match(text)
        if opener and context.names.isdisjoint(re.findall(r"[A-Z]\w+", opener.group())):
            next_name = form is _ADVERB and opener.group(1)
            if not next_name or next_name in context.begins:  # not "Zed Lie" where the context has only Ann Lie
                text = capitalized(text[opener.end() :])
    return text


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


# What may join two statements: "A; B", "A, so B", and after "Since" a comma alone. A name or a small word follows.
_JOINT = re.compile(
    r"(?:; (?:[a-z]+, )?|, (?:(?:and|but|so|while|because|since|as|hence|thus|therefore) )?)"
    rf"(?!wh)(?=[\"“'(]*(?:[A-Z\d]|(?i:{_CLOSED})\b))"
)
_SINCE = ("Since ", "Because ", "As ", "While ")


def clauses(text: str, question: Sentence, context: Context) -> list[Sentence]:
    """A sentence, or the two statements that it joins if the context supports these better."""
    whole = context.lay_beside(read_sentence(text))
    best, support = [whole], whole.support
    for joint in _JOINT.finditer(text):
        if joint.group() == ", " and not text.startswith(_SINCE):
            continue
        pair = []
        for part in (text[: joint.start()], text[joint.end() :]):
            pair.append(context.lay_beside(read_sentence(capitalized(part))))
        mean = (pair[0].support + pair[1].support) / 2
        both_say_something = all(part.names and is_statement(part, question) for part in pair)
        if both_say_something and mean > support:
            best, support = pair, mean
    return best


def sentences_of(text: str, question: Sentence, context: Context) -> list[Sentence]:
    """The sentences of a rationale without their openers. Two words or less ("Step 1", "a.") are none."""
    found = []
    for part in split(text):
        found += clauses(without_opener(part, context), question, context)
    return [sentence for sentence in found if len(sentence.words) > 2]


def is_statement(s: Sentence, question: Sentence) -> bool:
    """Whether it says something of somebody: what a question, its repetition, a bare answer and a fragment do not."""
    if s.text.endswith("?"):
        return False
    repeats = s.terms <= question.terms and len(s.terms) > 0.75 * len(question.terms)
    has_verb = any(is_verb(word) for word in s.words if word not in s.names)
    has_subject = bool(s.names or PRONOUNS.intersection(s.words))
    return has_verb and has_subject and not repeats


def is_verb(word: str) -> bool:
    """Of a word in lower case, "was" or "directed"; a noun in the plural counts, too."""
    return CLASS.get(word) == "V" or bool(_VERB.match(word))


_WORD = re.compile(r"\d+(?:[.,]\d+)*\w*|[^\W_]+(?:['’][^\W_]+)*")  # 1,000th, Lyra's
_DEFINITE = re.compile(r"the(?! [a-z]+(?: [a-z]+)? of\b) [a-z]", re.I)  # "the album", but not "the birth year of"


@lru_cache(maxsize=65536)
def read_sentence(text: str) -> Sentence:
    words, stems = [], []
    mentions = []
    subject = frozenset()
    points_back = after_verb = False
    name_end = 0
    for match in _WORD.finditer(text):
        word = match.group()
        words.append(word.lower())
        key = word.lower().removesuffix("'s").removesuffix("’s")
        is_number = word[0].isdigit()
        is_capital = len(word) > 1 and not word[0].islower()
        if (is_number or is_capital) and key not in CLASS:  # a name
            if not mentions or text[name_end : match.start()] != " ":  # else the same mention goes on
                mentions.append(frozenset())
            mentions[-1] |= {key}
            name_end = match.end()
            in_subject = not after_verb or not subject or len(mentions) == 1
            if in_subject and not is_number:
                subject |= {key}
            continue
        if not subject and (key in PRONOUNS or _DEFINITE.match(text, match.start())):
            points_back = True
        after_verb = after_verb or is_verb(key)
        if len(key) > 1 and key not in CLASS and key not in NEGATIONS:
            stems.append(key[:4])  # live and lives are one term, and so are director and directed

    names = frozenset().union(*mentions)
    return Sentence(text, words, mentions, names, names.union(stems), subject, points_back)


class Context:
    """The sentences of a context. The subject of one that points back is that of the sentence before."""

    def __init__(self, text: str):
        text = fold(text)
        self.sentences = [read_sentence(sentence) for sentence in split(text)]
        self.begins = set(_BEGINS.findall(text)) - set(map(str.capitalize, CLASS))
        written_small = set(map(str.capitalize, re.findall(r"\b[a-z]+\b", text)))
        self.names = self.begins - written_small - set(_NO_NAME.findall(text))
        self.bigrams = set()  # pairs of neighbouring words
        self.subjects = []
        self.terms = []  # of each sentence and its subject
        subject = frozenset()
        for s in self.sentences:
            self.bigrams.update(itertools.pairwise(s.words))
            if not s.points_back:
                subject = s.subject
            self.subjects.append(subject)
            self.terms.append(s.terms | subject)
        self.counts = Counter(itertools.chain.from_iterable(self.terms))  # how many sentences have a term

    def share(self, terms: Words, said: Words) -> float:
        """Of the terms that the context has, the share that is `said`; 1 if there is none. A term weighs 1 / sentences
        that have it."""
        weights = {term: 1 / self.counts[term] for term in terms & self.counts.keys()}
        found = map(weights.get, weights.keys() & said)
        return math.fsum(found) / math.fsum(weights.values()) if weights else 1.0  # fsum: a set has no order

    def lay_beside(self, step: Sentence) -> Sentence:
        """Adds to a step its support and what it is about. Support is that of the best sentence, taken with its
        subject: the product over the step's mentions of the share of words found, times .9 + .1 × the share of its
        other terms (of those that the context has: the rest is a paraphrase). About: the step's names, and if it points
        back the subject of that sentence."""
        others = (step.terms - step.names) & self.counts.keys()
        best, best_subject = 0.0, frozenset()
        for terms, subject in zip(self.terms, self.subjects, strict=True):
            if step.terms.isdisjoint(terms):
                continue
            support = 0.9 + 0.1 * (len(others & terms) / len(others) if others else 1.0)
            for mention in step.mentions:
                support *= len(mention & terms) / len(mention)
            if support >= best:  # of equals the last, as a text goes on from what it has just said
                best, best_subject = support, subject
        if not step.points_back:
            best_subject = frozenset()
        return replace(step, support=best, about=step.names | best_subject)


read_context = lru_cache(maxsize=1024)(Context)
