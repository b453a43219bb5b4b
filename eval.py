"""Methods × questions → one table that says whether it worked.

    python eval.py                              # runs/kd (runs/rl, runs/direct if there), 1,000 TinyWiki questions
    python eval.py --kd "runs/kd*" --rl "runs/rl[0-4]" --out runs/eval-seeds      # several seeds, one folder each
    python eval.py --small google/flan-t5-small --large google/flan-t5-xxl --large-dtype bfloat16 --data hotpotqa \\
        --kd runs/kd-hotpotqa --rl runs/rl-hotpotqa --direct none --out runs/eval-hotpotqa

Every method sees the same questions, so differences are paired. Intervals are 95 % percentile bootstrap over questions
and seeds together (both are resampled, 2,000 times). The pair of LMs is fixed: seeds vary what is random given the pair
(KD's batches, RL's rollouts, what is sampled), not its pretraining.
Other files import from here with `from eval import …`: `eval` is also the name of a builtin.
"""

import glob
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

import data
import lmcot
import rewards
from data import Example
from lmcot import LM
from plumbing import processes
from plumbing.command import at_least_one, parse_settings, run_main
from plumbing.errors import UserError
from plumbing.files import read_json
from plumbing.run import Run

METRICS = {"EM": data.exact_match, "F1": data.token_f1, "AI": data.answer_inclusion}
BASELINES = ("standard", "CoT", "LM-guided, KD")  # the methods that differences are taken to
QUALITY = ("R_aspect", *rewards.ASPECTS)  # of rationales, R_aspect with all weights 1
BOOTSTRAPS = 2000

# name → (the M_S it needs, whether it differs from seed to seed)
METHODS = {
    "standard": ("", False),  # M_L answers from question and context
    "CoT": ("", False),  # M_L thinks step by step, then answers
    "CoT + SC": ("", True),  # majority of N sampled chains of M_L
    "LM-guided, untrained": ("untrained", False),  # M_S as it was pretrained writes the rationale
    "LM-guided, KD": ("kd", True),  # M_S after rationale distillation writes it
    "LM-guided, KD + SC": ("kd", True),  # majority over N rationales sampled from M_S
    "LM-guided, KD, best of N": ("kd", True),  # of N rationales sampled from it, the one with the highest R_aspect
    "LM-guided, RL": ("rl", True),  # M_S after rationale refinement writes it
    "LM-guided, RL + SC": ("rl", True),  # as for KD
    "LM-guided, RL, best of N": ("rl", True),  # as for KD
    "M_S alone": ("direct", True),  # control: M_S fine-tuned to answer directly, no M_L
    "gold rationale": ("", False),  # ceiling: the supporting sentences as the rationale
    "other's rationale": ("", False),  # floor: another question's supporting sentences
}
WITHOUT_RATIONALE = ("standard", "M_S alone")
NEED_FACTS = ("gold rationale", "other's rationale")  # left out where the data names no supporting sentences


@dataclass
class Outcome:
    """One answer of one method. `note` is "" or says what was unusual ("two-stage": no answer in the first pass)."""

    prediction: str
    rationale: str = ""
    note: str = ""


