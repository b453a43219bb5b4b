"""LM-guided chain of thought: a small LM writes the rationale, a large frozen LM answers from it.

    python lmcot.py                                          # one TinyWiki question: context, rationale, answer
    python lmcot.py --example tiny-test-4-7                  # another one, by its id
    python lmcot.py --demo                                   # the first of each type, by every method side by side
    python lmcot.py --question "…" --context "…"             # your own
    python lmcot.py --large http://localhost:8000/v1 --large-model NAME       # M_L on an OpenAI-compatible server

Lee et al. 2024 (arXiv 2404.03414). M_S, the small LM, is the only one that is ever trained (`train_kd.py`,
`train_rl.py`). M_L, the large LM, is a black box: texts in, texts out. It never sees a reward or a gold answer.
A server that wants a key gets the one in the environment variable LMCOT_API_KEY, and no other server ever does.
Departures from the paper: its prompts are not public beyond their structure (Figure 1), so these are ours.
"""

import itertools
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

import data
from data import Example
from model import T5, load_tokenizer, log_softmax, never_written, pad_batch
from plumbing import processes
from plumbing.command import at_least_one, parse_settings, run_main
from plumbing.errors import UserError
from plumbing.server import ServedLM

# ------------------------------------------------------------------------------------------------ prompts, all of them

STANDARD = "Answer the question based on the context.\nQuestion: {question}\nContext: {context}\nAnswer:"
COT = "Answer the question based on the context.\nQuestion: {question}\nContext: {context}\nLet's think step by step."
TWO_STAGE = COT + " {rationale}\nTherefore, the answer is"  # where the first pass named no answer
RATIONALE = (  # the only prompt that M_S sees
    "Based on the context, generate reasoning step by step to answer the question. "
    "Question: {question} Context: {context} Reasoning:"
)
GUIDED = (
    "Answer the question based on the context and the reasoning.\n"
    "Question: {question}\nContext: {context}\nReasoning: {rationale}\nAnswer:"
)
CONCLUSION = "So the answer is {answer}."  # how a chain of thought ends; `parse_cot` finds it

_CONCLUSION = re.compile(
    r"(?:[\s,;:]{0,9}(?:\b(?:so|thus|hence|therefore)\b,?\s*)?"  # "So the answer is", "The final answer is:"
    r"\bthe (?:final |correct )?answer(?: to (?:the|this) question)?(?: is:?|:)\s+"
    r"|(?:^|(?<=[.!?]))[\s#>_-]{0,9}(?:final )?answer:\s+"  # a label: "### Final Answer: Paris"
    r"|(?=[$\\]\S{0,9}boxed))(?:(?:\$|\\[(\[])*\\boxed\{(?:\\text\w*\{)?)?",  # LaTeX, also alone: $\boxed{Paris}$
    re.I | re.M,
)
ABBREVIATIONS = ("[A-Z]", "St", "Ft", "Mt", "Dr", "Mr", "Mrs", "Ms", "Jr", "Sr", "vs", "Inc", "Ltd", "Co", "Corp")
# A prediction ends at a full stop (not at those of St. Louis, J. R. R. Tolkien and No. 10), with its line or box, or
# before a reason.
_END = re.compile(
    r"(?=\.)" + "".join(rf"(?<!\b{word})" for word in ABBREVIATIONS) + r"(?!(?:(?<=\bNo)|(?<=\bc))\.\s\d)"
    r"""\.(?=["”]?(?:\s|$))|\n|\}|,? because\b"""
)
_ASIDE = re.compile(r"(?s)\A.*</think>|<think>.*|\*\*")  # thoughts (some servers drop the opening tag) and bold type
_QUOTED = re.compile(r"""^["“]([^"“”]+)["”]?$""")
# "Yes, because …" is a yes (the official F1 knows the bare word only); "No. 10" and "Yes, Prime Minister" are names.
_VERDICT = re.compile(r"^((?i:yes|no))(?:\.\s+(?!\d)|\s*[,;:!–—-]+\s+(?=[a-z]|(?:\S+\s+){3}\S)).*")


def bare(prediction: str) -> str:
    """A prediction without quotation marks around it, and without what explains a yes or no."""
    return _VERDICT.sub(r"\1", _QUOTED.sub(r"\1", prediction.strip()))


