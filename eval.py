"""Methods × questions → one table that says whether it worked.

    python eval.py                              # runs/kd (runs/rl, runs/direct if there), 1,000 TinyWiki questions
    python eval.py --kd "runs/kd*" --rl "runs/rl[0-4]" --out runs/eval-seeds      # several seeds, one folder each
    python eval.py --small none --kd none --large http://localhost:8000/v1 --large-model NAME --samples 1   # M_L alone
    python eval.py --small google/flan-t5-small --large google/flan-t5-xxl --large-dtype bfloat16 --data hotpotqa \\
        --kd runs/kd-hotpotqa --rl runs/rl-hotpotqa --direct none --out runs/eval-hotpotqa

Every method sees the same questions, so differences are paired. Intervals are 95 % percentile bootstrap: seeds and
questions are both resampled, 2,000 times. The pair of LMs is fixed: seeds vary what is random given the pair.
Other files import from here with `from eval import …`: `eval` is also the name of a builtin.
"""

import glob
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from tqdm import tqdm

import data
import lmcot
import rewards
from data import Example
from lmcot import LM, Answer
from plumbing.command import align, parse_settings, run_main
from plumbing.errors import UserError
from plumbing.files import read_json
from plumbing.run import Run
from tiny import world

METRICS = {"EM": data.exact_match, "F1": data.token_f1, "AI": data.answer_inclusion}
QUALITY = ("R_aspect", *rewards.ASPECTS)  # of rationales, R_aspect with all weights 1
BASELINES = ("standard", "CoT", "LM-guided, untrained", "LM-guided, KD")  # the methods that differences are taken to
TRAININGS = {"Distillation": ("LM-guided, untrained", "LM-guided, KD"), "PPO": ("LM-guided, KD", "LM-guided, RL")}
BOOTSTRAPS = 2000


class Method(NamedTuple):
    """Who writes the rationale, and what becomes of N of them."""

    author: str  # "" (nobody), M_L, gold, other, or an M_S: untrained, kd, rl, direct
    sampling: str = ""  # "": one, greedy; "vote": N answers, and the majority; "best": the best of N by R_aspect


METHODS = {
    "standard": Method(""),  # M_L answers from question and context
    "CoT": Method("M_L"),  # M_L thinks step by step, then answers
    "CoT + SC": Method("M_L", "vote"),  # self-consistency
    "LM-guided, untrained": Method("untrained"),  # M_S as it was pretrained writes the rationale
    "LM-guided, KD": Method("kd"),  # M_S after rationale distillation
    "LM-guided, KD + SC": Method("kd", "vote"),
    "LM-guided, KD, best of N": Method("kd", "best"),
    "LM-guided, RL": Method("rl"),  # M_S after rationale refinement
    "LM-guided, RL + SC": Method("rl", "vote"),
    "LM-guided, RL, best of N": Method("rl", "best"),
    "M_S alone": Method("direct"),  # control: M_S fine-tuned to answer directly, no M_L
    "gold rationale": Method("gold"),  # ceiling: the supporting sentences as the rationale
    "other's rationale": Method("other"),  # floor: another question's supporting sentences
}
STUDENTS = ("untrained", "kd", "rl", "direct")  # the authors that are an M_S
WITHOUT_RATIONALE = ("", "direct")  # authors that write none
COSTS = ("seconds", "tokens", "cut", "unfinished", "unanswered")  # of answers.jsonl


def run_method(method: Method, examples: Sequence[Example], large: LM, small: LM | None, s: "Settings") -> list[Answer]:
    """Answers the examples by one method. Of the settings `s` it reads samples (N), temperature and max_new_tokens (of
    a rationale)."""
    author, sampling = method
    if author in WITHOUT_RATIONALE:
        return lmcot.standard(small or large, examples)
    samples, temperature = (s.samples, s.temperature) if sampling else (1, 0.0)
    if author == "M_L":
        return voted(lmcot.chain_of_thought(large, examples, samples, temperature), samples)

    gold = [" ".join(example.supporting_sentences) for example in examples]
    if author == "gold":
        rationales = gold
    elif author == "other":
        rationales = gold[1:] + gold[:1]
    else:
        rationales = lmcot.write_rationales(small, examples, s.max_new_tokens, samples, temperature)
    if sampling == "best":
        rationales, samples = best(examples, rationales, samples), 1
    return voted(lmcot.guided(large, examples, rationales), samples)