def run_method(
    name: str, examples: Sequence[Example], large: LM, small: LM | None, samples: int, temperature: float,
    max_new_tokens: int,
) -> list[Outcome]:  # fmt: skip
    """Answer this process's share of the examples by one method of METHODS."""
    everyone, examples = examples, processes.share(examples)
    many = [example for example in examples for _ in range(samples)]  # N in a row for each example

    def grouped(rows: list) -> list[list]:
        return [rows[i : i + samples] for i in range(0, len(rows), samples)]

    def vote(outcomes: list[Outcome]) -> list[Outcome]:
        return [group[lmcot.majority([o.prediction for o in group])] for group in grouped(outcomes)]

    def think(examples: Sequence[Example], temperature: float) -> list[Outcome]:
        thoughts = lmcot.chain_of_thought(large, examples, max_new_tokens, temperature, progress=name)
        return [Outcome(t.prediction, t.rationale, "" if t.parsed else "two-stage") for t in thoughts]

    def write(examples: Sequence[Example], temperature: float) -> list[str]:
        return lmcot.write_rationales(small, examples, max_new_tokens, temperature, progress=f"{name}: rationales")

    def guide(examples: Sequence[Example], rationales: Sequence[str]) -> list[Outcome]:
        predictions = lmcot.answer(large, examples, rationales, progress=f"{name}: answers")
        return [Outcome(*pair) for pair in zip(predictions, rationales, strict=True)]

    match name:
        case "standard":
            return [Outcome(prediction) for prediction in lmcot.standard(large, examples, progress=name)]
        case "CoT":
            return think(examples, 0.0)
        case "CoT + SC":
            return vote(think(many, temperature))
        case "LM-guided, untrained" | "LM-guided, KD" | "LM-guided, RL":
            return guide(examples, write(examples, 0.0))
        case "LM-guided, KD + SC" | "LM-guided, RL + SC":
            return vote(guide(many, write(many, temperature)))
        case "LM-guided, KD, best of N" | "LM-guided, RL, best of N":
            best = []
            for example, group in zip(examples, grouped(write(many, temperature)), strict=True):
                # Judged before M_L answers: selection is to save its calls.
                scores = [rewards.quality(text, example)["R_aspect"] for text in group]
                best.append(group[lmcot.select(scores)])
            return guide(examples, best)
        case "M_S alone":
            return [Outcome(prediction) for prediction in lmcot.standard(small, examples, progress=name)]
        case "gold rationale" | "other's rationale":
            gold = [" ".join(example.supporting_sentences) for example in everyone]
            return guide(examples, processes.share(gold if name == "gold rationale" else gold[1:] + gold[:1]))
    raise ValueError(f"no method {name!r}")


# ------------------------------------------------------------------------------------------------ statistics


def bootstrap(scores: np.ndarray, draws: int = BOOTSTRAPS, seed: int = 0) -> np.ndarray:
    """Means over resampled seeds and questions: scores (M methods, seeds, questions) → (M, draws).

    One draw picks seeds and questions with replacement and uses them for all methods, which keeps methods paired.
    """
    rng = np.random.default_rng(seed)
    _, seeds, questions = scores.shape
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    question_weights = rng.multinomial(questions, np.full(questions, 1 / questions), draws) / questions
    return np.einsum("msd,ds->md", scores @ question_weights.T, seed_weights)


def interval(values: np.ndarray) -> list[float]:
    """95 % percentile interval."""
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def summarise(examples: Sequence[Example], outcomes: dict[str, list[list[Outcome]]], costs: dict[str, dict]) -> dict:
    """Outcomes (method → seeds → questions) → everything the table shows, as plain JSON values.

    A method with one run (it is deterministic, or was trained once) stands for all seeds.
    """
    seeds = max(len(runs) for runs in outcomes.values())
    table: dict = {"questions": len(examples), "seeds": seeds, "methods": {name: {} for name in outcomes}}
    types = np.array([example.type for example in examples])

    def tabulate(measure: str, scores: dict[str, np.ndarray]) -> None:
        """Means, intervals and differences of one measure; scores: method → (runs, questions)."""
        names = list(scores)
        every = np.stack([np.broadcast_to(rows, (seeds, len(examples))) for rows in scores.values()])
        means, draws = every.mean((1, 2)), bootstrap(every)
        for i, name in enumerate(names):
            row = table["methods"][name]
            row[measure] = {"mean": float(means[i]), "interval": interval(draws[i])}
            for base in BASELINES:
                if base in names and name != base:
                    j = names.index(base)
                    difference = {"mean": float(means[i] - means[j]), "interval": interval(draws[i] - draws[j])}
                    row[measure][f"minus {base}"] = difference

    for metric, score in METRICS.items():
        scores = {name: np.array([[score(o.prediction, e.answers) for o, e in zip(run, examples, strict=True)]
                                  for run in runs]) for name, runs in outcomes.items()}  # fmt: skip
        tabulate(metric, scores)
        if metric == "EM":
            for name, rows in scores.items():
                row = table["methods"][name]
                row["EM of each seed"] = rows.mean(1).tolist()
                row["EM by type"] = {t: float(rows[:, types == t].mean()) for t in sorted(set(types)) if t}
    rated = {name: [[rewards.quality(o.rationale, e, o.prediction) for o, e in zip(run, examples, strict=True)]
                    for run in runs] for name, runs in outcomes.items() if name not in WITHOUT_RATIONALE}  # fmt: skip
    for aspect in QUALITY:
        if rated:
            tabulate(aspect, {name: np.array([[each[aspect] for each in run] for run in runs])
                              for name, runs in rated.items()})  # fmt: skip
    for name in outcomes:
        flat = [outcome for run in outcomes[name] for outcome in run]
        table["methods"][name]["two-stage"] = sum(o.note == "two-stage" for o in flat) / len(flat)
        table["methods"][name].update(costs[name])
    return table