def parse_cot(text: str) -> tuple[str, str]:
    """Chain of thought → (reasoning, prediction); the prediction is "" where no "the answer is …" is found.

    The last such phrase counts, and its first sentence is the prediction. The reasoning ends where that prediction is
    first stated, so that an answer said twice does not stay in it.
    """
    text = _ASIDE.sub("", text).strip()
    marks = list(_CONCLUSION.finditer(text))
    if not marks:
        return text, ""
    predictions = [bare(_END.split(text[mark.end() :][:999], maxsplit=1)[0]) for mark in marks]
    first = marks[predictions.index(predictions[-1])]
    return text[: first.start()].strip(), predictions[-1]


def parse_answer(text: str) -> str:
    """What a model says when asked for an answer → the prediction: what "the answer is …" states in its first sentence,
    or after other lines; else the first line. A short answer, as FLAN gives it, stays as it is."""
    before, prediction = parse_cot(text)
    text = _ASIDE.sub("", text).strip()
    return prediction if prediction and ("\n" in text or not _END.search(before)) else bare(text.partition("\n")[0])


# ------------------------------------------------------------------------------------------------ the methods


class LM:
    """A language model as a black box, and all that the methods know of one: `complete` turns texts into texts.

    `max_input_tokens`, as `count_tokens` counts, is the longest prompt `fill` will build; `batch_size` texts are
    written at once. Since `restart`, `cut` counts the prompts whose context was shortened, `unfinished` the texts that
    reached their length limit, `tokens_written` all tokens generated, for the cost columns of `eval.py`.
    """

    complete: Callable[..., list[str]]  # (prompts, max_new_tokens, temperature=0.0, progress="") → a text for each
    count_tokens: Callable[[str], int]
    max_input_tokens: int
    batch_size: int

    def restart(self, seed: int) -> None:
        """Sets the counters to 0; `seed` decides what is sampled from here on."""
        self.tokens_written = self.cut = self.unfinished = 0


def fill(template: str, lm: LM, examples: Sequence[Example], rationales: Sequence[str] | None = None) -> list[str]:
    """One prompt per example. A context too long for `lm` loses whole sentences; `lm.cut` counts these prompts."""
    prompts = []
    for i, example in enumerate(examples):
        parts = {"question": example.question, "rationale": rationales[i] if rationales else ""}

        def prompt_of(context: str, parts: dict = parts) -> str:
            return template.format(context=context, **parts)

        prompt = prompt_of(example.context)
        if len(prompt.encode()) >= lm.max_input_tokens:  # a token has at least one byte: most prompts need no counting
            context, cut = data.fit_context(example, prompt_of, lm.count_tokens, lm.max_input_tokens)
            prompt, lm.cut = prompt_of(context), lm.cut + cut
        prompts.append(prompt)
    return prompts


@dataclass
class Thought:
    """One chain of thought of M_L. `parsed` is False where the prediction needed the second stage."""

    rationale: str
    prediction: str
    parsed: bool = True


def standard(large: LM, examples: Sequence[Example], progress: str = "") -> list[str]:
    """Standard prompting: M_L's answers to question and context."""
    return list(map(parse_answer, large.complete(fill(STANDARD, large, examples), ANSWER_TOKENS, progress=progress)))


def chain_of_thought(
    large: LM, examples: Sequence[Example], max_new_tokens: int = 256, temperature: float = 0.0, progress: str = ""
) -> list[Thought]:
    """Zero-shot CoT (Kojima et al. 2022): M_L writes reasoning and answer in one pass; where no answer is found in it,
    a second pass asks for one."""
    texts = large.complete(fill(COT, large, examples), max_new_tokens, temperature, progress)
    thoughts = [Thought(*parse_cot(text)) for text in texts]
    failed = [i for i, thought in enumerate(thoughts) if not thought.prediction]
    prompts = fill(TWO_STAGE, large, [examples[i] for i in failed], [thoughts[i].rationale for i in failed])
    for i, text in zip(failed, large.complete(prompts, ANSWER_TOKENS), strict=True):
        thoughts[i] = Thought(thoughts[i].rationale, parse_answer(text), parsed=False)
    return thoughts


def write_rationales(
    small: LM, examples: Sequence[Example], max_new_tokens: int = 256, temperature: float = 0.0, progress: str = ""
) -> list[str]:
    """M_S's rationale for each example (repeat an example to sample several)."""
    return small.complete(fill(RATIONALE, small, examples), max_new_tokens, temperature, progress)


