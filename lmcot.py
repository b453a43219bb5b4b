"""LM-guided chain of thought: a small LM writes the rationale, a large frozen LM answers from it.

    python lmcot.py                                          # one TinyWiki question: M_L alone, and guided by each M_S
    python lmcot.py --example tiny-test-6-7                  # another one, by its id
    python lmcot.py --demo                                   # how often guidance helps, and one question of each case
    python lmcot.py --question "…" --context "…"             # your own
    python lmcot.py --small none --large http://localhost:8000/v1 --large-model NAME --question "…" --context "…"

The method is that of Lee et al. 2024 (arXiv 2404.03414). M_S, the small LM, is the only one that is trained. M_L, the
large LM, is a black box: texts in, texts out. It never sees a reward or a gold answer.
Departures from the paper: it shows the structure of its prompts (Figure 1) but not their words, so these are ours.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

import data
from data import Example
from model import T5, load_tokenizer, pad_batch
from plumbing import processes
from plumbing.answers import parse_answer, parse_cot
from plumbing.command import align, parse_settings, run_main
from plumbing.errors import UserError
from plumbing.server import Completion, ServedLM, extra_fields
from tiny import world

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
# Instruct models answer in sentences unless they are asked not to.
BRIEFLY = "Give only the answer, in a few words, not a sentence.\n"
CHAT_STANDARD = STANDARD.replace("Answer:", BRIEFLY + "Answer:")
CHAT_COT = COT
CHAT_TWO_STAGE = COT + " {rationale}\n" + BRIEFLY + "Answer:"
CHAT_GUIDED = GUIDED.replace("Answer:", BRIEFLY + "Answer:")
CONCLUSION = "So the answer is {answer}."  # how a chain of thought ends; `parse_cot` finds it


class Templates(NamedTuple):
    """How M_L is asked, and the room that it gets."""

    standard: str
    cot: str
    two_stage: str
    guided: str
    answer_tokens: int = 32
    chain_tokens: int = 256  # of a chain of thought


PROMPTS = {  # the values of --prompts
    "plain": Templates(STANDARD, COT, TWO_STAGE, GUIDED),
    "chat": Templates(CHAT_STANDARD, CHAT_COT, CHAT_TWO_STAGE, CHAT_GUIDED),
}


def templates_of(large: "LM") -> Templates:
    """The templates that `load_large` gave an M_L; the plain ones if it came from elsewhere."""
    return getattr(large, "templates", PROMPTS["plain"])


def fill(template: str, lm: "LM", examples: Sequence[Example], rationales: Sequence[str] | None = None) -> list[str]:
    """One prompt for each example. A context too long for `lm` loses whole sentences; `lm.cut` counts these prompts."""
    prompts = []
    for i, example in enumerate(examples):
        rationale = rationales[i] if rationales else ""
        prompt_of = partial(template.format, question=example.question, rationale=rationale)
        context, was_cut = data.fit_context(example, prompt_of, lm.count_tokens, lm.max_input_tokens)
        prompts.append(prompt_of(context=context))
        lm.cut += was_cut
    return prompts


# ------------------------------------------------------------------------------------------------ the methods


@dataclass
class Answer:
    """What M_L answers, and the rationale that it answers from ("" where there is none)."""

    id: str  # of the example
    prediction: str
    rationale: str = ""
    parsed: bool = True  # False: M_L's own chain of thought named no answer, so that a second pass asked for it
    finish: str = "stop"  # how M_L's (first) text ended: "stop", "length" (it was cut), or "none" (no text came)


def standard(large: "LM", examples: Sequence[Example]) -> list[Answer]:
    """Standard prompting: M_L answers each question from its context."""
    ask, answers = templates_of(large), []
    completions = large.complete(fill(ask.standard, large, examples), ask.answer_tokens)
    for example, (text, finish) in zip(examples, completions, strict=True):
        answers.append(Answer(example.id, parse_answer(text), finish=finish))
    return answers


def chain_of_thought(
    large: "LM", examples: Sequence[Example], samples: int = 1, temperature: float = 0.0
) -> list[Answer]:
    """Zero-shot CoT (Kojima et al. 2022): M_L writes reasoning and answer in one pass, `samples` times in a row for
    each example. Where no answer is found in the text, a second pass asks for one."""
    ask, answers = templates_of(large), []
    completions = large.complete(fill(ask.cot, large, examples), ask.chain_tokens, samples, temperature)
    for i, (text, finish) in enumerate(completions):
        rationale, prediction = parse_cot(text)
        answers.append(Answer(examples[i // samples].id, prediction, rationale, prediction != "", finish))

    open_ones = [i for i, answer in enumerate(answers) if not answer.parsed]
    asked_again = [examples[i // samples] for i in open_ones]
    second = fill(ask.two_stage, large, asked_again, [answers[i].rationale for i in open_ones])
    for i, completion in zip(open_ones, large.complete(second, ask.answer_tokens), strict=True):
        answers[i].prediction = parse_answer(completion.text)
    return answers


def write_rationales(
    small: "LM", examples: Sequence[Example], max_new_tokens: int = 256, samples: int = 1, temperature: float = 0.0
) -> list[str]:
    """M_S's rationales, `samples` in a row for each example."""
    completions = small.complete(fill(RATIONALE, small, examples), max_new_tokens, samples, temperature)
    return [completion.text for completion in completions]


