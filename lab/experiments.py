"""The experiments that the paper asks for or leaves open, each one command.

    python lab/experiments.py                      # what there is, and what it costs
    python lab/experiments.py selection            # one of them → runs/lab/results/selection.md and .json
    python lab/experiments.py reward --seeds 5     # with more seeds; those that are there are not trained again
    python lab/experiments.py all                  # all of them; interrupt it when you like, the same command goes on
    python lab/experiments.py tables > FILE.md     # the results so far as one document; --out lab: those of docs/
    python lab/experiments.py ood --small google/flan-t5-small --large google/flan-t5-xxl --large-dtype bfloat16 \\
        --data 2wiki --ood musique.jsonl,strategyqa.json --kd-flags "--lr 3e-4 --bf16 --train-limit 90000" \\
        --rl-flags "--lr 1e-5 --bf16 --train-limit 90000" --out runs/lab-flan

`habits` needs M_L with other habits, which it gets in its last phase (9 CPU minutes each):

    python tiny/pretrain.py --large tiny/large --slips 0 --out runs/pair-noslips
    python tiny/pretrain.py --large tiny/large --leaps 0 --out runs/pair-noleaps
    python tiny/pretrain.py --large tiny/large --slips 0 --leaps 0 --out runs/pair-faithful
    python lab/experiments.py habits --habits runs/pair-noslips/large,runs/pair-noleaps/large,runs/pair-faithful/large

Trainings and comparisons are run folders of train_kd.py, train_rl.py and eval.py, continued where they were cut off and
shared by all experiments. An experiment is a list of such runs and a table over them, or an analysis of answers. What
is a choice (a weight, β, N, a threshold) is looked at on dev questions, what was fixed before is reported on test
questions. Intervals are 95 % percentile bootstrap over seeds and questions; costs and PPO's own curves are plain means.

A result file: {name, question, command, commit, machine, seeds, cpu_minutes, tables: [{title, columns, rows}]}. A row's
first cell is its label; a cell is null, text, a number, or {"mean", "interval"}; columns with % are in per cent.
There is no experiment with a larger M_S: both LMs of the tiny pair have one size.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
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
import train_kd  # noqa: E402
import train_rl  # noqa: E402
from eval import METHODS, interval, trained_weights  # noqa: E402
from eval import Settings as EvalSettings  # noqa: E402
from lab import classes  # noqa: E402
from plumbing.command import align, parse_settings, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import as_json, atomic_write, read_json, read_jsonl, sha256  # noqa: E402
from plumbing.run import Run  # noqa: E402

SCRIPTS = {"train_kd.py": train_kd.Settings, "train_rl.py": train_rl.Settings, "eval.py": EvalSettings}
QUICK = ("--test-limit", 20, "--samples", 2)  # of the table at the end of a training: the experiments make their own
COMPARED = 5  # N of self-consistency and best of N in the comparisons of eval.py
MAX_NEW_TOKENS, TEMPERATURE = EvalSettings.max_new_tokens, EvalSettings.temperature
BOOTSTRAPS = 1000
UNTRAINED, KD, RL = "LM-guided, untrained", "LM-guided, KD", "LM-guided, RL"  # methods of eval.py


@dataclass
class Settings(lmcot.Models):
    data: str = "tiny"  # as in train_kd.py
    test_data: str = ""  # as in train_kd.py
    ood: str = ""  # files of other data sets, with commas between them (ood)
    habits: str = ""  # folders of M_L with other habits, with commas between them (habits)
    other_large: str = ""  # flags for another M_L (reader), as one text: "--large http://… --large-model NAME"
    seeds: int = 3  # of KD, and of PPO after it
    limit: int = 500  # questions of an evaluation
    samples: int = 16  # rationales sampled for each question (threshold, selection)
    sweep_steps: int = 20  # of PPO in sweeps (aspects, sweep)
    control_epochs: int = 14  # of longer KD (control): should take as many CPU minutes as KD and PPO together
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

Answers = dict[str, np.ndarray]  # what is known of answers → (seeds, questions, 1 + samples), the greedy one first


class Lab:
    """What the experiments share: run folders and answers."""

    def __init__(self, s: Settings):
        self.s = s
        self.out = Path(s.out)
        self.used: set[Path] = set()  # runs and answers that the tables are made from
        self.models = [f"--{name.replace('_', '-')}={getattr(s, name)}" for name in vars(lmcot.Models())]
        self.kd_flags = [*self.models, f"--data={s.data}", f"--test-data={s.test_data}", *QUICK]
        self.kd_flags += shlex.split(s.kd_flags)
        self.rl_flags = [*QUICK, *shlex.split(s.rl_flags)]

    @functools.cached_property
    def large(self) -> lmcot.LM:
        return lmcot.load_large(self.s, self.s.out)

    def with_large(self, place: str) -> "Lab":
        """The same with another M_L, in a folder of its own."""
        if place == self.s.large:
            return self
        name = re.sub(r"\W+", "-", place).strip("-")
        other = Lab(dataclasses.replace(self.s, large=place, out=str(self.out / name)))
        other.used = self.used
        return other

    def run(self, script: str, name: str, *flags: Any) -> Path:
        """The folder of a run that has ended; if it has not, its own command makes it or goes on. UserError where the
        folder's settings or LMs are others, or where the command fails."""
        folder = self.out / name
        self.used.add(folder)
        arguments = [*map(str, flags), f"--out={folder}"]
        if not (folder / "results.md").exists():
            print(f"\n---- python {script} {shlex.join(arguments)}", flush=True)
            with timed(folder):
                ended = subprocess.run([sys.executable, str(ROOT / script), *arguments])
            if ended.returncode:
                raise UserError(f"{script} stopped, see above; with that mended, the same command goes on")
        try:
            settings = settings_of(script, arguments)
            with Run(folder, settings) as run:
                run.uses(made_from(settings))
        except UserError as error:
            advice = r"(use|start again with) --overwrite"  # which is no flag of this script
            raise UserError(re.sub(advice, f"delete {folder}", str(error))) from None
        return folder

    def kd(self, name: str = "kd", *flags: Any) -> list[Path]:
        """A folder of train_kd.py for each seed. M_L writes its rationales once, for the first of all."""
        if name != "kd":
            self.kd()  # whose rationales are taken over
        folders = []
        for seed in range(self.s.seeds):
            more = ["--seed", seed]
            if (name, seed) != ("kd", 0):
                more.append(f"--rationales={self.out / 'kd-0'}")
            folders.append(self.run("train_kd.py", f"{name}-{seed}", *self.kd_flags, *flags, *more))
        return folders

    def rl(self, name: str = "rl", *flags: Any) -> list[Path]:
        """A folder of train_rl.py for each seed, from KD of the same seed on."""
        folders = []
        for seed, kd in enumerate(self.kd()):
            start = ["--kd", kd, "--seed", seed]
            folders.append(self.run("train_rl.py", f"{name}-{seed}", *start, *self.rl_flags, *flags))
        return folders

    def rl_of_steps(self, steps: int, name: str = "default", *flags: Any) -> list[Path]:
        return self.rl(f"rl{steps}-{name}", "--steps", steps, *flags)

    def untrained(self) -> list[str]:
        return [self.s.small] * self.s.seeds

    def compare(self, name: str, *flags: Any) -> Path:
        """The folder of a comparison by eval.py, on test questions with gold paragraphs unless flags say otherwise."""
        models = [*self.models, f"--kd={pattern_of(self.kd())}", f"--rl={pattern_of(self.rl())}", "--direct=none"]
        questions = [f"--data={self.s.test_data or self.s.data}", "--limit", self.s.limit, "--samples", COMPARED]
        return self.run("eval.py", f"eval-{name}", *models, *questions, *flags)

    def questions(self, split: str) -> list[data.Example]:
        place = self.s.test_data if split == "test" and self.s.test_data else self.s.data
        return data.load(place, split, self.s.limit)

    def answers(self, folders: Sequence[str | Path], split: str, samples: int = 0) -> Answers:
        """M_L's answers from the rationales of an M_S, one folder for each seed."""
        examples = self.questions(split)
        runs = []
        for seed, folder in enumerate(folders):
            model = Path(folder) / "model"
            if not model.is_dir():
                model = Path(folder)  # or a name of the hub
            asked = (identity(model), identity(self.s.large), self.s.large_model, self.s.large_dtype, examples)
            key = hashlib.sha256(repr(asked).encode()).hexdigest()[:10]
            file = self.out / "answers" / f"{Path(folder).name}-{split}-{len(examples)}-{samples}-{key}.json"
            self.used.add(file)
            if not file.exists():
                print(f"---- {file}", flush=True)
                with timed(file):
                    small = lmcot.load_small(self.s, model)
                    small.restart(seed)
                    atomic_write(file, json.dumps(ask(small, self.large, examples, samples)))
            runs.append(read_json(file))
        found = {}
        for name in runs[0]:
            flat = np.array([run[name] for run in runs])
            found[name] = flat.reshape(len(runs), len(examples), 1 + samples)
        return found