def voted(answers: list[Answer], samples: int) -> list[Answer]:
    """`samples` answers in a row for each question → of each question the first one with the answer that most have."""
    winners = []
    for start in range(0, len(answers), samples):
        group = answers[start : start + samples]
        winners.append(group[lmcot.majority([answer.prediction for answer in group])])
    return winners


def best(examples: Sequence[Example], rationales: list[str], samples: int) -> list[str]:
    """`samples` rationales in a row for each example → the one of each with the highest R_aspect. They are judged
    before M_L answers: selection is to save its calls."""
    chosen = []
    for i, example in enumerate(examples):
        group = rationales[i * samples : (i + 1) * samples]
        scores = [rewards.quality(rationale, example)["R_aspect"] for rationale in group]
        chosen.append(group[lmcot.select(scores)])
    return chosen


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
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def summarise(examples: Sequence[Example], rows: dict[str, list[dict]]) -> dict:
    """Rows of answers.jsonl (method → one for each seed) → everything the tables show, as plain JSON values.

    A method with one row (it is deterministic, or was trained once) stands for all seeds.
    """
    seeds = max(map(len, rows.values()))
    types = np.array([example.type for example in examples])
    scores: dict[str, dict[str, np.ndarray]] = {}  # method → measure → (runs, questions)
    methods: dict[str, dict] = {}
    for name, runs in rows.items():
        scores[name] = scores_of(examples, runs, METHODS[name].author not in WITHOUT_RATIONALE)
        em = scores[name]["EM"]
        asked = len(runs) * len(examples)
        by_type = {}
        for kind in sorted(set(types) - {""}):
            by_type[kind] = float(em[:, types == kind].mean())
        methods[name] = {
            "two-stage": float(scores[name]["two-stage"].mean()),
            "empty": float(scores[name]["empty"].mean()),
            "unfinished": float(scores[name]["unfinished"].mean()),
            "seconds per question": sum(row["seconds"] for row in runs) / asked,
            "tokens per question": sum(row["tokens"] for row in runs) / asked,
            "EM of each seed": em.mean(1).tolist(),
            "EM by type": by_type,
        }

    for measure in (*METRICS, *QUALITY):
        names = [name for name in scores if measure in scores[name]]
        if not names:
            continue
        every = np.zeros((len(names), seeds, len(examples)))
        for i, name in enumerate(names):
            every[i] = scores[name][measure]
        means = dict(zip(names, every.mean((1, 2)).tolist(), strict=True))
        draws = dict(zip(names, bootstrap(every), strict=True))
        for name in names:
            cell = methods[name][measure] = {"mean": means[name], "interval": interval(draws[name])}
            for base in BASELINES:
                if base in names and base != name:
                    gain = interval(draws[name] - draws[base])
                    cell[f"minus {base}"] = {"mean": means[name] - means[base], "interval": gain}
    return {"questions": len(examples), "seeds": seeds, "methods": methods, "warnings": warnings(methods),
            "notes": notes(rows)}  # fmt: skip


def warnings(methods: dict[str, dict]) -> list[str]:
    """Where the table measures the form of M_L's answers rather than what they say: each with what to do about it."""
    found = []
    for name, row in methods.items():
        if name == "M_S alone":  # what it answers is no fault of M_L's prompts
            continue
        em, ai, empty, unfinished = row["EM"]["mean"], row["AI"]["mean"], row["empty"], row["unfinished"]
        if empty > 0.5:
            found.append(f"{name}: {empty:.0%} of the answers are empty. Read answers.jsonl; try other --prompts.")
        if unfinished > 0.5:
            found.append(f"{name}: {unfinished:.0%} of M_L's texts were cut. Raise --answer-tokens and --chain-tokens.")
        if em < 0.1 and ai > em + 0.2:
            found.append(f"{name}: EM is {em:.0%}, but {ai:.0%} of the answers contain the right one. "
                         f"M_L answers in sentences: --prompts chat asks for short ones.")  # fmt: skip
    return found