def number(value: float, measure: str, sign: str = "") -> str:
    """A metric of answers in per cent, anything else as it is."""
    return f"{100 * value:{sign}.1f}" if measure in METRICS else f"{value:{sign}.2f}"


def with_interval(cell: dict, measure: str, sign: str = "") -> str:
    low, high = (number(bound, measure, sign) for bound in cell["interval"])
    return f"{number(cell['mean'], measure, sign)} [{low}, {high}]"


def as_markdown(table: dict) -> str:
    """The tables of a summary; answers in per cent, aspects in [0, 1], R_aspect their sum."""

    def percent(value: float) -> str:
        return number(value, "EM")

    methods = table["methods"]
    rows = [["method", "EM [95 %]", "F1", "AI", "R_aspect", "s/question", "tokens/question"]]
    for name, row in methods.items():
        rows.append([name, with_interval(row["EM"], "EM"), percent(row["F1"]["mean"]), percent(row["AI"]["mean"]),
                     number(row["R_aspect"]["mean"], "R_aspect") if "R_aspect" in row else "",
                     f"{row['seconds per question']:.3f}", f"{row['tokens per question']:.1f}"])  # fmt: skip
    parts = [align(rows)]
    differences = [f"minus {base}" for base in BASELINES if base in methods]
    if differences and len(methods) > 1:
        rows = [["EM", *differences]]
        rows += [[name, *(with_interval(row["EM"][d], "EM", "+") if d in row["EM"] else "" for d in differences)]
                 for name, row in methods.items()]  # fmt: skip
        parts.append(align(rows))
    rated = {name: row for name, row in methods.items() if "R_aspect" in row}
    if rated:
        rows = [["aspect of rationales", *rewards.ASPECTS]]
        rows += [[name, *(number(row[a]["mean"], a) for a in rewards.ASPECTS)] for name, row in rated.items()]
        parts.append(align(rows))
    if "LM-guided, RL" in rated and "LM-guided, KD" in rated:
        row = methods["LM-guided, RL"]
        rows = [["", "LM-guided, KD", "LM-guided, RL", "RL minus KD [95 %]"]]
        rows += [[m, *(number(methods[name][m]["mean"], m) for name in rows[0][1:3]),
                  with_interval(row[m]["minus LM-guided, KD"], m, "+")] for m in (*METRICS, *QUALITY)]  # fmt: skip
        parts.append(align(rows))
    types = next(iter(table["methods"].values()))["EM by type"]
    if types:
        rows = [["EM by question type", *types]]
        rows += [[name, *map(percent, row["EM by type"].values())] for name, row in methods.items()]
        parts.append(align(rows))
    if table["seeds"] > 1:
        rows = [["EM of each seed", *map(str, range(table["seeds"]))]]
        rows += [[name, *map(percent, row["EM of each seed"])]
                 for name, row in methods.items() if len(row["EM of each seed"]) > 1]  # fmt: skip
        parts.append(align(rows))
    size = f"{table['questions']} questions, {table['seeds']} seed{'s' * (table['seeds'] > 1)}"
    notes = [f"{size}; intervals: bootstrap over questions and seeds."]
    for name, row in methods.items():
        if row["two-stage"]:
            notes.append(f"{name}: {100 * row['two-stage']:.1f} % of the chains behind its answers named none and were "
                         "asked again.")  # fmt: skip
    notes += table.get("notes", [])
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"