@contextlib.contextmanager
def timed(place: Path) -> Iterator[None]:
    """Writes the CPU minutes of this process and its children into a file beside `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    begun = sum(os.times()[:4])
    try:
        yield
    finally:
        seconds = sum(os.times()[:4]) - begun
        row = {"name": place.name, "cpu_minutes": seconds / 60}
        with open(place.parent / "minutes.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def minutes_of(place: Path) -> float:
    """CPU minutes of a run or of answers, all stretches together; those that a SIGKILL ended are not known."""
    rows = read_jsonl(place.parent / "minutes.jsonl")
    return sum(row["cpu_minutes"] for row in rows if row["name"] == place.name)


def pattern_of(folders: list[Path]) -> str:
    """The folders of all seeds as eval.py is given them: runs/lab/kd-[0-2]."""
    return f"{str(folders[0])[:-1]}[0-{len(folders) - 1}]"


def settings_of(script: str, flags: Sequence) -> Any:
    return parse_settings(SCRIPTS[script], None, list(map(str, flags)))


def made_from(settings: Any) -> dict[str, Path]:
    """The LMs from which a run with these settings is made, by the names that the scripts give to `Run.uses`."""
    if isinstance(settings, train_rl.Settings):
        return {"M_S": Path(settings.kd) / "model" / "model.safetensors"}
    found = {"M_L": Path(settings.large) / "model.safetensors"}
    found["M_S before training"] = Path(settings.small) / "model.safetensors"
    if isinstance(settings, EvalSettings):
        found |= trained_weights(settings)
    return found


def identity(place: str | Path) -> str:
    """The hash of an LM's weights, or its name on the hub or on a server."""
    weights = Path(place) / "model.safetensors"
    return sha256(weights) if weights.is_file() else str(place)