def notes(rows: dict[str, list[dict]]) -> list[str]:
    """What went wrong with some texts, over all methods and seeds."""
    total: Counter[str] = Counter()
    for row in itertools.chain(*rows.values()):
        for what in COSTS:
            total[what] += row[what]
    return [
        f"{total['cut']} prompts were too long: their context was cut to the whole sentences that fit, if any.",
        f"{total['unfinished']} texts reached the length limit.",
        f"{total['unanswered']} texts could not be had from M_L's server: they count as wrong.",
    ]


def scores_of(examples: Sequence[Example], runs: list[dict], has_rationale: bool) -> dict[str, np.ndarray]:
    """The rows of one method → each measure as an array (runs, questions)."""
    scores: dict[str, list[float]] = defaultdict(list)
    of_each_seed = [zip(examples, row["answers"], strict=True) for row in runs]
    for example, fields in itertools.chain(*of_each_seed):
        answer = Answer(**fields)
        scores["two-stage"].append(not answer.parsed)
        scores["empty"].append(answer.prediction == "")
        scores["unfinished"].append(answer.finish == "length")
        for metric, function in METRICS.items():
            scores[metric].append(function(answer.prediction, example.answers))
        if has_rationale:
            for aspect, value in rewards.quality(answer.rationale, example, answer.prediction).items():
                scores[aspect].append(value)
    return {measure: np.reshape(values, (len(runs), -1)) for measure, values in scores.items()}


# ------------------------------------------------------------------------------------------------ the table as text


def number(value: float, measure: str, sign: str = "") -> str:
    """A metric of answers in per cent, anything else as it is."""
    return f"{100 * value:{sign}.1f}" if measure in METRICS else f"{value:{sign}.2f}"


def with_interval(cell: dict | None, measure: str, sign: str = "") -> str:
    if cell is None:  # no method is compared with itself
        return ""
    low, high = cell["interval"]
    return f"{number(cell['mean'], measure, sign)} [{number(low, measure, sign)}, {number(high, measure, sign)}]"


def as_markdown(table: dict) -> str:
    """The tables of a summary; answers in per cent, aspects in [0, 1], R_aspect their sum."""
    methods = table["methods"]
    bases = [f"minus {base}" for base in BASELINES if base in methods]
    types = list(next(iter(methods.values()))["EM by type"])
    main = [["method", "EM [95 %]", "F1", "AI", "R_aspect", "seconds per question", "tokens per question"]]
    differences = [["EM", *bases]]
    aspects = [["aspect of rationales", *rewards.ASPECTS]]
    by_type = [["EM by question type", *types]]
    remarks = [f"WARNING: {warning}" for warning in table["warnings"]]
    remarks.append(f"questions: {table['questions']}, seeds: {table['seeds']}; intervals: bootstrap over both.")
    for name, row in methods.items():
        means = {measure: number(row[measure]["mean"], measure) for measure in (*METRICS, *QUALITY) if measure in row}
        costs = f"{row['seconds per question']:.3g}", f"{row['tokens per question']:.3g}"
        main.append([name, with_interval(row["EM"], "EM"), means["F1"], means["AI"], means.get("R_aspect", ""), *costs])
        differences.append([name, *(with_interval(row["EM"].get(base), "EM", "+") for base in bases)])
        if "R_aspect" in row:
            aspects.append([name, *map(means.get, rewards.ASPECTS)])
        by_type.append([name, *(number(row["EM by type"][kind], "EM") for kind in types)])
        if row["two-stage"]:
            share = f"{100 * row['two-stage']:.1f} %"
            remarks.append(f"{name}: in {share} of its chains M_L named no answer and was asked again.")

    gains = [["", "RL minus KD [95 %]"]]
    for measure in (*METRICS, *QUALITY):
        gain = methods.get("LM-guided, RL", {}).get(measure, {}).get("minus LM-guided, KD")
        if gain:
            gains.append([measure, with_interval(gain, measure, "+")])
    # A table needs a row and a second column; differences need a second method.
    tables = [main, differences if len(methods) > 1 else [], aspects, gains, by_type]
    parts = [align(rows) for rows in tables if len(rows) > 1 and len(rows[0]) > 1]
    parts.append("- " + "\n- ".join(remarks + table["notes"]))
    for training, (before, after) in TRAININGS.items():
        if before in methods and after in methods:
            parts.append(f"{training}: {what_changed(table, before, after)}")
    return "\n\n".join(parts) + "\n"