def answer(large: LM, examples: Sequence[Example], rationales: Sequence[str], progress: str = "") -> list[str]:
    """LM-guided answering: M_L's answer to question, context and a rationale that somebody else wrote."""
    texts = large.complete(fill(GUIDED, large, examples, rationales), ANSWER_TOKENS, progress=progress)
    return list(map(parse_answer, texts))


ANSWER_TOKENS = 32  # room for an answer, in tokens


def majority(predictions: Sequence[str]) -> int:
    """Self-consistency (Wang et al. 2023): the index of the prediction that wins the vote over normalised answers.
    Among tied answers the one sampled first wins; what names no answer has no vote."""
    votes = Counter(map(data.normalize_answer, predictions))
    votes[""] = 0
    return max(range(len(predictions)), key=lambda i: (votes[data.normalize_answer(predictions[i])], -i))


def select(scores: Sequence[float]) -> int:
    """Rationale selection: the index of the best of N rationales by their scores; the first among equals."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def side_by_side(examples: Sequence[Example], before: LM, after: LM, max_new_tokens: int) -> str:
    """What training did to the rationales of some questions, to be read."""
    rows = zip(examples, *(write_rationales(lm, examples, max_new_tokens) for lm in (before, after)), strict=True)
    return "\n\n".join(f"Question  {example.question}\n  rationale before  {old}\n  rationale after   {new}\n"
                       f"  gold answer       {example.answer}"
                       for example, old, new in rows)  # fmt: skip


# ------------------------------------------------------------------------------------------------ two black boxes


class LocalLM(LM):
    """A T5 on this machine."""

    def __init__(self, model: T5, tokenizer: Tokenizer, max_input_tokens=1024, batch_size=64, seed=0):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_input_tokens, self.batch_size = max_input_tokens, batch_size
        self.device = model.shared.weight.device
        entries = 1 + max((*tokenizer.get_vocab().values(), *tokenizer.encode("").ids))
        if entries > model.config.vocab_size:
            raise UserError(f"this tokenizer has {entries} entries and the model only "
                            f"{model.config.vocab_size}: they do not belong together")  # fmt: skip
        self.forbid = never_written(model, tokenizer)
        self.restart(seed)

    @classmethod
    def load(cls, folder: str | Path, dtype=torch.float32, device="cpu", frozen=False, **options) -> "LocalLM":
        model = T5.from_pretrained(folder, dtype, device).requires_grad_(not frozen)
        return cls(model, load_tokenizer(folder), **options)

    def restart(self, seed: int) -> None:
        super().restart(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def decode(self, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
        """Generated ids and their mask, (R, T) each → R texts."""
        rows = [row[:length] for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        return [text.strip() for text in self.tokenizer.decode_batch(rows)]

    def complete(self, prompts: Sequence[str], max_new_tokens: int, temperature=0.0, progress="") -> list[str]:
        """One text for each prompt, in order; greedy at temperature 0. A prompt that occurs n times is encoded once and
        gets n samples (or, when greedy, one text n times). `progress` names a progress bar."""
        copies = Counter(prompts)
        written: dict[str, list[str]] = {}
        ids = {p: e.ids for p, e in zip(copies, self.tokenizer.encode_batch(list(copies)), strict=True)}
        todo = sorted(copies, key=lambda p: (copies[p], len(ids[p])), reverse=True)  # batches of like lengths
        bar = tqdm(total=len(copies), desc=progress, disable=not progress, mininterval=0.5)
        while todo:
            samples = copies[todo[0]] if temperature else 1
            size = max(1, self.batch_size // samples)
            batch = [p for p in todo[:size] if not temperature or copies[p] == samples]
            todo = todo[len(batch) :]
            source, mask = pad_batch([ids[p] for p in batch], device=self.device)
            out = self.model.generate(source, mask, max_new_tokens, samples, temperature,
                                      forbid=self.forbid, generator=self.generator)  # fmt: skip
            self.tokens_written += int(out.mask.sum())
            eos = self.model.config.eos_token_id
            self.unfinished += int(out.mask.any(2).sum() - (out.ids == eos).any(2).sum())
            texts = self.decode(out.ids.flatten(0, 1), out.mask.flatten(0, 1))
            for i, prompt in enumerate(batch):
                written[prompt] = texts[i * samples : (i + 1) * samples]
            bar.update(len(batch))
        bar.close()
        turns = {prompt: itertools.cycle(texts) for prompt, texts in written.items()}
        return [next(turns[prompt]) for prompt in prompts]

    @torch.no_grad()
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Log-probability (nats, summed over tokens and EOS) of each answer after its prompt."""
        scores: list[float] = []
        for start in range(0, len(prompts), self.batch_size):
            (source, mask), (target, target_mask) = (
                pad_batch([e.ids for e in self.tokenizer.encode_batch(list(texts))], device=self.device)
                for texts in (prompts[start : start + self.batch_size], answers[start : start + self.batch_size])
            )
            logp = log_softmax(self.model(source, mask, self.model.shift_right(target)), self.forbid)
            logp = logp.gather(2, target[..., None])[..., 0].masked_fill(target_mask == 0, 0.0)
            scores += logp.sum(1).tolist()
        return scores


