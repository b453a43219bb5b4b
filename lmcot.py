"""LM-guided chain of thought: a small LM writes the rationale, a large frozen LM answers from it.

    python lmcot.py                                          # one TinyWiki question: context, rationale, answer
    python lmcot.py --example tiny-test-4-7                  # another one, by its id
    python lmcot.py --question "…" --context "…"             # your own

Lee et al. 2024 (arXiv 2404.03414). M_S, the small LM, is the only one that is ever trained (`train_kd.py`,
`train_rl.py`). M_L, the large LM, is a black box: texts in, texts out. It never sees a reward or a gold answer.
Departures from the paper: its prompts are not public beyond their structure (Figure 1), so these are ours.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

import data
from data import Example
from model import T5, UserError, load_tokenizer, log_softmax, never_written, pad_batch

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

_CONCLUSION = re.compile(r"[\s,;:]*(?:\b(?:so|thus|hence|therefore)\b,?\s*)?\bthe (?:final )?answer is:?\s+", re.I)
_ABBREVIATIONS = "".join(rf"(?<!\b{word})" for word in ["[A-Z]", "St", "Ft", "Mt", "Dr", "Mr", "Mrs", "Ms", "Jr", "Sr"])
_END = re.compile(_ABBREVIATIONS + r"\.(?=\s|$)|\n")  # a full stop, but none of St. Louis or J. R. R. Tolkien


def parse_cot(text: str) -> tuple[str, str]:
    """Chain of thought → (reasoning, prediction); the prediction is "" where no "the answer is …" is found.

    The last such phrase counts, and its first sentence is the prediction. The reasoning ends where that prediction is
    first stated, so that an answer said twice does not stay in it.
    """
    marks = list(_CONCLUSION.finditer(text))
    if not marks:
        return text.strip(), ""
    predictions = [_END.split(text[mark.end() :], maxsplit=1)[0].strip() for mark in marks]
    first = marks[predictions.index(predictions[-1])]
    return text[: first.start()].strip(), predictions[-1]


# ------------------------------------------------------------------------------------------------ a language model


class LocalLM:
    """A T5 on this machine as a black box: `complete` turns texts into texts.

    `max_input_tokens` is the longest prompt `fill` will build; `cut` counts the prompts whose context it shortened,
    `tokens_written` the tokens generated, for the cost columns of `eval.py`. `seed` decides what is sampled.
    """

    def __init__(
        self, model: T5, tokenizer: Tokenizer, max_input_tokens: int = 1024, batch_size: int = 64, seed: int = 0
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_input_tokens, self.batch_size = max_input_tokens, batch_size
        self.device = model.shared.weight.device
        self.forbid = never_written(model, tokenizer)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.tokens_written = self.cut = self.unfinished = 0

    @classmethod
    def load(cls, folder: str | Path, **options) -> "LocalLM":
        return cls(T5.from_pretrained(folder), load_tokenizer(folder), **options)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def decode(self, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
        """Generated ids and their mask, (R, T) each → R texts."""
        rows = [row[:length] for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        return [text.strip() for text in self.tokenizer.decode_batch(rows)]

    def complete(
        self, prompts: Sequence[str], max_new_tokens: int, temperature: float = 0.0, progress: str = ""
    ) -> list[str]:
        """One text for each prompt, in order; greedy at temperature 0. A prompt that occurs n times is encoded once and
        gets n samples (or, when greedy, one text n times). `progress` names a progress bar."""
        copies = Counter(prompts)
        written: dict[str, list[str]] = {}
        ids = {p: e.ids for p, e in zip(copies, self.tokenizer.encode_batch(list(copies)), strict=True)}
        longest_first = sorted(copies, key=lambda p: (copies[p], len(ids[p])), reverse=True)
        bar = tqdm(total=len(copies), desc=progress, disable=not progress, mininterval=0.5)
        while longest_first:
            samples = copies[longest_first[0]] if temperature else 1
            size = max(1, self.batch_size // samples) if samples > 1 else self.batch_size
            batch = [p for p in longest_first[:size] if not temperature or copies[p] == samples]
            longest_first = longest_first[len(batch) :]
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
        taken: Counter[str] = Counter()
        answers = []
        for prompt in prompts:
            answers.append(written[prompt][taken[prompt] % len(written[prompt])])
            taken[prompt] += 1
        return answers

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


def fill(template: str, lm: LocalLM, examples: Sequence[Example], rationales: Sequence[str] | None = None) -> list[str]:
    """One prompt per example. A context too long for `lm` loses whole sentences; `lm.cut` counts these prompts."""
    prompts = []
    for i, example in enumerate(examples):
        parts = {"question": example.question, "rationale": rationales[i] if rationales else ""}
        prompt = template.format(context=example.context, **parts)
        if len(prompt.encode()) >= lm.max_input_tokens:  # a token has at least one byte: most prompts need no counting

            def prompt_of(context: str, parts: dict = parts) -> str:
                return template.format(context=context, **parts)

            context, cut = data.fit_context(example, prompt_of, lm.count_tokens, lm.max_input_tokens)
            prompt = prompt_of(context)
            lm.cut += cut
        prompts.append(prompt)
    return prompts


# ------------------------------------------------------------------------------------------------ the methods


@dataclass
class Thought:
    """One chain of thought of M_L. `parsed` is False where the prediction needed the second stage."""

    rationale: str
    prediction: str
    parsed: bool = True


def standard(large: LocalLM, examples: Sequence[Example], progress: str = "") -> list[str]:
    """Standard prompting: M_L's answers to question and context."""
    return large.complete(fill(STANDARD, large, examples), ANSWER_TOKENS, progress=progress)


