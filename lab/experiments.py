"""The experiments that the paper asks for or leaves open, twelve of them, each one command.

    python lab/experiments.py                      # what there is, and what it costs
    python lab/experiments.py selection            # one of them → runs/lab/results/selection.md and .json
    python lab/experiments.py all                  # all of them; interrupt it when you like, the same command goes on
    python lab/experiments.py ood --small google/flan-t5-small --large google/flan-t5-xxl --large-dtype bfloat16 \\
        --data 2wiki --ood musique.jsonl,strategyqa.json --kd-flags "--lr 3e-4 --bf16 --train-limit 90000" \\
        --rl-flags "--lr 1e-5 --bf16 --train-limit 90000" --out runs/lab-flan

Trainings and comparisons are run folders of train_kd.py, train_rl.py and eval.py, made by these scripts, continued
where they were cut off and shared by all experiments. An experiment is a list of such runs and a table over them, or an
analysis of answers that a run has. What is a choice (a weight, β, N, a threshold) is looked at on dev questions, what
was fixed before is reported on test questions, and each table says which. Intervals are 95 % percentile bootstrap over
seeds and questions together; costs, and what is read off PPO's own curves, are plain means. Sweeps train with PPO for
--steps steps only, and say so.

A result file: {name, question, command, seeds, cpu_minutes, tables: [{title, columns, rows}]}. A row's first cell is
its label; a cell is null, text, a number, or {"mean", "interval"}; columns with % are in per cent.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data  # noqa: E402
import lmcot  # noqa: E402
import rewards  # noqa: E402
import rl  # noqa: E402
import train_kd  # noqa: E402
import train_rl  # noqa: E402
from eval import BASELINES, interval, read_run, trained_weights  # noqa: E402
from eval import Settings as EvalSettings  # noqa: E402
from model import log_softmax, pad_batch  # noqa: E402
from plumbing.command import align, parse_settings, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import as_json, atomic_write, read_json, read_jsonl  # noqa: E402
from plumbing.run import Run  # noqa: E402

SCRIPTS = {"train_kd.py": train_kd.Settings, "train_rl.py": train_rl.Settings, "eval.py": EvalSettings}
QUICK = ("--test-limit", 20, "--samples", 2)  # of the table at the end of a training: the experiments make their own
COMPARED = 5  # N of self-consistency and best of N in the comparisons of eval.py
MAX_NEW_TOKENS, TEMPERATURE = EvalSettings.max_new_tokens, EvalSettings.temperature
BOOTSTRAPS = 1000


@dataclass
class Settings(lmcot.Models):
    data: str = "tiny"  # as in train_kd.py
    test_data: str = ""  # as in train_kd.py
    ood: str = ""  # files of other data sets, with commas between them (ood)
    other_small: str = "tiny/large"  # another M_S (sizes)
    other_large: str = ""  # flags for another M_L (reader), as one text: "--large http://… --large-model NAME"
    seeds: int = 3  # of KD, and of PPO after it
    limit: int = 500  # questions of an evaluation
    samples: int = 16  # rationales sampled for each question (reliability, selection, samples, sensitivity)
    steps: int = 20  # of PPO in sweeps
    kd_flags: str = ""  # more flags of train_kd.py, as one text
    rl_flags: str = ""  # more flags of train_rl.py
    out: str = "runs/lab"  # folder of runs and results; other models or data want another one

    def check(self) -> None:
        super().check()
        if self.seeds > 10:
            raise ValueError("--seeds is at most 10")
        if self.ood and self.data == "tiny":
            raise ValueError("--ood goes with other --data than tiny, which has an ood split of its own")
        for flags in (self.kd_flags, self.rl_flags, self.other_large):
            shlex.split(flags)  # ValueError where a quotation mark is left open
        if "--context" in self.kd_flags:
            raise ValueError("--kd-flags may not hold --context: the experiments ask with gold paragraphs, or say so")


# ------------------------------------------------------------------------------------------------ runs and answers


class Lab:
    """What the experiments share: run folders, answers, and the CPU minutes that each of them took."""

    def __init__(self, s: Settings):
        self.s, self.out, self.used = s, Path(s.out), set()
        self.models = [f"--{name.replace('_', '-')}={getattr(s, name)}" for name in vars(lmcot.Models())]

    @functools.cached_property
    def large(self) -> lmcot.LM:
        return lmcot.load_large(self.s, self.s.out)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begun = sum(os.times()[:4])  # CPU seconds of this process and its children
        try:
            yield
        finally:
            with open(self.out / "minutes.jsonl", "a") as file:
                file.write(json.dumps({"name": name, "cpu_minutes": (sum(os.times()[:4]) - begun) / 60}) + "\n")

    def run(self, script: str, name: str, *flags: Any) -> Path:
        """The folder of a run that has ended; if it has not, its own command makes it or goes on. UserError where the
        folder's settings are others, or where the command fails."""
        folder = self.out / name
        arguments = [*map(str, flags), f"--out={folder}"]
        self.used.add(name)
        if (folder / "results.md").exists():
            try:
                settings = parse_settings(SCRIPTS[script], None, arguments)
                with Run(folder, settings) as run:
                    run.uses(trained(settings))
                    return folder
            except UserError as error:
                advice = r"(use|start again with) --overwrite"  # which is no flag of this script
                raise UserError(re.sub(advice, f"delete {folder}", str(error))) from None
        print(f"\n---- python {script} {shlex.join(arguments)}", flush=True)
        with self.timed(name):
            if subprocess.run([sys.executable, str(ROOT / script), *arguments]).returncode:
                raise UserError(f"{script} stopped, see above; with that mended, the same command goes on")
        return folder

    def kd(self, name: str = "kd", *flags: Any) -> list[Path]:
        """A folder of train_kd.py for each seed. M_L writes its rationales once, for the first of all."""
        common = [*self.models, f"--data={self.s.data}", f"--test-data={self.s.test_data}", *QUICK]
        common += [*shlex.split(self.s.kd_flags), *flags]
        if name != "kd":
            self.kd()  # whose rationales are taken over
        folders = []
        for seed in range(self.s.seeds):
            taken = [f"--rationales={self.out / 'kd-0'}"] if (name, seed) != ("kd", 0) else []
            folders.append(self.run("train_kd.py", f"{name}-{seed}", *common, "--seed", seed, *taken))
        return folders

    def rl(self, name: str, *flags: Any) -> list[Path]:
        """A folder of train_rl.py for each seed, from KD of the same seed on."""
        common = [*QUICK, *shlex.split(self.s.rl_flags), *flags]
        return [self.run("train_rl.py", f"{name}-{seed}", "--kd", kd, "--seed", seed, *common)
                for seed, kd in enumerate(self.kd())]  # fmt: skip

    def short_rl(self, name: str, *flags: Any) -> list[Path]:
        return self.rl(f"rl{self.s.steps}-{name}", "--steps", self.s.steps, *flags)

    def compare(
        self, name: str, place: str = "", split: str = "test", context: str = "gold", models: Sequence[str] = (),
        with_rl: bool = False,
    ) -> tuple[dict[str, np.ndarray], dict, list[data.Example]]:  # fmt: skip
        """A comparison of eval.py → EM in per cent of each method (seeds, questions), its results, its questions."""
        place = place or self.s.test_data or self.s.data
        folders = {"kd": self.kd(), "rl": self.rl("rl-both") if with_rl else []}
        patterns = [f"--{role}={str(each[0])[:-1]}[0-{len(each) - 1}]" if each else f"--{role}=none"
                    for role, each in folders.items()]  # fmt: skip
        folder = self.run("eval.py", f"eval-{name}", *self.models, *models, *patterns, "--direct=none",
                          f"--data={place}", f"--split={split}", f"--context={context}", "--limit", self.s.limit,
                          "--samples", COMPARED)  # fmt: skip
        examples = data.load(place, split, self.s.limit, context)
        runs: dict[str, list] = {}
        for row in read_jsonl(folder / "answers.jsonl"):
            assert [answer["id"] for answer in row["answers"]] == [example.id for example in examples]
            pairs = zip(row["answers"], examples, strict=True)
            runs.setdefault(row["method"], []).append([data.exact_match(a["prediction"], e.answers) for a, e in pairs])
        em = {method: 100 * np.broadcast_to(rows, (self.s.seeds, len(examples))) for method, rows in runs.items()}
        return em, read_json(folder / "results.json")["methods"], examples

    def answers(self, folders: Sequence[str | Path], split: str, samples: int = 0) -> list[list[list[dict]]]:
        """M_L's answers from the rationales of an M_S, one folder for each seed → (seeds, questions, 1 + samples)
        dicts: the greedy rationale first, then the sampled ones."""
        place = self.s.test_data if split == "test" and self.s.test_data else self.s.data
        examples = data.load(place, split, self.s.limit)
        runs = []
        for seed, folder in enumerate(folders):
            model = Path(folder) / "model" if (Path(folder) / "model").is_dir() else folder
            weights = Path(model) / "model.safetensors"
            of = [weights.read_bytes() if weights.is_file() else str(model).encode()]  # a name of the hub
            of += [repr((self.s.large, self.s.large_model, self.s.large_dtype, place)).encode()]
            key = hashlib.sha256(b"".join(of)).hexdigest()[:10]
            name = f"answers/{Path(folder).name}-{split}-{len(examples)}-{samples}-{key}.json"
            self.used.add(name)
            if not (self.out / name).exists():
                print(f"---- {name}", flush=True)
                with self.timed(name):
                    small = lmcot.load_small(self.s, model)
                    small.restart(seed)
                    (self.out / name).parent.mkdir(exist_ok=True)
                    atomic_write(self.out / name, json.dumps(ask(small, self.large, examples, samples)))
            runs.append(json.loads((self.out / name).read_text("utf-8")))
        return runs