def guided(large: "LM", examples: Sequence[Example], rationales: Sequence[str]) -> list[Answer]:
    """LM-guided answering: M_L answers from question, context and a rationale that somebody else wrote. Where there are
    N times as many rationales as examples, N in a row belong to each."""
    samples = len(rationales) // max(1, len(examples))
    asked = [example for example in examples for _ in range(samples)]
    ask, answers = templates_of(large), []
    completions = large.complete(fill(ask.guided, large, asked, rationales), ask.answer_tokens)
    for example, rationale, (text, finish) in zip(asked, rationales, completions, strict=True):
        answers.append(Answer(example.id, parse_answer(text), rationale, finish=finish))
    return answers


def majority(predictions: Sequence[str]) -> int:
    """Self-consistency (Wang et al. 2023): the index of the prediction that wins the vote over normalised answers.
    Among tied answers the one sampled first wins; what names no answer has no vote."""
    normalised = list(map(data.normalize_answer, predictions))
    votes = Counter(normalised)
    votes[""] = 0
    winner = max(normalised, key=votes.__getitem__)  # max takes the first of equals
    return normalised.index(winner)


def select(scores: Sequence[float]) -> int:
    """Rationale selection: the index of the best of N rationales by their scores; the first among equals."""
    return scores.index(max(scores))


# ------------------------------------------------------------------------------------------------ the two LMs


class LM(Protocol):
    """A language model as a black box, `LocalLM` or `ServedLM`. Beside M_L's templates, the methods know no more of it.

    `complete` writes `samples` completions in a row for each prompt; greedy at temperature 0. Under torchrun all
    processes call it with the same prompts, each writes its share, and all get everything. `restart` sets the four
    counters to 0, and its seed decides what is sampled from then on.
    """

    complete: Callable[..., list[Completion]]  # (prompts, max_new_tokens, samples=1, temperature=0.0)
    restart: Callable[[int], None]
    count_tokens: Callable[[str], int]
    max_input_tokens: int  # the longest prompt that `fill` builds, as `count_tokens` counts
    batch_size: int  # texts that are written at once
    cut: int  # prompts whose context was shortened
    unfinished: int  # completions that reached their length limit
    unanswered: int  # completions that could not be had
    tokens_written: int  # of all completions