def chain_of_thought(
    large: LocalLM, examples: Sequence[Example], max_new_tokens: int = 256, temperature: float = 0.0, progress: str = ""
) -> list[Thought]:
    """Zero-shot CoT (Kojima et al. 2022): M_L writes reasoning and answer in one pass; where no answer is found in it,
    a second pass asks for one."""
    texts = large.complete(fill(COT, large, examples), max_new_tokens, temperature, progress)
    thoughts = [Thought(*parse_cot(text)) for text in texts]
    failed = [i for i, thought in enumerate(thoughts) if not thought.prediction]
    prompts = fill(TWO_STAGE, large, [examples[i] for i in failed], [thoughts[i].rationale for i in failed])
    for i, prediction in zip(failed, large.complete(prompts, ANSWER_TOKENS), strict=True):
        thoughts[i] = Thought(thoughts[i].rationale, prediction, parsed=False)
    return thoughts


def write_rationales(
    small: LocalLM, examples: Sequence[Example], max_new_tokens: int = 256, temperature: float = 0.0, progress: str = ""
) -> list[str]:
    """M_S's rationale for each example (repeat an example to sample several)."""
    return small.complete(fill(RATIONALE, small, examples), max_new_tokens, temperature, progress)


def answer(large: LocalLM, examples: Sequence[Example], rationales: Sequence[str], progress: str = "") -> list[str]:
    """LM-guided answering: M_L's answer to question, context and a rationale that somebody else wrote."""
    return large.complete(fill(GUIDED, large, examples, rationales), ANSWER_TOKENS, progress=progress)


ANSWER_TOKENS = 32  # room for an answer, in tokens


def majority(predictions: Sequence[str]) -> int:
    """Self-consistency (Wang et al. 2023): the index of the prediction that wins the vote over normalised answers.
    Among tied answers the one sampled first wins."""
    votes = Counter(map(data.normalize_answer, predictions))
    return max(range(len(predictions)), key=lambda i: (votes[data.normalize_answer(predictions[i])], -i))


def select(rationales: Sequence[str], score: Callable[[str], float]) -> int:
    """Rationale selection: the index of the best of N rationales by a score; the first among equals."""
    return max(range(len(rationales)), key=lambda i: (score(rationales[i]), -i))


def side_by_side(examples: Sequence[Example], before: Sequence[str], after: Sequence[str]) -> str:
    """What training did to the rationales of some questions, to be read."""
    rows = zip(examples, before, after, strict=True)
    return "\n\n".join(f"Question  {example.question}\n  before  {old}\n  after   {new}\n  gold    {example.answer}"
                       for example, old, new in rows)  # fmt: skip


# ------------------------------------------------------------------------------------------------ one question


@dataclass
class Settings:
    question: str = ""  # your own question; needs --context
    context: str = ""  # the text in which the answer stands
    example: str = ""  # id of an example of --data (default: the first)
    data: str = "tiny"  # tiny, hotpotqa, 2wiki (downloaded once), or a file (forms: data.py, load)
    small: str = ""  # folder of M_S (default: the first that exists of runs/rl/model, runs/kd/model, tiny/small)
    large: str = "tiny/large"  # folder of M_L

    def check(self) -> None:
        if bool(self.question) != bool(self.context):
            raise ValueError("--question and --context go together")


def here(folder: str) -> Path:
    """A folder as given, or, for the embedded pair from elsewhere, beside this file."""
    beside = Path(__file__).resolve().parent / folder
    return beside if not Path(folder).exists() and beside.exists() else Path(folder)


def unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """Words that the embedded pair has never seen; [] for any other tokenizer, which has pieces for all of English."""
    if tokenizer.token_to_id("▁Stormgate") is None:  # a film of TinyWiki
        return []
    words = re.findall(r"[^\s.,?:!]+", text)
    return [word for word in dict.fromkeys(words) if tokenizer.token_to_id("▁" + word) is None]


def main() -> None:
    settings = data.parse_settings(Settings, __doc__)
    if settings.question:
        paragraph = data.Paragraph("", data.split_sentences(settings.context))
        example = Example("yours", settings.question, (paragraph,), answer="")
    else:
        examples = {e.id: e for e in data.load(settings.data)}
        if settings.example and settings.example not in examples:
            raise UserError(f"{settings.data} has no example with the id {settings.example!r}")
        example = examples[settings.example or next(iter(examples))]
    trained = next((f for f in ("runs/rl/model", "runs/kd/model") if Path(f).exists()), "tiny/small")
    small = LocalLM.load(here(settings.small or trained))
    large = LocalLM.load(here(settings.large))

    print(f"Question   {example.question}\nContext    {example.context}")
    if unknown := unknown_words(large.tokenizer, f"{example.question} {example.context}"):
        print(f"\nOutside TinyWiki: the tiny pair has never read {', '.join(map(repr, unknown[:8]))}"
              f"{' …' if len(unknown) > 8 else ''} and could only guess, so it does not answer. "
              "Give a larger pair with --small and --large.")  # fmt: skip
        return
    (rationale,) = write_rationales(small, [example])
    (prediction,) = answer(large, [example], [rationale])
    print(f"Rationale  {rationale}\nAnswer     {prediction}")
    if example.answer:
        verdict = "right" if data.exact_match(prediction, example.answers) else "wrong"
        print(f"Gold       {example.answer} ({verdict})")


if __name__ == "__main__":
    data.run_main(main)