def ask(small: lmcot.LM, large: lmcot.LM, examples: list[data.Example], samples: int) -> dict[str, list]:
    """Rationales, M_L's answers from them and what both are worth, 1 + samples in a row for each question."""
    greedy = lmcot.write_rationales(small, examples, MAX_NEW_TOKENS)
    sampled = lmcot.write_rationales(small, examples, MAX_NEW_TOKENS, samples, TEMPERATURE) if samples else []
    rationales: list[str] = []
    for i, first in enumerate(greedy):
        rationales += [first, *sampled[i * samples : (i + 1) * samples]]

    found: dict[str, list] = {}
    for i, answer in enumerate(lmcot.guided(large, examples, rationales)):
        example, text = examples[i // (1 + samples)], answer.rationale
        row = {"rationale": text, "tokens": small.count_tokens(text)}
        row["prediction"] = data.normalize_answer(answer.prediction)
        row["right"] = 100 * data.exact_match(answer.prediction, example.answers)
        row["R_aspect before the answer"] = rewards.quality(text, example)["R_aspect"]
        row |= rewards.quality(text, example, answer.prediction)
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


# ------------------------------------------------------------------------------------------------ statistics


def estimate(statistic: Callable[..., float], *arrays: np.ndarray) -> dict | None:
    """A statistic of arrays (seeds, questions, …), and its 95 % percentile interval over resampled seeds and questions;
    a draw takes the same ones of all arrays, which keeps what is compared paired. Draws in which the statistic is not
    defined (NaN) are left out; None where it is not defined at all."""
    rng = np.random.default_rng(0)
    seeds, questions = arrays[0].shape[:2]
    values = []
    for _ in range(BOOTSTRAPS):
        some_seeds, some_questions = rng.integers(seeds, size=seeds), rng.integers(questions, size=questions)
        drawn = np.ix_(some_seeds, some_questions)
        values.append(statistic(*[array[drawn] for array in arrays]))
    mean = float(statistic(*arrays))
    if np.isnan(mean):
        return None
    defined = np.array(values)[~np.isnan(values)]
    return {"mean": mean, "interval": interval(defined)}


def difference(x: np.ndarray, y: np.ndarray) -> float:
    return x.mean() - y.mean()


def ratio(x: np.ndarray, y: np.ndarray) -> float:
    return x.sum() / y.sum() if y.sum() else np.nan


def pairs_within(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(…, N) → for each question, how many pairs of a right and a wrong answer the scores rank rightly (ties half), and
    how many pairs there are: their ratio is the AUROC within questions, to which it is all one how hard these are."""
    pairs = (right[..., :, None] > 0) & (right[..., None, :] == 0)
    gaps = scores[..., :, None] - scores[..., None, :]
    won = pairs * ((gaps > 0) + 0.5 * (gaps == 0))
    both = (-1, -2)
    return won.sum(both), pairs.sum(both).astype(float)


def chosen(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(…, N) → (…): the value of the sample with the highest score, the first among equals."""
    return np.take_along_axis(values, scores.argmax(-1)[..., None], -1)[..., 0]


def agreement(predictions: np.ndarray) -> np.ndarray:
    """(…, N) normalised answers → how many of the N are the same; 0 where there is none. The highest is the vote's."""
    same = predictions[..., :, None] == predictions[..., None, :]
    return same.sum(-1) * (predictions != "")


def standardized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / max(x.std(), 1e-9)


# ------------------------------------------------------------------------------------------------ tables


def table(title: str, columns: Sequence[str], rows: list[list]) -> dict:
    return {"title": title, "columns": list(columns), "rows": rows}


DIGITS = {  # of numbers in a column with this word; 2 in others
    "%": 1,
    "seconds": 3,
    "step kept": 0,
    "tokens": 1,
    "minutes": 1,
}


def cell_text(cell: Any, column: str) -> str:
    """A cell of a result file as text; the column's name says with how many digits and whether with a sign."""
    digits = next((number for word, number in DIGITS.items() if word in column), 2)
    sign = "+" if " minus " in f" {column} " else ""
    match cell:
        case None:
            return ""
        case float():
            return f"{cell:{sign}.{digits}f}"
        case {"mean": value, "interval": [low, high]}:
            return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    return str(cell)


def as_markdown(result: dict) -> str:
    parts = [f"## {result['question']}"]
    for each in result["tables"]:
        rows = [each["columns"]]
        for label, *cells in each["rows"]:
            rows.append([str(label), *map(cell_text, cells, each["columns"][1:])])
        parts += [each["title"], align(rows)]
    parts.append(f"`{result['command']}`, commit {result['commit']}; seeds: {result['seeds']}; "
                 f"{result['cpu_minutes']:.0f} CPU minutes, those of shared runs included, on {result['machine']}; "
                 "intervals: 95 %.")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def arm_table(lab: Lab, title: str, arms: dict[str, list], split: str) -> dict:
    """Ways of training M_S, each a folder per seed, against the first of them; greedy rationales. PPO keeps the M_S of
    the step with the highest reward on held-out questions, which are the first of the dev split: where training did
    harm, that is an early step."""
    first, *_ = arms
    base = lab.answers(arms[first], split)
    columns = ["M_S", "EM %", f"EM minus {first}, %", "R_aspect", f"R_aspect minus {first}", "factuality",
               "CPU minutes of a seed", "step kept", "KL at the last step"]  # fmt: skip
    rows = []
    for label, folders in arms.items():
        found = lab.answers(folders, split)
        row = [label]
        for key in ("right", "R_aspect"):
            row.append(estimate(np.mean, found[key]))
            row.append(None if label == first else estimate(difference, found[key], base[key]))
        row.append(estimate(np.mean, found["factuality"]))
        minutes = np.mean([minutes_of(Path(folder)) for folder in folders])
        rows.append([*row, float(minutes) or None, *ppo_cells(folders)])
    return table(f"{title} {len(lab.questions(split))} {split} questions.", columns, rows)


def ppo_cells(folders: Sequence[str | Path]) -> list[float | None]:
    """The step that train_rl.py kept, and the KL at its last step, means over seeds; None for other runs."""
    kept, kl = [], []
    for folder in folders:
        looks = read_jsonl(Path(folder) / "dev.jsonl")
        if looks:
            kept.append(max(looks, key=lambda look: look["reward"])["step"])
            kl.append(read_jsonl(Path(folder) / "metrics.jsonl")[-1]["kl"])
    if not kept:
        return [None, None]
    return [float(np.mean(kept)), float(np.mean(kl))]


def method_tables(title: str, folders: dict[str, Path], by_type: bool = False) -> list[dict]:
    """Comparisons of eval.py beside one another: every method's EM, what training adds, and what guiding costs."""
    results = {label: read_json(folder / "results.json")["methods"] for label, folder in folders.items()}
    known = set().union(*results.values())
    columns, rows = ["method"], [[name] for name in METHODS if name in known]
    for label, methods in results.items():
        kinds = list(methods[KD]["EM by type"]) if by_type else []
        columns += [f"{label}, EM %", *[f"{label}: {kind}, EM %" for kind in kinds]]
        for row in rows:
            cells = [None] * (1 + len(kinds))  # a data set without supporting facts has no gold rationale
            if row[0] in methods:
                method = methods[row[0]]
                cells = [percent(method["EM"]), *[100 * method["EM by type"][kind] for kind in kinds]]
            row += cells
    gains = []
    for label, methods in results.items():
        em = {name: row["EM"] for name, row in methods.items()}
        seconds = [methods[name]["seconds per question"] for name in ("CoT", KD)]
        differences = em[KD][f"minus {UNTRAINED}"], em[KD]["minus CoT"], em[RL][f"minus {KD}"]
        gains.append([label, *map(percent, differences), *seconds])
    heads = ["comparison", "EM, KD minus untrained, %", "EM, KD minus CoT, %", "EM, RL minus KD, %", "CoT, seconds",
             "KD, seconds"]  # fmt: skip
    return [table(f"{title} N = {COMPARED}.", columns, rows), table("Differences.", heads, gains)]


def percent(cell: dict) -> dict:
    """A cell of eval.py's results.json in per cent."""
    return {"mean": 100 * cell["mean"], "interval": [100 * value for value in cell["interval"]]}


# ------------------------------------------------------------------------------------------------ the experiments


def methods(lab: Lab) -> list[dict]:
    """Does M_S guide M_L better than M_L guides itself, after KD and after RL?"""
    return method_tables(f"{lab.s.limit} test questions.", {"test": lab.compare("test")}, by_type=True)


def reward(lab: Lab) -> list[dict]:
    """What does RL add, and which part of its reward adds it?"""
    arms = {
        "KD": lab.kd(),
        "RL, both": lab.rl(),
        "RL, quality alone": lab.rl("rl-quality", "--task-weight", 0),
        "RL, right answers alone": lab.rl("rl-answers", "--weights", 0),
    }
    compared = [arm_table(lab, "Greedy rationales.", arms, split) for split in ("dev", "test")]
    del arms["KD"]
    return [*compared, curves(arms)]


def curves(arms: dict[str, list[Path]]) -> dict:
    """What train_rl.py saw on its held-out questions while it trained; means over seeds. R_aspect has all weights 1."""
    columns, rows = ["step"], {}
    for label, folders in arms.items():
        columns += [f"{label}: EM %", f"{label}: R_aspect"]
        looks = [read_jsonl(folder / "dev.jsonl") for folder in folders]
        for same_step in zip(*looks, strict=True):
            step = same_step[0]["step"]
            em = 100 * mean_of(same_step, "R_task")
            quality = sum(mean_of(same_step, aspect) for aspect in rewards.ASPECTS)
            rows.setdefault(step, [step]).extend([em, quality])
    return table("By step, greedy rationales for the held-out questions of train_rl.py.", columns, list(rows.values()))


def mean_of(rows: Sequence[dict], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def steps(lab: Lab) -> list[dict]:
    """Which rationales does RL make more frequent, which fewer, and when?"""
    if lab.s.data != "tiny":
        raise UserError("only TinyWiki's sentences have classes")
    looks: dict[int, list] = {}  # step → the answers of each seed to the held-out questions
    for folder in lab.rl():
        for look in read_jsonl(folder / "texts.jsonl"):
            looks.setdefault(look["step"], []).append(look["answers"])
    shown = sorted({*list(looks)[::3], max(looks)})
    examples = data.load("tiny", "dev", len(looks[0][0]))
    cells = {step: class_cells(examples, *texts_and_right(examples, looks[step])) for step in shown}
    tables = []
    for number, what in enumerate(("share of the rationales", "how many of them are answered right")):
        rows = []
        for name in cells[0]:
            rows.append([name, *[cells[step][name][number] for step in shown]])
        columns = ["questions: class of the rationale", *[f"step {step}, %" for step in shown]]
        title = f"Classes of lab/classes.py: {what}. {len(examples)} held-out questions; step 0 is KD."
        tables.append(table(title, columns, rows))
    return tables


def texts_and_right(examples: list[data.Example], seeds: list[list[dict]]) -> tuple[np.ndarray, np.ndarray]:
    """Rationales, and 100 where M_L's answer is right, else 0: (seeds, questions) each."""
    texts = np.array([[answer["rationale"] for answer in answers] for answers in seeds])
    right = np.zeros(texts.shape)
    for seed, question in np.ndindex(right.shape):
        right[seed, question] = 100 * data.exact_match(seeds[seed][question]["prediction"], examples[question].answers)
    return texts, right


def class_cells(examples: list[data.Example], texts: np.ndarray, right: np.ndarray) -> dict[str, tuple]:
    """Class → its share of the rationales of its group of questions, and its share of right answers, in %; `texts` and
    `right` are (seeds, questions)."""
    groups = np.array([classes.group_of(example) for example in examples])
    of = np.empty(right.shape, dtype=object)
    for seed, question in np.ndindex(right.shape):
        of[seed, question] = classes.classify(examples[question], str(texts[seed, question]))
    cells = {}
    for group, names in classes.CLASSES.items():
        in_group = np.broadcast_to(groups == group, right.shape)
        for name in names:
            has = (in_group & (of == name)).astype(float)
            share = estimate(ratio, 100 * has, in_group)
            cells[f"{group}: {name}"] = share, estimate(ratio, right * has, has)
    return cells


def control(lab: Lab) -> list[dict]:
    """Does RL add more than KD for as long, on the same questions?"""
    # KD that goes on from its own best M_S may not lower its held-out loss any more, and then it leaves none. So KD
    # starts anew, with RL's questions (most of which KD had) and as many epochs as take the minutes of KD and RL.
    questions = settings_of("train_rl.py", lab.rl_flags).train_limit
    epochs = lab.s.control_epochs
    flags = [*lab.kd_flags, "--train-limit", questions, "--epochs", epochs, "--patience", epochs]
    longer = []
    for seed, _ in enumerate(lab.kd()):
        taken = lab.out / ("longer-0" if seed else "kd-0")  # M_L is asked for the other rationales once
        start = ["--seed", seed, f"--rationales={taken}"]
        longer.append(lab.run("train_kd.py", f"longer-{seed}", *flags, *start))
    arms = {"longer KD": longer, "KD": lab.kd(), "RL after KD": lab.rl()}
    title = f"Longer KD: {epochs} epochs on {questions} questions; its minutes should be those of KD and RL together."
    return [arm_table(lab, title, arms, "test")]


def aspects(lab: Lab) -> list[dict]:
    """Which aspects does the reward need?"""
    content = ("factuality", "relevance", "logicality", "coherence")
    form = [name for name in rewards.ASPECTS if name not in content]
    weights = {f"without {name}": f"{name}=0" for name in rewards.ASPECTS}
    weights["factuality only"] = "0,factuality=1"
    weights["content only"] = ",".join(f"{name}=0" for name in form)
    weights["form only"] = ",".join(f"{name}=0" for name in content)
    weights["factuality times 4"] = "factuality=4"
    arms = {"all eight": lab.rl_of_steps(lab.s.sweep_steps), "KD": lab.kd()}
    for label, text in weights.items():
        arms[label] = lab.rl_of_steps(lab.s.sweep_steps, label.replace(" ", "-"), "--weights", text)
    names = f"Content: {', '.join(content)}; form: {', '.join(form)}."
    return [arm_table(lab, f"PPO of {lab.s.sweep_steps} steps; R_aspect has all weights 1. {names}", arms, "dev")]


def sweep(lab: Lab) -> list[dict]:
    """How much do β, the weight of right answers, the learning rate and the way of adding rewards matter?"""
    lr = settings_of("train_rl.py", lab.rl_flags).lr
    sweeps = {
        "beta": (0, 0.2),
        "task-weight": (1, 16),
        "lr": (lr / 3, lr * 3),
    }
    arms = {"defaults": lab.rl_of_steps(lab.s.sweep_steps), "KD": lab.kd()}
    for flag, values in sweeps.items():
        for value in values:
            flags = f"--{flag}={value:.2g}"
            arms[flags] = lab.rl_of_steps(lab.s.sweep_steps, f"{flag}-{value:.2g}", flags)
    flags = "--reward=standardized"
    arms[flags] = lab.rl_of_steps(lab.s.sweep_steps, "standardized", flags)
    return [arm_table(lab, f"PPO of {lab.s.sweep_steps} steps.", arms, "dev")]


def threshold(lab: Lab) -> list[dict]:
    """Does the quality of a rationale tell whether the answer from it is right?"""
    found = lab.answers(lab.kd(), "dev", lab.s.samples)
    sampled = {name: values[..., 1:] for name, values in found.items()}
    right, before = sampled["right"], sampled["R_aspect before the answer"]
    rows = []
    for least in (0, 4, 5, 5.5, 6, 6.5, 7, 7.25, 7.5):
        kept = (before >= least).astype(float)
        row = [least, estimate(np.mean, 100 * kept)]
        for part in (kept, 1 - kept):
            row.append(estimate(ratio, right * part, part))
        rows.append(row)
    where = f"{right.shape[2]} sampled rationales for each of {right.shape[1]} dev questions, M_S after KD."
    columns = ["R_aspect at least", "kept %", "EM % of these", "EM % of the others"]
    by_threshold = table(f"By threshold of R_aspect, before M_L answers. {where}", columns, rows)
    sampled["agreement of M_L's answers"] = agreement(sampled["prediction"])
    rows = []
    for name in ("R_aspect before the answer", "R_aspect", *rewards.ASPECTS, "agreement of M_L's answers"):
        rows.append([name, estimate(ratio, *pairs_within(sampled[name], right))])
    predictors = table(f"As a predictor of right answers. {where}", ["predictor", "AUROC within a question"], rows)
    return [by_threshold, predictors]


def selection(lab: Lab) -> list[dict]:
    """Of N rationales, which one should M_L answer from, and how many are worth their cost?"""
    found = lab.answers(lab.kd(), "dev", lab.s.samples)
    sampled = {name: values[..., 1:] for name, values in found.items()}
    right, quality = sampled["right"], sampled["R_aspect before the answer"]
    greedy = found["right"][..., 0]
    once = {  # they choose before M_L answers
        "greedy, no choice": greedy,
        "first sampled": right[..., 0],
        "by factuality alone": chosen(sampled["factuality"], right),
        "the worst by R_aspect": chosen(-quality, right),
        "by R_aspect": chosen(quality, right),
    }
    ways = dict(once)
    votes = agreement(sampled["prediction"])  # what is known of the task where the gold answer is not
    for share in (0.75, 0.5, 0.25):
        mixed = share * standardized(quality) + (1 - share) * standardized(votes)
        ways[f"by {share:.0%} R_aspect, {1 - share:.0%} votes of the {lab.s.samples} answers"] = chosen(mixed, right)
    ways["by votes (self-consistency)"] = chosen(votes, right)
    ways["oracle: right if any is"] = right.max(-1)
    rows = []
    for way, em in ways.items():
        gain = None if em is greedy else estimate(difference, em, greedy)
        rows.append([way, estimate(np.mean, em), gain, 1 if way in once else lab.s.samples])
    where = f"{lab.s.samples} rationales sampled for each of {right.shape[1]} dev questions, M_S after KD."
    columns = ["way of choosing", "EM %", "minus greedy, %", "answers asked of M_L"]
    return [table(where, columns, rows), table(f"By N. {where}", *by_number(sampled))]


def by_number(sampled: Answers) -> tuple[list[str], list[list]]:
    """Columns and rows: self-consistency asks M_L for N answers, the best of N by quality for one."""
    rows, n = [], 1
    while n <= sampled["right"].shape[2]:
        first = {name: values[..., :n] for name, values in sampled.items()}
        vote = chosen(agreement(first["prediction"]), first["right"])
        best = chosen(first["R_aspect before the answer"], first["right"])
        cells = [estimate(np.mean, em) for em in (vote, best, first["right"].max(-1))]
        rows.append([n, *cells, float(first["tokens"].sum(-1).mean())])
        n *= 2
    return ["N", "votes of N answers, EM %", "best of N by R_aspect, EM %", "oracle, EM %", "tokens of M_S"], rows


def filter_(lab: Lab) -> list[dict]:
    """What is the filter of M_L's rationales worth?"""
    arms = {"KD": lab.kd(), "KD, wrong answers too": lab.kd("kd-unfiltered", "--no-filter")}
    kept = [f"{label}: {kept_of(folders[0])} rationales kept." for label, folders in arms.items()]
    return [arm_table(lab, " ".join(kept), arms | {"untrained": lab.untrained()}, "test")]


def kept_of(kd: Path) -> str:
    train, _ = json.loads((kd / "filter.json").read_text("utf-8"))
    return f"{train['kept']} of {train['asked']}"


def ood(lab: Lab) -> list[dict]:
    """What is left on other questions and in longer contexts, and what do these cost?"""
    folders = {"gold paragraphs": lab.compare("test"), "all paragraphs": lab.compare("test-all", "--context=all")}
    title = f"{lab.s.limit} questions; trained on gold paragraphs of the train split."
    if lab.s.data == "tiny":
        folders["ood"] = lab.compare("ood", "--split=ood")
        return method_tables(title, folders, by_type=True)
    for place in filter(None, lab.s.ood.split(",")):
        folders[place] = lab.compare(f"ood-{Path(place).stem}", f"--data={place}")
    seen = "FLAN-T5 has probably seen HotpotQA and StrategyQA: only MuSiQue is out of its distribution."
    return method_tables(f"{title} {seen}", folders)


def reader(lab: Lab) -> list[dict]:
    """Does the same M_S guide another M_L?"""
    large, small = lab.s.large, lab.s.small
    folders = {f"{large}, which taught M_S": lab.compare("test")}
    if lab.s.other_large:
        folders[lab.s.other_large] = lab.compare("reader-other", *shlex.split(lab.s.other_large))
    elif lab.s.large_model:
        raise UserError("a server's M_L is not fine-tuned here: name another with --other-large")
    else:
        flags = [*lab.kd_flags, f"--small={large}", "--target=answer", "--epochs", 3]
        tuned = lab.run("train_kd.py", "tuned-large", *flags)
        folders[f"{large}, fine-tuned to answer directly"] = lab.compare("reader-tuned", f"--large={tuned / 'model'}")
        folders[f"{small}, which only ever wrote"] = lab.compare("reader-small", f"--large={small}")
    return method_tables(f"M_S learned from {large}. {lab.s.limit} test questions.", folders)


def habits(lab: Lab) -> list[dict]:
    """How much do KD and RL add because M_L slips and leaps?"""
    if not lab.s.habits:
        raise UserError("name M_L with other habits by --habits; --help says how they are made")
    folders, kept = {}, []
    for place in [lab.s.large, *lab.s.habits.split(",")]:
        there = lab.with_large(place)
        folders[place] = there.compare("test")
        kept.append(f"{place}: {kept_of(there.kd()[0])} rationales kept.")
    return method_tables(f"M_L. {' '.join(kept)} {lab.s.limit} test questions.", folders)


# name → (what makes its tables, CPU minutes on the embedded default beyond the shared runs, which are KD and PPO with
# the default reward for three seeds: 39); in the order in which `all` runs them. Those of reward, aspects, sweep and
# reader are guessed from the cost of single runs. `habits` is for one more M_L.
EXPERIMENTS = {
    "methods": (methods, 2),
    "reward": (reward, 48),
    "steps": (steps, 1),
    "control": (control, 36),
    "threshold": (threshold, 3),
    "selection": (selection, 1),
    "filter": (filter_, 25),
    "aspects": (aspects, 45),
    "sweep": (sweep, 30),
    "ood": (ood, 7),
    "reader": (reader, 12),
    "habits": (habits, 56),
}


def conduct(name: str, s: Settings) -> str:
    """Runs an experiment, writes its result and returns it as Markdown."""
    lab = Lab(s)
    make, _ = EXPERIMENTS[name]
    tables = make(lab)
    result = {
        "name": name,
        "question": make.__doc__,
        "command": shlex.join(["python", "lab/experiments.py", name, *sys.argv[2:]]),
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads a process",
        "seeds": s.seeds,
        "cpu_minutes": sum(map(minutes_of, lab.used)),
        "tables": tables,
    }
    (lab.out / "results").mkdir(parents=True, exist_ok=True)
    atomic_write(lab.out / "results" / f"{name}.json", as_json(result))
    atomic_write(lab.out / "results" / f"{name}.md", as_markdown(result))
    return as_markdown(result)


def commit() -> str:
    """That of the code; empty where there is no git, or no repository."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


def document(out: Path) -> str:
    """The results in `out` as one Markdown document; docs/experiments.md is that of lab/results."""
    listed, parts = [["experiment", "commit", "seeds", "CPU minutes", "question"]], []
    for name in EXPERIMENTS:
        file = out / "results" / f"{name}.json"
        if file.exists():
            result = read_json(file)
            minutes = f"{result['cpu_minutes']:.0f}"
            listed.append([name, result["commit"], str(result["seeds"]), minutes, result["question"]])
            parts.append(as_markdown(result))
    if not parts:
        raise UserError(f"there are no results in {out / 'results'}")
    head = ["# Experiments\n", "Made by `python lab/experiments.py tables`. [What they show](findings.md).\n"]
    return "\n".join([*head, align(listed) + "\n", *parts])


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name:
        rows = [["experiment", "CPU minutes", "question"]]
        for each, (make, minutes) in EXPERIMENTS.items():
            rows.append([each, str(minutes), make.__doc__])
        print(align(rows))
        return
    if name not in (*EXPERIMENTS, "all", "tables", "-h", "--help"):
        raise UserError(f"there is no experiment {name!r} (expected all, tables, {', '.join(EXPERIMENTS)})")
    s = parse_settings(Settings, __doc__, sys.argv[1:] if name.startswith("-") else sys.argv[2:])
    if name == "tables":
        print(document(Path(s.out)))
        return
    failed = []
    for each in EXPERIMENTS if name == "all" else [name]:
        try:
            print(f"\n{conduct(each, s)}", flush=True)
        except UserError as error:  # the others may work
            failed.append(f"{each}: {error}")
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    run_main(main)