def trained(settings: Any) -> dict[str, Path]:
    """The trained M_S from which a run with these settings starts: its files, by the names that the scripts give to
    `Run.uses`."""
    if isinstance(settings, train_rl.Settings):
        return {"M_S": Path(settings.kd) / "model" / "model.safetensors"}
    return trained_weights(settings) if isinstance(settings, EvalSettings) else {}


def questions_of(folder: str | Path) -> list[data.Example]:
    """The questions that the table of a run folder is about; UserError where it is none, or its KD run is gone."""
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


def ask(small: lmcot.LM, large: lmcot.LM, examples: list[data.Example], samples: int) -> list[list[dict]]:
    """(questions, 1 + samples) of rationale, M_L's prediction and its confidence, and what both are worth."""
    each = 1 + samples  # rationales of a question
    greedy = lmcot.write_rationales(small, examples, MAX_NEW_TOKENS)
    sampled = lmcot.write_rationales(small, examples, MAX_NEW_TOKENS, samples, TEMPERATURE) if samples else []
    rationales: list[str] = []
    for i, first in enumerate(greedy):
        rationales += [first, *sampled[i * samples : (i + 1) * samples]]

    rows = []
    for i, answer in enumerate(lmcot.answer(large, examples, rationales)):
        example, text, prediction = examples[i // each], answer.rationale, answer.prediction
        rows.append({
            "rationale": text,
            "prediction": prediction,
            "right": data.exact_match(prediction, example.answers),
            "tokens": small.count_tokens(text),
            "answer tokens": large.count_tokens(prediction),
            "R_aspect before the answer": rewards.quality(text, example)["R_aspect"],
            **rewards.quality(text, example, prediction),
        })  # fmt: skip
    if isinstance(large, lmcot.LocalLM):  # a server does not say how sure it is
        asked = [example for example in examples for _ in range(each)]
        prompts = lmcot.fill(lmcot.GUIDED, large, asked, rationales)
        confidences = score(large, prompts, [row["prediction"] for row in rows])
        for row, confidence in zip(rows, confidences, strict=True):
            row["confidence"] = confidence
    return [rows[i : i + each] for i in range(0, len(rows), each)]


@torch.no_grad()
def score(lm: lmcot.LocalLM, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """log P(answer | prompt) of each pair, in nats, summed over the answer's tokens and EOS."""
    pairs = list(zip(prompts, answers, strict=True))
    different = list(dict.fromkeys(pairs))  # what was sampled twice is computed once
    scores: dict[tuple[str, str], float] = {}
    for start in range(0, len(different), lm.batch_size):
        batch = different[start : start + lm.batch_size]
        sources = lm.tokenizer.encode_batch([prompt for prompt, _ in batch])
        targets = lm.tokenizer.encode_batch([answer for _, answer in batch])
        ids, mask = pad_batch([source.ids for source in sources], device=lm.device)
        labels, label_mask = pad_batch([target.ids for target in targets], device=lm.device)
        logp = log_softmax(lm.model(ids, mask, lm.model.shift_right(labels)), lm.forbid)  # (B, T, V)
        logp = logp.gather(2, labels[..., None])[..., 0].masked_fill(label_mask == 0, 0.0)  # (B, T)
        scores |= zip(batch, logp.sum(1).tolist(), strict=True)
    return [scores[pair] for pair in pairs]


def grid(runs: list, key: str) -> np.ndarray:
    """One figure of `Lab.answers` as an array (seeds, questions, 1 + samples)."""
    return np.array([[[row[key] for row in rows] for rows in run] for run in runs], dtype=float)


# ------------------------------------------------------------------------------------------------ statistics


def estimate(statistic: Callable[..., float], *arrays: np.ndarray) -> dict | None:
    """A statistic of arrays (seeds, questions, …), and its 95 % percentile interval over resampled seeds and questions;
    a draw takes the same ones of all arrays, which keeps what is compared paired. Draws in which the statistic is not
    defined (NaN) are left out; None where it is not defined at all."""
    rng = np.random.default_rng(0)
    seeds, questions = arrays[0].shape[:2]
    values = []
    for _ in range(BOOTSTRAPS):
        drawn = np.ix_(rng.integers(seeds, size=seeds), rng.integers(questions, size=questions))
        values.append(statistic(*(a[drawn] for a in arrays)))
    mean, values = float(statistic(*arrays)), np.array(values)
    return None if np.isnan(mean) else {"mean": mean, "interval": interval(values[~np.isnan(values)])}


def difference(x: np.ndarray, y: np.ndarray) -> float:
    return x.mean() - y.mean()


def ratio(x: np.ndarray, y: np.ndarray) -> float:
    return x.sum() / y.sum() if y.sum() else np.nan


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN where one of them does not vary."""
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) if x.std() > 1e-9 and y.std() > 1e-9 else np.nan


def auroc(scores: np.ndarray, right: np.ndarray) -> float:
    """The probability that a right answer scores higher than a wrong one, ties half; NaN if one kind is missing."""
    wins, losses = scores[right > 0], np.sort(scores[right == 0])
    if not len(wins) or not len(losses):
        return np.nan
    return float(np.mean([np.searchsorted(losses, wins, side) for side in ("left", "right")]) / len(losses))


def pairs_within(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(…, N) → for each question, how many pairs of a right and a wrong answer the scores rank rightly (ties half), and
    how many pairs there are: their ratio is the AUROC within questions."""
    pairs = (right[..., :, None] > 0) & (right[..., None, :] == 0)
    gaps = scores[..., :, None] - scores[..., None, :]
    return (pairs * ((gaps > 0) + 0.5 * (gaps == 0))).sum((-1, -2)), pairs.sum((-1, -2)).astype(float)


def chosen(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(…, N) → (…): the value of the sample with the highest score, the first among equals."""
    return np.take_along_axis(values, scores.argmax(-1)[..., None], -1)[..., 0]


def voted(runs: list, n: int) -> np.ndarray:
    """Whether the majority of the first n sampled answers is right (seeds, questions)."""
    def vote(rows: list[dict]) -> float:
        return rows[lmcot.majority([row["prediction"] for row in rows])]["right"]

    return np.array([[vote(rows[1 : n + 1]) for rows in run] for run in runs])


def unsteadiness(metrics: list[dict]) -> float:
    """Standard deviation of the reward from step to step of PPO around its trend, over the second half of a run."""
    reward = np.array([row["reward"] for row in metrics[len(metrics) // 2 :]])
    return float(np.diff(reward).std() / np.sqrt(2)) if len(reward) > 2 else 0.0


# ------------------------------------------------------------------------------------------------ what can go wrong


def signatures(results: dict | None, metrics: list[dict], max_new_tokens: int = 128) -> list[str]:
    """The failures to look for, in a table of eval.py (results.json) and in a run of train_rl.py (metrics.jsonl); those
    that `rl.warnings` names while PPO runs are among them."""
    methods, found = (results or {}).get("methods", {}), []
    kd, cot = "LM-guided, KD", "CoT"
    for name, row in methods.items():
        better, answers = (row.get(measure, {}).get(f"minus {kd}") for measure in ("R_aspect", "EM"))
        if name.startswith("LM-guided") and better and better["interval"][0] > 0 and answers["mean"] < 0.01:
            found.append(f"low accuracy despite high rationale scores: against KD, {name} has R_aspect "
                         f"{better['mean']:+.2f} and EM {100 * answers['mean']:+.1f}")  # fmt: skip
        against = row["EM"].get(f"minus {cot}")
        if name.startswith("LM-guided") and against and against["interval"][1] < 0:
            found.append(f"LM-guided worse than CoT: {name} by {-100 * against['mean']:.1f} EM; M_L may write better "
                         "than M_S reads: look at the gold rationale's row, and at what the filter kept")  # fmt: skip
        slower = row["seconds per question"] / max(methods.get(cot, row)["seconds per question"], 1e-9)
        if name in (kd, "LM-guided, RL") and slower > 2:
            found.append(f"long inference times: {name} takes {slower:.1f} times as long as CoT")
    reward = [row["reward"] for row in metrics]
    if len(metrics) >= 10:
        tenth = max(3, len(metrics) // 10)
        gain = np.mean(reward[-tenth:]) - np.mean(reward[:tenth])
        if unsteadiness(metrics) > max(gain, 0.02):
            found.append(f"high variance of rewards: ± {unsteadiness(metrics):.2f} from step to step, and {gain:+.2f} "
                         "in the whole run: more --questions or --samples-per-question, or a lower --lr")  # fmt: skip
    return found + rl.warnings(metrics, max_new_tokens)


# ------------------------------------------------------------------------------------------------ tables


def table(title: str, columns: Sequence[str], rows: list[list]) -> dict:
    return {"title": title, "columns": list(columns), "rows": rows}


def cell_text(cell: Any, column: str) -> str:
    """A cell of a result file as text; the column's name says with how many digits and whether with a sign."""
    digits = next((n for word, n in (("%", 1), ("seconds", 3), ("step kept", 0), ("tokens", 1)) if word in column), 2)
    sign = "+" if "minus" in column else ""
    match cell:
        case None:
            return ""
        case float():
            return f"{cell:{sign}.{digits}f}"
        case {"mean": value, "interval": [low, high]}:
            return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    return str(cell)


def as_markdown(result: dict) -> str:
    parts = [f"# {result['question']}"]
    for t in result["tables"]:
        rows = [[str(row[0]), *map(cell_text, row[1:], t["columns"][1:])] for row in t["rows"]]
        parts += [t["title"], align([t["columns"], *rows])]
    parts.append(f"`{result['command']}`; seeds: {result['seeds']}; {result['cpu_minutes']:.0f} CPU minutes, those of "
                 "shared runs included; intervals: 95 %.")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def method_table(title: str, em: dict[str, np.ndarray], results: dict) -> dict:
    """The table of eval.py; the intervals of EM are this file's."""
    bases = [base for base in BASELINES if base in em]
    rows = []
    for name, right in em.items():
        row = results[name]
        rows.append([name, estimate(np.mean, right),
                     *(None if base == name else estimate(difference, right, em[base]) for base in bases),
                     {key: row["R_aspect"][key] for key in ("mean", "interval")} if "R_aspect" in row else None,
                     row["tokens per question"], row["seconds per question"]])  # fmt: skip
    columns = ["method", "EM %", *(f"minus {base}, %" for base in bases), "R_aspect", "tokens", "seconds"]
    return table(title, columns, rows)


def arm_table(lab: Lab, title: str, arms: dict[str, list], split: str, samples: int = 0) -> dict:
    """Ways of training M_S, each a folder per seed, against the first of them. Rationales are greedy; with samples,
    there is the best of N by R_aspect, before M_L answers, too. PPO keeps the M_S of the step with the highest reward
    on its held-out questions, which are the first of the dev split: where training did harm, that is an early step."""
    runs = {label: lab.answers(folders, split, samples) for label, folders in arms.items()}

    def greedy(label: str, key: str) -> np.ndarray:
        return grid(runs[label], key)[..., 0]

    first, *_ = arms
    best = ["best of N, EM %"] * bool(samples)
    columns = ["M_S", "EM %", f"minus {first}, EM %", "between seeds, EM %", "R_aspect", f"minus {first}, R_aspect",
               "factuality", *best, "step kept", "KL at the last step", "reward, step to step"]  # fmt: skip
    rows = []
    for label, folders in arms.items():
        em, good = 100 * greedy(label, "right"), greedy(label, "R_aspect")
        gains = [(em, 100 * greedy(first, "right")), (good, greedy(first, "R_aspect"))]
        em_gain, good_gain = (None if label == first else estimate(difference, *pair) for pair in gains)
        between = float(em.mean(1).std(ddof=1)) if len(em) > 1 else None
        row = [label, estimate(np.mean, em), em_gain, between, estimate(np.mean, good), good_gain,
               estimate(np.mean, greedy(label, "factuality"))]  # fmt: skip
        if samples:
            before, right = (grid(runs[label], key)[..., 1:] for key in ("R_aspect before the answer", "right"))
            row.append(estimate(np.mean, 100 * chosen(before, right)))
        metrics = [read_jsonl(Path(folder) / "metrics.jsonl") for folder in folders]
        if all(each and "kl" in each[-1] for each in metrics):  # PPO
            looks = [read_jsonl(Path(folder) / "dev.jsonl") for folder in folders]
            row += [float(np.mean(each)) for each in (
                [max(look, key=lambda at: at["reward"])["step"] for look in looks],
                [each[-1]["kl"] for each in metrics], [unsteadiness(each) for each in metrics])]  # fmt: skip
        rows.append(row + [None] * (len(columns) - len(row)))
    told = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]  # PPO's only where there is any
    columns, rows = [columns[i] for i in told], [[row[i] for i in told] for row in rows]
    return table(f"{title} {len(runs[first][0])} {split} questions.", columns, rows)


# ------------------------------------------------------------------------------------------------ the experiments


def methods(lab: Lab) -> list[dict]:
    """Does M_S after KD guide M_L better than M_L guides itself?"""
    em, results, examples = lab.compare("test")
    return [method_table(f"{len(examples)} test questions, N = {COMPARED}.", em, results)]


def reward(lab: Lab) -> list[dict]:
    """What does PPO add, and what should it be rewarded for?"""
    arms = {
        "KD": lab.kd(),
        "RL, both, sum": lab.rl("rl-both"),
        "RL, both, standardized": lab.rl("rl-standardized", "--reward", "standardized"),
        "RL, right answers only": lab.rl("rl-task", "--weights", 0),
        "RL, quality only": lab.rl("rl-aspect", "--task-weight", 0),
    }
    title = f"Greedy rationales, and the best of {COMPARED}."
    return [arm_table(lab, title, arms, split, COMPARED) for split in ("dev", "test")]


def reliability(lab: Lab) -> list[dict]:
    """Does the quality of a rationale tell whether the answer from it is right?"""
    runs = lab.answers(lab.kd(), "dev", lab.s.samples)
    right, before = (grid(runs, key)[..., 1:] for key in ("right", "R_aspect before the answer"))
    rows = []
    for threshold in (0, 4, 5, 5.5, 6, 6.5, 7, 7.25, 7.5):
        kept = (before >= threshold).astype(float)
        if kept.sum():
            rows.append([threshold, estimate(np.mean, 100 * kept), estimate(ratio, 100 * right * kept, kept),
                         estimate(ratio, 100 * right * (1 - kept), 1 - kept) if kept.min() == 0 else None])  # fmt: skip
    where = f"{right.shape[2]} sampled rationales for each of {right.shape[1]} dev questions."
    curve = table(f"By threshold of R_aspect, before M_L answers. {where}",
                  ["R_aspect at least", "kept %", "EM % of these", "EM % of the others"], rows)  # fmt: skip
    rows = []
    for key in ("R_aspect before the answer", "R_aspect", *rewards.ASPECTS, "confidence"):
        if key in runs[0][0][0]:
            scores = grid(runs, key)[..., 1:]
            rows.append([key, estimate(correlation, scores, right), estimate(auroc, scores, right),
                         estimate(ratio, *pairs_within(scores, right))])  # fmt: skip
    columns = ["predictor", "correlation", "AUROC", "AUROC within a question"]
    return [curve, table(f"As a predictor of right answers. {where}", columns, rows)]


def aspects(lab: Lab) -> list[dict]:
    """Which aspects does the reward need?"""
    content = ("factuality", "relevance", "logicality", "coherence")
    form = [name for name in rewards.ASPECTS if name not in content]
    weights = {f"without {name}": f"{name}=0" for name in rewards.ASPECTS}
    weights |= {
        "factuality only": "0,factuality=1",
        "content only": ",".join(f"{name}=0" for name in form),
        "form only": ",".join(f"{name}=0" for name in content),
        "factuality × 4": "factuality=4",
    }
    arms = {"all eight": lab.short_rl("all-eight"), "KD": lab.kd()}
    for label, text in weights.items():
        arms[label] = lab.short_rl(label.replace(" ", "-").replace("×", "x"), "--weights", text)
    names = f"Content: {', '.join(content)}; form: {', '.join(form)}."
    return [arm_table(lab, f"PPO shortened to {lab.s.steps} steps; R_aspect with all weights 1. {names}", arms, "dev")]


def ood(lab: Lab) -> list[dict]:
    """What is left on other questions and in longer contexts?"""
    names = ("standard", "CoT", "LM-guided, untrained", "LM-guided, KD", "LM-guided, RL", "gold rationale")
    kd, refined, cot = names[3], names[4], names[1]
    columns = ["questions", "number", *(f"{name}, EM %" for name in names), "KD minus CoT, %", "RL minus KD, %"]
    rows = []

    def add(label: str, em: dict[str, np.ndarray]) -> None:
        rows.append([label, em[kd].shape[1], *(estimate(np.mean, em[m]) if m in em else None for m in names),
                     estimate(difference, em[kd], em[cot]), estimate(difference, em[refined], em[kd])])  # fmt: skip

    add("test, gold paragraphs", lab.compare("test-rl", with_rl=True)[0])
    add("test, all paragraphs", lab.compare("test-all", context="all", with_rl=True)[0])
    others = {name: (name, "test") for name in filter(None, lab.s.ood.split(","))}
    for name, (place, split) in ({"ood": ("tiny", "ood")} if lab.s.data == "tiny" else others).items():
        em, _, examples = lab.compare(f"ood-{Path(name).stem}", place, split, with_rl=True)
        add(f"{name}, all questions", em)
        types = np.array([example.type for example in examples])
        for kind in sorted(set(types) - {""}):
            add(f"{name}, {kind}", {method: right[:, types == kind] for method, right in em.items()})
    title = "Trained on the train split of the first row's data, with gold paragraphs."
    if lab.s.data != "tiny":
        title += " FLAN-T5 has probably seen HotpotQA and StrategyQA: only MuSiQue is out of its distribution."
    return [table(title, columns, rows)]


def selection(lab: Lab) -> list[dict]:
    """Of N rationales, which one should M_L answer from?"""
    runs = lab.answers(lab.kd(), "dev", lab.s.samples)
    right, before = 100 * grid(runs, "right"), grid(runs, "R_aspect before the answer")[..., 1:]
    greedy, right = right[..., 0], right[..., 1:]
    ways = {  # the first five choose before M_L answers
        "greedy, no choice": greedy,
        "first sampled": right[..., 0],
        "by R_aspect": chosen(before, right),
        "by factuality alone": chosen(grid(runs, "factuality")[..., 1:], right),
        "the worst by R_aspect": chosen(-before, right),
        "majority of answers": 100 * voted(runs, lab.s.samples),
    }
    asked = dict.fromkeys(list(ways)[:5], 1)
    if "confidence" in runs[0][0][0]:
        sure = grid(runs, "confidence")[..., 1:]
        quality_z, sure_z = ((x - x.mean()) / max(x.std(), 1e-9) for x in (before, sure))
        for share in (0.25, 0.5, 0.75):
            mixed = share * quality_z + (1 - share) * sure_z
            ways[f"by {share:.0%} R_aspect, {1 - share:.0%} confidence"] = chosen(mixed, right)
        ways["by M_L's confidence"] = chosen(sure, right)
    ways["oracle: right if any is"] = right.max(-1)
    rows = [[way, estimate(np.mean, em), None if em is greedy else estimate(difference, em, greedy),
             asked.get(way, lab.s.samples)] for way, em in ways.items()]  # fmt: skip
    where = f"{lab.s.samples} rationales sampled for each of {right.shape[1]} dev questions, M_S after KD."
    first = table(where, ["way of choosing", "EM %", "minus greedy, %", "answers asked of M_L"], rows)
    order = np.argsort(-before, -1, kind="stable")
    right, before = (np.take_along_axis(x, order, -1) for x in (right, before))
    rows = [[r + 1, estimate(np.mean, before[..., r]), estimate(np.mean, right[..., r])] for r in range(right.shape[2])]
    curve = table(f"Quality against accuracy: rank by R_aspect within the question. {where}",
                  ["rank", "R_aspect", "EM %"], rows)  # fmt: skip
    return [first, curve]


def reader(lab: Lab) -> list[dict]:
    """Does the same M_S guide another M_L?"""
    large, small = lab.s.large, lab.s.small
    ways = {f"{large}, which taught M_S": ("test", [])}
    if lab.s.other_large:
        ways[lab.s.other_large] = ("reader-other", shlex.split(lab.s.other_large))
    elif lab.s.large_model:
        raise UserError("a server's M_L is not fine-tuned here: name another with --other-large")
    else:
        tuned = lab.run("train_kd.py", "tuned-large", *lab.models, f"--small={large}", f"--data={lab.s.data}",
                        f"--test-data={lab.s.test_data}", *QUICK, "--epochs", 3, *shlex.split(lab.s.kd_flags),
                        "--target=answer")  # fmt: skip
        ways[f"{large}, fine-tuned to answer directly"] = ("reader-tuned", [f"--large={tuned / 'model'}"])
        ways[f"{small}, which only ever wrote"] = ("reader-small", [f"--large={small}"])
    tables = []
    for who, (name, flags) in ways.items():
        em, results, examples = lab.compare(name, models=flags)
        tables.append(method_table(f"M_L: {who}. {len(examples)} test questions, N = {COMPARED}.", em, results))
    return tables


def samples(lab: Lab) -> list[dict]:
    """How many rationales are worth their cost?"""
    runs = lab.answers(lab.kd(), "dev", lab.s.samples)
    right, before, tokens, told = (grid(runs, key)[..., 1:] for key in
                                   ("right", "R_aspect before the answer", "tokens", "answer tokens"))  # fmt: skip
    rows = []
    for n in [2**i for i in range(10) if 2**i <= lab.s.samples]:
        written, best = float(tokens[..., :n].sum(-1).mean()), before[..., :n]
        rows.append([n, estimate(np.mean, 100 * voted(runs, n)), n, written + float(told[..., :n].sum(-1).mean()),
                     estimate(np.mean, 100 * chosen(best, right[..., :n])), 1,
                     written + float(chosen(best, told[..., :n]).mean()),
                     estimate(np.mean, 100 * right[..., :n].max(-1))])  # fmt: skip
    columns = ["N", "SC, EM %", "SC: M_L asked", "SC: tokens", "best of N by R_aspect, EM %", "best: M_L asked",
               "best: tokens", "oracle, EM %"]  # fmt: skip
    title = f"M_S after KD, {right.shape[1]} dev questions; tokens are those that both LMs write for a question."
    return [table(title, columns, rows)]


def filter_(lab: Lab) -> list[dict]:
    """What is the filter of M_L's rationales worth?"""
    arms = {"KD": lab.kd(), "KD, wrong answers too": lab.kd("kd-unfiltered", "--no-filter"),
            "untrained": [lab.s.small] * lab.s.seeds}  # fmt: skip
    kept = {label: json.loads((Path(arms[label][0]) / "filter.json").read_text("utf-8"))[0] for label in list(arms)[:2]}
    title = " ".join(f"{label}: {count['kept']} of {count['asked']} rationales kept." for label, count in kept.items())
    return [arm_table(lab, title, arms, "test")]


def sizes(lab: Lab) -> list[dict]:
    """Is a larger M_S a better guide?"""
    arms = []
    other = lab.kd("kd-other", f"--small={lab.s.other_small}")
    for place, folders in ((lab.s.small, lab.kd()), (lab.s.other_small, other)):
        parameters = sum(p.numel() for p in lmcot.load_small(lab.s, place).model.parameters())
        who = f"{place} ({parameters / 1e6:.1f} M)"
        arms += [(f"{who}, untrained", [place] * lab.s.seeds), (f"{who}, KD", folders)]
    title = f"M_L: {lab.s.large}, which taught both."
    return [arm_table(lab, title, dict(each), "test") for each in (arms, arms[2:])]


def sensitivity(lab: Lab) -> list[dict]:
    """How much do β, λ and the learning rate matter, and how much does each aspect add to the reward's variance?"""
    lr = parse_settings(train_rl.Settings, None, shlex.split(lab.s.rl_flags)).lr
    sweeps = {"beta": (0, 0.2), "task-weight": (0, 1, 16), "lr": (lr / 3, lr * 3)}
    arms = {"defaults": lab.short_rl("all-eight"), "KD": lab.kd()}
    for flag, values in sweeps.items():
        for value in values:
            arms[f"--{flag} {value:g}"] = lab.short_rl(f"{flag}-{value:g}", f"--{flag}", f"{value:g}")
    sweep = arm_table(lab, f"PPO shortened to {lab.s.steps} steps.", arms, "dev")

    runs = lab.answers(lab.kd(), "dev", lab.s.samples)
    parts = np.stack([grid(runs, key)[..., 1:] for key in (*rewards.ASPECTS, "right")], -1)  # (…, N, 9)
    parts = parts - parts.mean(2, keepdims=True)  # as PPO's baseline does: only differences within a question teach
    covariances = np.einsum("sqni,sqnj->sqij", parts, parts) / parts.shape[2]
    rows = []
    for k in range(len(rewards.ASPECTS) + 1):
        subsets = itertools.combinations(range(8), k)
        masks = np.array([[i == 8 or i in subset for i in range(9)] for subset in subsets], dtype=float)
        rows.append([k, *(estimate(lambda c, m=masks, i=i: of_sum(m, c)[i], covariances) for i in (0, 1))])
    title = (f"R with k aspects and the right answer, the mean over all choices of k: how it varies among "
             f"{lab.s.samples} rationales for one question. {len(runs[0])} dev questions, M_S after KD.")  # fmt: skip
    columns = ["aspects in R", "standard deviation within a question", "its share that the right answer explains"]
    return [sweep, table(title, columns, rows)]


def of_sum(masks: np.ndarray, covariances: np.ndarray) -> tuple[float, float]:
    """Standard deviation of a sum of parts, and its squared correlation with the last of them; the means over masks
    (subsets, parts) of which parts are in the sum."""
    c = covariances.mean((0, 1))
    variances = np.einsum("ki,ij,kj->k", masks, c, masks)
    shares = (masks @ c[:, -1]) ** 2 / np.maximum(variances * c[-1, -1], 1e-12)
    return float(np.sqrt(variances).mean()), float(shares.mean())


def context(lab: Lab) -> list[dict]:
    """What do paragraphs that nobody needs cost?"""
    place = lab.s.test_data or lab.s.data
    gold, full = (data.load(place, "test", lab.s.limit, which) for which in ("gold", "all"))
    most = max(len(f.paragraphs) - len(g.paragraphs) for f, g in zip(full, gold, strict=True))
    (lab.out / "data").mkdir(parents=True, exist_ok=True)
    names = ("standard", "CoT", "LM-guided, KD", "LM-guided, KD + SC", "gold rationale")
    rows = []
    for k in [k for k in (0, 1, 2, 4, 8) if k <= most]:
        path = lab.out / "data" / f"test-{lab.s.limit}-distractors-{k}.json"
        atomic_write(path, json.dumps([with_distractors(*pair, k) for pair in zip(gold, full, strict=True)]))
        em, results, examples = lab.compare(f"distractors-{k}", str(path), context="all")
        read = np.mean([lab.large.count_tokens(prompt) for prompt in lmcot.fill(lmcot.STANDARD, lab.large, examples)])
        rows.append([k, float(read), *(estimate(np.mean, em[m]) if m in em else None for m in names),
                     estimate(difference, em[names[2]], em[names[1]]),
                     *(results[m]["seconds per question"] for m in names[:4])])  # fmt: skip
    columns = ["distractors", "tokens of a prompt", *(f"{m}, EM %" for m in names), "KD minus CoT, %",
               *(f"{m}, seconds" for m in names[:4])]  # fmt: skip
    title = f"The gold paragraphs and up to so many others, {lab.s.limit} test questions, N = {COMPARED}."
    return [table(title, columns, rows)]


def with_distractors(gold: data.Example, full: data.Example, k: int) -> dict:
    """A record of HotpotQA's form with the gold paragraphs and the first k others, in their order. Titles, which no
    model sees, are numbers, so that each is unique."""
    others = [p for p, paragraph in enumerate(full.paragraphs) if paragraph not in gold.paragraphs]
    return {
        "_id": full.id,
        "question": full.question,
        "answer": full.answer,
        "aliases": list(full.aliases),
        "type": full.type,
        "supporting_facts": [[str(p), s] for p, s in full.supporting_facts],
        "context": [[str(p), list(x.sentences)] for p, x in enumerate(full.paragraphs) if p not in others[k:]],
    }


# name → (what makes its tables, CPU minutes on the embedded default beyond the shared runs, which take 15 for KD of
# three seeds and 26 for PPO with the default reward); in the order in which `all` runs them
EXPERIMENTS = {
    "methods": (methods, 3),
    "reward": (reward, 80),
    "reliability": (reliability, 5),
    "selection": (selection, 1),
    "samples": (samples, 1),
    "filter": (filter_, 25),
    "aspects": (aspects, 97),
    "ood": (ood, 20),
    "context": (context, 17),
    "reader": (reader, 12),
    "sizes": (sizes, 27),
    "sensitivity": (sensitivity, 60),
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name:
        rows = [["experiment", "CPU minutes", "question"]]
        rows += [[name, str(minutes), make.__doc__] for name, (make, minutes) in EXPERIMENTS.items()]
        print(align(rows))
        return
    if name not in (*EXPERIMENTS, "all", "-h", "--help"):
        raise UserError(f"there is no experiment {name!r} (expected all, {', '.join(EXPERIMENTS)})")
    s = parse_settings(Settings, __doc__, sys.argv[1:] if name.startswith("-") else sys.argv[2:])
    failed = []
    for each in EXPERIMENTS if name == "all" else [name]:
        lab = Lab(s)
        (lab.out / "results").mkdir(parents=True, exist_ok=True)
        try:
            tables = EXPERIMENTS[each][0](lab)
        except UserError as error:  # the others may work
            failed.append(f"{each}: {error}")
            continue
        minutes = read_jsonl(lab.out / "minutes.jsonl")
        result = {
            "name": each,
            "question": EXPERIMENTS[each][0].__doc__,
            "command": shlex.join(["python", "lab/experiments.py", each, *sys.argv[2:]]),
            "seeds": s.seeds,
            "cpu_minutes": sum(row["cpu_minutes"] for row in minutes if row["name"] in lab.used),
            "tables": tables,
        }
        atomic_write(lab.out / "results" / f"{each}.json", as_json(result))
        atomic_write(lab.out / "results" / f"{each}.md", as_markdown(result))
        print(f"\n{as_markdown(result)}", flush=True)
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    run_main(main)