def what_changed(table: dict, before: str, after: str) -> str:
    """One sentence on what M_L answers right after a training of M_S and before it."""
    old, new = table["methods"][before]["EM"], table["methods"][after]["EM"]
    gain = new[f"minus {before}"]
    low, high = gain["interval"]
    sure = "" if low > 0 or high < 0 else ", which may be chance"
    return (f"M_L answers {number(new['mean'], 'EM')} % of these {table['questions']} questions right instead of "
            f"{number(old['mean'], 'EM')} %: {with_interval(gain, 'EM', '+')} points{sure}.")  # fmt: skip


# ------------------------------------------------------------------------------------------------ the comparison


def students_of(
    name: str, examples: Sequence[Example], smalls: dict[str, Sequence[LM | None]], samples: int
) -> Sequence[LM | None]:
    """The M_S of each seed with which a method is run: [None] for one that needs none, [] for one that is left out."""
    author, sampling = METHODS[name]
    if author in ("gold", "other") and not all(example.supporting_facts for example in examples):
        return []
    if sampling and samples == 1:
        return []
    if author in STUDENTS:
        return smalls.get(author, [])
    if sampling:  # of M_L: a seed for each M_S
        return [None] * max(map(len, smalls.values()), default=1)
    return [None]


def texts_of_large(examples: Sequence[Example], smalls: dict[str, Sequence[LM | None]], samples: int) -> int:
    """About how many texts M_L writes for a comparison."""
    texts = 0
    for name in METHODS.keys() - {"M_S alone"}:
        of_each = samples if METHODS[name].sampling == "vote" else 1
        texts += len(students_of(name, examples, smalls, samples)) * of_each
    return texts * len(examples)


def evaluate(run: Run, examples: list[Example], large: LM, smalls: dict[str, list[LM]], s: "Settings") -> str:
    """Runs every method whose M_S is in `smalls` ("untrained", "kd", "rl", "direct": one per seed), writes results.json
    and results.md into the run folder, and returns the Markdown.

    Each method's answers go to answers.jsonl as it ends. Called again, it does not ask again what is there.
    """
    ids = [example.id for example in examples]
    done = {}
    for row in run.read("answers.jsonl", "method", "seed", "answers", *COSTS):
        if [answer["id"] for answer in row["answers"]] != ids:
            raise UserError(f"{run.path('answers.jsonl')} answers other questions: use --overwrite or another --out")
        done[row["method"], row["seed"]] = row

    rows: dict[str, list[dict]] = {}
    bar = tqdm(METHODS, desc="methods")
    for name in bar:
        for seed, small in enumerate(students_of(name, examples, smalls, s.samples)):
            bar.set_description(name)
            if (name, seed) not in done:
                done[name, seed] = timed(name, seed, examples, large, small, s)
                run.append("answers.jsonl", done[name, seed])
            rows.setdefault(name, []).append(done[name, seed])

    table = summarise(examples, rows)
    run.write("results.json", table)
    markdown = as_markdown(table)
    run.write("results.md", markdown)
    return markdown


def timed(name: str, seed: int, examples: list[Example], large: LM, small: LM | None, s: "Settings") -> dict:
    """One method with one seed → a row of answers.jsonl, with what it cost."""
    lms = [large, small] if small else [large]
    for lm in lms:
        lm.restart(seed)
    begun = time.perf_counter()
    answers = run_method(METHODS[name], examples, large, small, s)
    row = {"method": name, "seed": seed, "seconds": time.perf_counter() - begun}
    row |= {"tokens": 0, "cut": 0, "unfinished": 0, "unanswered": 0}
    for lm in lms:
        row["tokens"] += lm.tokens_written
        row["cut"] += lm.cut
        row["unfinished"] += lm.unfinished
        row["unanswered"] += lm.unanswered
    row["answers"] = list(map(vars, answers))
    return row