def align(rows: list[list[str]]) -> str:
    """Rows of cells → a Markdown table that also reads well in a terminal."""
    width = max(map(len, rows))
    rows = [row + [""] * (width - len(row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(width)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


# ------------------------------------------------------------------------------------------------ the comparison


def evaluate(
    run: Run, examples: list[Example], large: LM, smalls: dict[str, list[LM]], samples: int,
    temperature: float, max_new_tokens: int,
) -> str:  # fmt: skip
    """Run every method whose M_S is in `smalls` ("untrained", "kd", "rl", "direct": one per seed) and write the table.

    Each method's answers go to answers.jsonl as it ends; called again, what is there is not asked again. Writes
    results.json and results.md into the run folder and returns the Markdown.
    """
    seeds = max(map(len, smalls.values()), default=1)
    kept = run.read("answers.jsonl", "method", "seed", "answers", "seconds", "tokens", "cut", "unfinished")
    if any([answer["id"] for answer in row["answers"]] != [e.id for e in examples] for row in kept):
        raise UserError(f"{run.path('answers.jsonl')} answers other questions: use --overwrite or another --out")
    done = {(row["method"], row["seed"]): row for row in kept}
    outcomes: dict[str, list[list[Outcome]]] = {}
    costs: dict[str, dict] = {}
    for name, (role, varies) in METHODS.items():
        if (role and role not in smalls) or (name in NEED_FACTS and not all(e.supporting_facts for e in examples)):
            continue
        rows = []
        for seed in range(len(smalls[role]) if role else seeds if varies else 1):
            if (name, seed) not in done:
                small = smalls[role][seed] if role else None
                lms = [lm for lm in (large, small) if lm]
                for lm in lms:
                    lm.restart(seed)
                begun = time.perf_counter()
                mine = run_method(name, examples, large, small, samples, temperature, max_new_tokens)
                answers = processes.gather(mine)
                counts = processes.gather([(lm.tokens_written, lm.cut, lm.unfinished) for lm in lms])
                tokens, cut, unfinished = map(sum, zip(*counts, strict=True))
                row = {
                    "method": name,
                    "seed": seed,
                    "seconds": time.perf_counter() - begun,
                    "tokens": tokens,
                    "cut": cut,
                    "unfinished": unfinished,
                    "answers": [{"id": e.id, **vars(a)} for e, a in zip(examples, answers, strict=True)],
                }
                run.append("answers.jsonl", row)
                done[name, seed] = row
            rows.append(done[name, seed])
        outcomes[name] = [[Outcome(a["prediction"], a["rationale"], a["note"]) for a in r["answers"]] for r in rows]
        costs[name] = {f"{unit} per question": sum(r[unit] for r in rows) / len(rows) / len(examples)
                       for unit in ("seconds", "tokens")}  # fmt: skip
    table = summarise(examples, outcomes, costs)
    cut, unfinished = (sum(row[key] for row in done.values()) for key in ("cut", "unfinished"))
    table["notes"] = [f"{cut} prompts were too long: their context was cut to the whole sentences that fit, if any.",
                      f"{unfinished} texts reached the length limit."]  # fmt: skip
    run.write("results.json", table)
    markdown = as_markdown(table)
    run.write("results.md", markdown)
    return markdown


@dataclass
class Settings(lmcot.Models):
    kd: str = "runs/kd"  # run folder of train_kd.py; a pattern such as "runs/kd*" takes one seed from each
    rl: str = "runs/rl"  # of train_rl.py: one folder, or one for each seed of KD; none leaves it out
    direct: str = "runs/direct"  # the same of train_kd.py --target answer, a control
    data: str = "tiny"  # tiny, hotpotqa, 2wiki (downloaded once), or a file (forms: data.py, load)
    split: str = "test"  # test reports, dev chooses; tiny also has ood
    limit: int = 1000  # questions
    context: str = "gold"  # gold paragraphs, or all
    samples: int = 10  # N of self-consistency and of best of N
    temperature: float = 0.7  # of these samples
    max_new_tokens: int = 256  # of a rationale
    out: str = "runs/eval"  # folder of this comparison
    overwrite: bool = False  # start anew in a folder that holds other settings

    NOT_COMPARED: ClassVar[tuple[str, ...]] = (*lmcot.Models.NOT_COMPARED, "out", "overwrite")

    def check(self) -> None:
        super().check()
        at_least_one(self, "limit", "samples", "max_new_tokens")
        if self.temperature <= 0:
            raise ValueError("--temperature must be above 0: it is for sampling")


# kind of run → the settings by which it is known, all that others read of them
KINDS = {
    "kd": {"target", "data", "test_data", "test_limit", "context"},
    "rl": {"kd", "ppo_epochs", "test_limit"},
    "eval": {"data", "split", "limit", "context"},
}


def read_run(folder: str | Path) -> tuple[str, dict]:
    """What a run folder holds, "kd", "direct" (the control of KD), "rl" or "eval", and its settings; else "" and {}."""
    path = Path(folder) / "settings.json"
    settings = read_json(path) if path.is_file() else {}
    for kind, names in KINDS.items():
        if names <= settings.keys():
            return "direct" if settings.get("target") == "answer" else kind, settings
    return "", {}


def questions_of(folder: str | Path) -> list[Example]:
    """The questions that the table of a run is about; UserError where it is none, or its KD run is gone."""
    kind, s = read_run(folder)
    if kind == "eval":
        return data.load(s["data"], s["split"], s["limit"], s["context"])
    limit = s.get("test_limit")
    if kind == "rl":  # the data are those of its KD run
        folder = s["kd"]
        kind, s = read_run(folder)
    if kind not in ("kd", "direct"):
        raise UserError(f"{folder} is no run of train_kd.py, which had the questions")
    return data.load(s["test_data"] or s["data"], "test", limit, s["context"])


def main() -> None:
    settings = parse_settings(Settings, __doc__)
    examples = data.load(settings.data, settings.split, settings.limit, settings.context)
    smalls = {"untrained": [lmcot.load_small(settings, settings.small)]}
    trained: list[list[str]] = []  # their folders
    for role in ("kd", "rl", "direct"):
        pattern = getattr(settings, role)
        if folders := sorted(f for f in glob.glob(pattern) if (Path(f) / "model").is_dir()):
            for folder in folders:
                if (kind := read_run(folder)[0]) not in (role, ""):
                    raise UserError(f"{folder} is a folder for --{kind}, not for --{role}")
            smalls[role] = [lmcot.load_small(settings, Path(folder) / "model") for folder in folders]
            trained.append(folders)
        elif role == "kd":
            raise UserError(f"no trained M_S in {pattern}: run train_kd.py first, or name its folder with --kd")
        elif pattern not in (getattr(Settings, role), "none"):
            print(f"no trained M_S in {pattern}: --{role} is left out\n")
    for role in ("rl", "direct"):
        if len(smalls.get(role, smalls["kd"])) not in (1, len(smalls["kd"])):
            raise UserError(f"--{role} names another number of folders than --kd: give one, or one for each seed")
    large = lmcot.load_large(settings, settings.out)
    lmcot.refuse_unknown_words(settings.data, examples[0], *itertools.chain(*smalls.values()), large)
    with Run(settings.out, settings, settings.overwrite) as run:
        print(f"M_L {settings.large} · {len(examples)} questions · M_S of {', '.join(itertools.chain(*trained))} · "
              f"folder {settings.out}\n")  # fmt: skip
        weights = {}
        for role, folders in zip(list(smalls)[1:], trained, strict=True):
            weights |= {f"{role} {i}": Path(f) / "model" / "model.safetensors" for i, f in enumerate(folders)}
        run.uses(weights)
        print(evaluate(run, examples, large, smalls, settings.samples, settings.temperature, settings.max_new_tokens))
        print(f"This is also in {run.path('results.md')}.")


if __name__ == "__main__":
    run_main(main)