# ------------------------------------------------------------------------------------------------ settings


@dataclass
class Models:
    """The settings that all scripts share: which models, and where they compute."""

    small: str = "tiny/small"  # M_S: a folder, or a name on the Hugging Face hub
    large: str = "tiny/large"  # M_L: the same, or the address of an OpenAI-compatible server, http://host:8000/v1
    large_model: str = ""  # the name of M_L on that server
    concurrency: int = 8  # requests that a server gets at once
    device: str = "auto"  # where M_S computes: auto (cuda if there, else mps, else cpu), cpu, cuda, cuda:1, mps
    large_device: str = ""  # where M_L computes (default: where M_S does)
    large_dtype: str = "float32"  # of M_L on this machine: float32, or bfloat16, which halves its memory
    max_input_tokens: int = 1024  # longer contexts lose whole sentences
    decode_batch_size: int = 128  # texts written at once on this machine; smaller for large models

    NOT_COMPARED: ClassVar[tuple[str, ...]] = ("concurrency", "device", "large_device")

    def check(self) -> None:
        if self.large_dtype not in ("float32", "bfloat16"):
            raise ValueError("--large-dtype is float32 or bfloat16")
        if ("://" in self.large) != bool(self.large_model):
            raise ValueError("--large http://host:8000/v1 and --large-model NAME go together")
        at_least_one(self, "concurrency", "max_input_tokens", "decode_batch_size")


def load_small(models: Models, place: str | Path) -> LocalLM:
    """The M_S of `models`, or one that training left in a folder."""
    return LocalLM.load(here(place), device=find_device(models.device), max_input_tokens=models.max_input_tokens,
                        batch_size=models.decode_batch_size)  # fmt: skip


def load_large(models: Models, run_folder: str | None = None) -> LM:
    """M_L, frozen. What a server answers stays in http_cache.jsonl in the run's folder, for this run alone."""
    if models.large_model:
        rank, _ = processes.rank_and_size()  # each process writes its own
        cache = Path(run_folder) / f"http_cache{rank or ''}.jsonl" if run_folder else None
        return ServedLM(models.large, models.large_model, models.max_input_tokens, models.concurrency, cache)
    device, dtype = find_device(models.large_device or models.device), getattr(torch, models.large_dtype)
    return LocalLM.load(here(models.large), dtype=dtype, device=device, frozen=True,
                        max_input_tokens=models.max_input_tokens, batch_size=models.decode_batch_size)  # fmt: skip