@dataclass
class Settings(lmcot.Models):
    kd: str = "runs/kd"  # run folder of train_kd.py; a pattern such as "runs/kd*" takes one seed from each
    rl: str = "runs/rl"  # of train_rl.py: one folder, or one for each of KD in alphabetical order; none leaves it out
    direct: str = "runs/direct"  # the same of train_kd.py --target answer, a control
    data: str = "tiny"  # tiny, hotpotqa, 2wiki (downloaded once), or a file (forms: data.py, load)
    split: str = "test"  # test reports, dev chooses; tiny also has ood
    limit: int = 1000  # questions
    context: str = "gold"  # gold paragraphs, or all
    samples: int = 10  # N of self-consistency and of best of N; 1 leaves these methods out
    temperature: float = 0.7  # of these samples
    max_new_tokens: int = 256  # of a rationale
    out: str = "runs/eval"  # folder of this comparison
    overwrite: bool = False  # start anew in a folder that holds other settings

    NOT_COMPARED: ClassVar[tuple[str, ...]] = (*lmcot.Models.NOT_COMPARED, "out", "overwrite")


def read_run(folder: str | Path) -> tuple[str, dict]:
    """What a run folder holds, "kd", "direct" (the control of KD), "rl" or "eval", and its settings; else "" and {}."""
    path = Path(folder) / "settings.json"
    settings = read_json(path) if path.is_file() else {}
    # The kind of a run shows in settings that only its script has.
    if {"target", "data", "test_data"} <= settings.keys():
        return ("direct" if settings["target"] == "answer" else "kd"), settings
    if {"kd", "ppo_epochs"} <= settings.keys():
        return "rl", settings
    if {"data", "split", "limit"} <= settings.keys():
        return "eval", settings
    return "", {}


def trained_weights(s: Settings) -> dict[str, Path]:
    """The files with the trained M_S of a comparison: "kd 0" is that of the first KD run, and so on. UserError where KD
    has none, and where a folder is for another role or their numbers do not fit."""
    seeds = len(glob.glob(f"{s.kd}/model/"))
    if seeds == 0 and s.kd != "none":
        raise UserError(f"no trained M_S in {s.kd}: run train_kd.py first, or name its folder with --kd")
    weights = {}
    for role in ("kd", "rl", "direct"):
        pattern = getattr(s, role)
        models = sorted(glob.glob(f"{pattern}/model/"))
        is_default = pattern == getattr(Settings, role)  # then nobody asked for it
        if not models and not is_default and pattern != "none":
            print(f"no trained M_S in {pattern}: --{role} is left out\n")
        if len(models) not in (0, 1, seeds):
            raise UserError(f"--{role} names another number of folders than --kd: give one, or one for each seed")
        for seed, model in enumerate(models):
            folder = Path(model).parent
            kind, _ = read_run(folder)
            if kind not in (role, ""):
                raise UserError(f"{folder} is a folder for --{kind}, not for --{role}")
            weights[f"{role} {seed}"] = folder / "model" / "model.safetensors"
    return weights


def main() -> None:
    s = parse_settings(Settings, __doc__)
    examples = data.load(s.data, s.split, s.limit, s.context)
    smalls: dict[str, list[LM]] = {}
    if s.small != "none":
        smalls["untrained"] = [lmcot.load_small(s, s.small)]
    weights = trained_weights(s)
    for name, file in weights.items():
        role, _ = name.split()
        smalls.setdefault(role, []).append(lmcot.load_small(s, file.parent))
    large = lmcot.load_large(s, s.out)
    world.refuse_unknown_words(s.data, examples[0], large, *itertools.chain(*smalls.values()))

    with Run(s.out, s, s.overwrite) as run:
        run.uses(weights)
        print(f"M_L {s.large} · {len(examples)} questions · M_S of {s.kd}, {s.rl}, {s.direct} · folder {s.out}\n")
        lmcot.announce(large, examples, texts_of_large(examples, smalls, s.samples))
        print(evaluate(run, examples, large, smalls, s))
        print(f"This is also in {run.path('results.md')}.")


if __name__ == "__main__":
    run_main(main)