class LocalLM:
    """A T5 on this machine."""

    def __init__(self, model: T5, tokenizer: Tokenizer, max_input_tokens: int = 1024, batch_size: int = 64):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_input_tokens, self.batch_size = max_input_tokens, batch_size
        self.device = model.shared.weight.device
        if tokenizer.encode("").ids != [model.config.eos_token_id]:  # a text that M_S learns from must end
            raise UserError("this tokenizer.json does not end a text with the model's EOS: it needs a post-processor")
        entries = 1 + max(tokenizer.get_vocab().values())
        if entries > model.config.vocab_size:
            raise UserError(f"this tokenizer has {entries} entries and the model only "
                            f"{model.config.vocab_size}: they do not belong together")  # fmt: skip
        # Never written: pad (a text ends with EOS), and the vocabulary's rows that the tokenizer lacks.
        self.forbid = (model.config.pad_token_id, *range(entries, model.config.vocab_size))
        self.restart(0)

    @classmethod
    def load(cls, place: str | Path, dtype=torch.float32, device="cpu", **options) -> "LocalLM":
        """A folder or a name of the hub → LM; `options` are those of the constructor."""
        return cls(T5.from_pretrained(place, dtype, device), load_tokenizer(place), **options)

    def restart(self, seed: int) -> None:
        self.tokens_written = self.cut = self.unfinished = self.unanswered = 0
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def decode(self, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
        """Generated ids and their mask, (BN, T) each → BN texts."""
        lengths = mask.sum(1).tolist()
        rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
        return list(map(str.strip, self.tokenizer.decode_batch(rows)))

    def complete(
        self, prompts: Sequence[str], max_new_tokens: int, samples: int = 1, temperature: float = 0.0
    ) -> list[Completion]:
        """See `LM`. Equal greedy prompts are computed once."""
        if temperature > 0:
            return self._write(prompts, max_new_tokens, samples, temperature)
        different = list(dict.fromkeys(prompts))
        completions = self._write(different, max_new_tokens, 1, 0.0)
        of_prompt = dict(zip(different, completions, strict=True))
        return [of_prompt[prompt] for prompt in prompts for _ in range(samples)]

    def _write(self, prompts: Sequence[str], max_new_tokens: int, samples: int, temperature: float) -> list[Completion]:
        mine = processes.share(prompts)
        encoded = self.tokenizer.encode_batch(list(mine))
        order = sorted(range(len(mine)), key=lambda i: -len(encoded[i].ids))  # batches of like lengths: little padding
        size = max(1, self.batch_size // samples)

        written: list[list[Completion]] = [[] for _ in mine]
        tokens = 0
        bar = tqdm(total=len(mine), desc="writing", unit="prompt", leave=False, delay=2, mininterval=0.5)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            source, source_mask = pad_batch([encoded[i].ids for i in batch], device=self.device)
            out = self.model.generate(source, source_mask, max_new_tokens, samples, temperature,
                                      forbid=self.forbid, generator=self.generator)  # fmt: skip
            ids, mask = out.ids.flatten(0, 1), out.mask.flatten(0, 1)  # (batch · samples, T)
            ended = ((ids == self.model.config.eos_token_id) & mask).any(1).tolist()
            for row, text in enumerate(self.decode(ids, mask)):
                finish = "stop" if ended[row] else "length"
                written[batch[row // samples]].append(Completion(text, finish))
            tokens += int(mask.sum())
            bar.update(len(batch))
        bar.close()

        everyones = processes.gather(list(chain.from_iterable(written)))
        self.tokens_written += sum(processes.gather([tokens]))
        self.unfinished += sum(completion.finish == "length" for completion in everyones)
        return everyones


# ------------------------------------------------------------------------------------------------ settings


@dataclass
class Models:
    """The settings that all scripts share. A field is a flag, and the comment behind it the flag's help text."""

    small: str = "tiny/small"  # M_S: a folder, or a name on the Hugging Face hub; in lmcot.py and eval.py also none
    large: str = "tiny/large"  # M_L: the same, or the address of an OpenAI-compatible server, http://host:8000/v1
    large_model: str = ""  # the name of M_L on that server
    prompts: str = ""  # how M_L is asked: plain, or chat for instruct models; by itself plain here and chat on a server
    answer_tokens: int = 32  # M_L's room for an answer
    chain_tokens: int = 256  # M_L's room for a chain of thought
    large_extra: str = ""  # JSON for every request, as {"chat_template_kwargs": {"enable_thinking": false}}
    concurrency: int = 8  # requests that a server gets at once
    server_timeout: int = 600  # seconds that an answer of a server may take
    device: str = "auto"  # where they compute: auto (cuda if there, else mps, else cpu), cpu, cuda, cuda:1, mps
    large_dtype: str = "float32"  # of M_L on this machine: float32, or bfloat16, which halves its memory
    max_input_tokens: int = 1024  # longer contexts lose whole sentences
    decode_batch_size: int = 128  # texts written at once on this machine; smaller for large models

    # What may change when the same run goes on.
    NOT_COMPARED: ClassVar[tuple[str, ...]] = ("concurrency", "server_timeout", "device")

    def __post_init__(self) -> None:
        self.prompts = self.prompts or ("chat" if self.large_model else "plain")

    def check(self) -> None:
        if self.prompts not in PROMPTS:
            raise ValueError("--prompts is plain or chat")
        if self.large_dtype not in ("float32", "bfloat16"):
            raise ValueError("--large-dtype is float32 or bfloat16")
        if ("://" in self.large) != bool(self.large_model):
            raise ValueError("--large http://host:8000/v1 and --large-model NAME go together")
        extra_fields(self.large_extra)


def load_small(models: Models, place: str | Path) -> LocalLM:
    """The M_S of `models`, or one that training left in a folder."""
    return LocalLM.load(place, device=processes.find_device(models.device), max_input_tokens=models.max_input_tokens,
                        batch_size=models.decode_batch_size)  # fmt: skip


def load_large(models: Models, run_folder: str | None = None) -> LM:
    """M_L, which nobody trains. What a server answers stays in the run's folder, so that nothing is asked twice."""
    if models.large_model:
        cache = Path(run_folder) / "http_cache.jsonl" if run_folder else None
        large: LM = ServedLM(models.large, models.large_model, models.max_input_tokens, models.concurrency, cache,
                             extra_fields(models.large_extra), models.server_timeout)  # fmt: skip
    else:
        dtype, device = getattr(torch, models.large_dtype), processes.find_device(models.device)
        large = LocalLM.load(models.large, dtype, device,
                             max_input_tokens=models.max_input_tokens, batch_size=models.decode_batch_size)  # fmt: skip
    templates = PROMPTS[models.prompts]
    large.templates = templates._replace(answer_tokens=models.answer_tokens, chain_tokens=models.chain_tokens)
    return large


def announce(large: LM, examples: Sequence[Example], requests: int) -> None:
    """Before a run of so many requests, a served M_L is asked one. So a wrong address or a missing model ends the run
    at once, and the run says what it will cost."""
    if isinstance(large, ServedLM):
        ask = templates_of(large)
        large.begin(fill(ask.standard, large, examples), max(ask.answer_tokens, ask.chain_tokens), requests)


# -------------------------------------------------------------------------------------------- a script on one question

DEMO_QUESTIONS = 100
CASES = {  # (right at once, right when guided) → its name
    (False, True): "only when guided",
    (True, False): "only at once",
    (True, True): "both times",
    (False, False): "never",
}


@dataclass
class Settings(Models):
    demo: bool = False  # held-out questions: how often guidance helps or harms, and one of each case
    question: str = ""  # your own question; needs --context
    context: str = ""  # the text in which the answer stands
    example: str = ""  # id of an example of --data
    data: str = "tiny"  # tiny, hotpotqa, 2wiki (downloaded once), or a file (forms: data.py, load)
    kd: str = "runs/kd"  # run folder of train_kd.py: its M_S guides, too, if it is there
    rl: str = "runs/rl"  # the same of train_rl.py

    def check(self) -> None:
        super().check()
        if bool(self.question) != bool(self.context):
            raise ValueError("--question and --context go together")
        if re.search("[\ud800-\udfff]", self.question + self.context):  # how Python keeps bytes that are no text
            raise ValueError("--question and --context must be UTF-8 text")
        if self.demo and (self.small == "none" or self.question or self.example):
            raise ValueError("--demo chooses its questions and needs an M_S: no --question, no --example")


def chosen_examples(s: Settings) -> list[Example]:
    if s.question:
        paragraph = data.Paragraph("", data.split_sentences(s.context))
        return [Example("yours", s.question, (paragraph,), answer="")]
    if s.demo:
        return data.load(s.data, "dev", DEMO_QUESTIONS)
    examples = data.load(s.data)
    if s.example:
        examples = [example for example in examples if example.id == s.example]
    if not examples:
        raise UserError(f"{s.data} has no example with the id {s.example!r}")
    return examples


def is_right(answer: Answer, example: Example) -> bool:
    return data.exact_match(answer.prediction, example.answers) == 1


def one_of_each_case(examples: Sequence[Example], large: LM, small: LM) -> dict[str, Example]:
    """Prints by question type how often M_L is right at once and guided by `small` → case → its first example."""
    at_once = standard(large, examples)
    helped = guided(large, examples, write_rationales(small, examples))
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[str, Example] = {}
    for example, one, other in zip(examples, at_once, helped, strict=True):
        case = CASES[is_right(one, example), is_right(other, example)]
        counts[example.type, case] += 1
        first.setdefault(case, example)
    table = [["M_L is right", *CASES.values()]]
    for kind in dict.fromkeys(example.type for example in examples):
        table.append([kind or "all", *(str(counts[kind, case]) for case in CASES.values())])
    print(f"{align(table)}\n\nOne question of each case, chosen to show it: the first of these {len(examples)}.\n")
    return {case: first[case] for case in CASES.values() if case in first}


def main() -> None:
    s = parse_settings(Settings, __doc__)
    examples = chosen_examples(s)
    large = load_large(s)
    smalls = {}
    if s.small != "none":
        smalls[s.small] = load_small(s, s.small)
        for folder in (f"{s.kd}/model", f"{s.rl}/model"):
            if Path(folder).exists():
                smalls[folder] = load_small(s, folder)
    world.refuse_unknown_words("the question", examples[0], large, *smalls.values())  # the tiny pair knows TinyWiki's
    cases = {"": examples[0]}  # `show` leaves an empty text out
    if s.demo:
        place, small = list(smalls.items())[-1]
        print(f"{len(examples)} held-out questions, answered at once and guided by {place}:\n")
        cases = one_of_each_case(examples, large, small)

    for case, example in cases.items():
        show("M_L is right", case)
        show("Question", example.question)
        show("Context", example.context)
        show("Gold answer", example.answer)
        answers = {"Standard prompting": standard(large, [example])[0]}
        answers["Chain of thought"] = chain_of_thought(large, [example])[0]
        for place, small in smalls.items():
            answers[f"Guided by {place}"] = guided(large, [example], write_rationales(small, [example]))[0]
        for method, found in answers.items():
            verdict = ""
            if example.answer:  # a question of your own has none
                verdict = " (right)" if is_right(found, example) else " (wrong)"
            print()
            show(method, found.prediction + verdict)
            show("", found.rationale)
        print("-" * 80)
    if large.cut:
        print(f"Contexts were cut to whole sentences: --max-input-tokens {s.max_input_tokens}")


def show(label: str, text: str) -> None:
    """A label and a text in 80 columns."""
    if text:
        print(textwrap.fill(f"{label:28}{text}", 80, subsequent_indent=" " * 28))


if __name__ == "__main__":
    run_main(main)