def find_device(name: str) -> str:
    """auto: the best there is; cuda: under torchrun, one GPU for each process. UserError if there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.Generator(name)
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {name!r} on this machine (auto takes the best there is)") from None
    return name


def here(place: str | Path) -> str | Path:
    """A folder or hub name as given, or, for the embedded pair from elsewhere, the folder beside this file."""
    beside = Path(__file__).resolve().parent / place
    return beside if not Path(place).exists() and beside.exists() else place


# ------------------------------------------------------------------------------------------------ one question


@dataclass
class Settings(Models):
    demo: bool = False  # every method side by side, on the first question of each type or on the one that you name
    question: str = ""  # your own question; needs --context
    context: str = ""  # the text in which the answer stands
    example: str = ""  # id of an example of --data (default: the first)
    data: str = "tiny"  # tiny, hotpotqa, 2wiki (downloaded once), or a file (forms: data.py, load)
    small: str = ""  # M_S (default: the first that there is of --rl, --kd, tiny/small; in the demo, tiny/small)
    kd: str = "runs/kd"  # run folder of train_kd.py
    rl: str = "runs/rl"  # run folder of train_rl.py

    def check(self) -> None:
        super().check()
        if bool(self.question) != bool(self.context):
            raise ValueError("--question and --context go together")
        if self.question and self.example:
            raise ValueError("give --question or --example, not both")
        if re.search("[\ud800-\udfff]", self.question + self.context):  # how Python keeps bytes that are no text
            raise ValueError("--question and --context must be UTF-8 text")


def refuse_unknown_words(where: str, example: Example, *lms: LM) -> None:
    """UserError where the embedded pair has never read a word of the example; other LMs have pieces for all English."""
    words = re.findall(r"[^\s.,?:!]+", f"{example.question} {example.context}")
    for tokenizer in (lm.tokenizer for lm in lms if isinstance(lm, LocalLM)):
        if tokenizer.token_to_id("▁Stormgate") is not None:  # a film of TinyWiki
            unknown = [word for word in dict.fromkeys(words) if tokenizer.token_to_id("▁" + word) is None]
            if unknown:
                some = ", ".join(map(repr, unknown[:8])) + " …" * (len(unknown) > 8)
                raise UserError(f"{where} is outside TinyWiki: the tiny pair has never read {some} and could only "
                                "guess: give other models with --small and --large")  # fmt: skip


def show(examples: Sequence[Example], methods: dict[str, Sequence[tuple[str, str]]]) -> None:
    """Prints each question and, side by side, every method's (rationale, prediction), in 80 columns."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for i, example in enumerate(examples):
        for name, text in (("Question", example.question), ("Context", example.context), ("Gold", example.answer)):
            if text:  # your own question has no gold answer
                print(textwrap.fill(f"{name:11}{text}", 80, subsequent_indent=" " * 11))
        for name, answers in methods.items():
            rationale, prediction = answers[i]
            right = data.exact_match(prediction, example.answers) == 1
            verdict = f"{'right' if right else 'wrong':7}" * bool(example.answer)
            text = textwrap.fill(f"{name:22}{verdict}{prediction}", 80, subsequent_indent=" " * 22)
            print("\n" + (f"\033[{32 if right else 31}m{text}\033[0m" if coloured and verdict else text))
            if rationale:
                print(textwrap.fill(rationale, 80, initial_indent=" " * 4, subsequent_indent=" " * 4))
        print("\n" + "-" * 80)


def main() -> None:
    settings = parse_settings(Settings, __doc__)
    if settings.question:
        paragraph = data.Paragraph("", data.split_sentences(settings.context))
        examples = [Example("yours", settings.question, (paragraph,), answer="")]
    else:
        examples = data.load(settings.data)
        if settings.example:
            examples = [e for e in examples if e.id == settings.example]
        elif settings.demo:
            kinds = dict.fromkeys(e.type for e in examples)  # a set in their order
            examples = [next(e for e in examples if e.type == kind) for kind in kinds]
        else:
            examples = examples[:1]
        if not examples:
            raise UserError(f"{settings.data} has no example with the id {settings.example!r}")
    trained = {"KD": Path(settings.kd) / "model", "RL": Path(settings.rl) / "model"}
    places = {"untrained": settings.small or "tiny/small"}
    places |= {name: place for name, place in trained.items() if place.exists()}
    best = settings.small or list(places.values())[-1]  # the M_S that has learned most
    places = {f"LM-guided, {name}": place for name, place in places.items()} if settings.demo else {"LM-guided": best}
    smalls, large = {name: load_small(settings, place) for name, place in places.items()}, load_large(settings)
    refuse_unknown_words("this", examples[0], *smalls.values(), large)

    methods = {}  # name → (rationale, prediction) of each example
    if settings.demo:
        methods["standard"] = [("", prediction) for prediction in standard(large, examples)]
        methods["CoT"] = [(thought.rationale, thought.prediction) for thought in chain_of_thought(large, examples)]
    for name, small in smalls.items():
        rationales = write_rationales(small, examples)
        methods[name] = list(zip(rationales, answer(large, examples, rationales), strict=True))
    show(examples, methods)
    if cut := sum(lm.cut for lm in (large, *smalls.values())):
        print(f"{cut} prompts had their context cut to whole sentences: --max-input-tokens {settings.max_input_tokens}")
    for name in [name for name, place in trained.items() if settings.demo and not place.exists()]:
        print(f"LM-guided, {name}: no M_S in {trained[name].parent}; python train_{name.lower()}.py trains one")


if __name__ == "__main__":
    run_main(main)
