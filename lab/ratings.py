"""
Do people find the rationales better? A blinded sheet of rationales to rate, and what the ratings say.

    python lab/ratings.py export                                   # runs/eval → runs/ratings
    python lab/ratings.py export --run runs/rl --questions 12 --out runs/ratings-rl
    python lab/ratings.py import runs/ratings/key.json ratings-ann.csv ratings-bo.csv …

`export` draws questions and takes three rationales for each: of M_S after KD, of M_S after RL, and M_L's own chain of
thought. They come in one shuffled list without their sources; two that are word for word the same are rated once, and
that counts for both. The folder for_raters/ is to be handed out: sheet.html, a page for phone and desktop that needs no
network and hands back a CSV file, or sheet.csv for a spreadsheet (save it as CSV UTF-8). key.json says whose is whose.
The order is the operating system's randomness, and `--seed` has no part in it: whoever knows seed, program and sheet
knows nothing of the sources. What is blinded is the label; style may still betray a source to those who know it.

`import` reads any number of raters' files, blanks allowed, and prints three tables, which it also writes beside the key
(results.md, results.json). Everywhere "all eight" is a rater's mean over the eight questions, where he answered all.
- Agreement: Krippendorff's α, ordinal (a rating counts by its rank); 1 is perfect, 0 is chance. Where nearly all
  ratings are the same it is low, however much the raters agree: there is nothing to tell apart.
- Means per source, and paired differences (same rater, same question). Their 95 % intervals are percentile bootstrap
  over questions and raters together. With fewer than five raters those of means are too narrow for raters at large (in
  a simulation 84 % held the truth with two, 88 % with three, 93 % with five); those of differences are not (97 %).
- Spearman's correlation of each aspect of rewards.py with the mean rating. The aspects see what the raters saw, so not
  M_L's prediction. Intervals of α and of correlations are bootstrap over questions.
"""

import csv
import io
import json
import math
import random
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
import rewards  # noqa: E402
from eval import BOOTSTRAPS, interval, read_run, with_interval  # noqa: E402
from lab.runs import questions_of  # noqa: E402
from plumbing.command import align, parse_settings, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import as_json, atomic_write, read_json, read_jsonl  # noqa: E402
from rewards import ASPECTS  # noqa: E402

SOURCES = ("LM-guided, KD", "LM-guided, RL", "CoT")  # methods of eval.py whose rationales are rated
DIFFERENCES = (("LM-guided, RL", "LM-guided, KD"), ("LM-guided, KD", "CoT"))
QUESTIONS = {  # aspect → what a rater is asked; 5 is always the best. No , and ; inside: they part columns
    "factuality": "Is everything it says true according to the text?",
    "relevance": "Does it stick to what was asked?",
    "logicality": "Do its steps really lead to an answer?",
    "consistency": "Is it free of contradictions in itself?",
    "coherence": "Does each sentence follow on from the one before?",
    "fluency": "Is the English correct?",
    "naturalness": "Does it read as if a person wrote it without repeats or filler?",
    "readability": "Is it easy to understand at first reading?",
}
COLUMNS = (*ASPECTS, "all eight")
PAGE = Path(__file__).resolve().parent / "ratings.html"

# ---- Export ----------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    run: str = "runs/eval"  # folder of eval.py or train_rl.py, whose answers.jsonl has all three kinds of rationales
    questions: int = 20  # how many to draw; each brings up to three rationales to rate
    seed: int = 0  # of the draw of questions (and of a run for each, where there are several seeds)
    out: str = "runs/ratings"  # folder of the sheet and its key


def collect(folder: Path, count: int, seed: int) -> list[dict]:
    """Rationales for `count` questions of a run, as the key has them but for "item"; the same texts are one."""
    if not read_run(folder)[0]:
        raise UserError(f"{folder} is no run folder of eval.py or train_rl.py")
    if not (folder / "results.json").is_file():
        raise UserError(f"{folder} has not ended: give its command once more")
    rows = read_jsonl(folder / "answers.jsonl")
    written = {source: {row["seed"]: {a["id"]: a for a in row["answers"]} for row in rows if row["method"] == source}
               for source in SOURCES}  # fmt: skip
    if missing := [source for source in SOURCES if not written[source]]:
        raise UserError(f"{folder} has no rationales of {' and '.join(missing)}: give --run a folder of train_rl.py "
                        "or of eval.py with KD and RL")  # fmt: skip
    ids = list(next(iter(written["CoT"].values())))
    if count > len(ids):
        raise UserError(f"{folder} has {len(ids)} questions, fewer than the {count} of --questions")
    examples = {e.id: e for e in questions_of(folder)}
    # A source that ran once stands for all seeds, as in eval.py; KD and RL of one seed belong together.
    several = [set(by_seed) for by_seed in written.values() if len(by_seed) > 1]
    seeds = sorted(set.intersection(*several)) if several else [0]
    rng, items = random.Random(seed), []
    for name in rng.sample(ids, count):
        if name not in examples:
            raise UserError(f"{folder}: its question {name} is not in the data of its settings")
        drawn, writers = rng.choice(seeds), {}  # text → sources, and whether M_L's answer from each was right
        for source, by_seed in written.items():
            answer = (by_seed[drawn] if len(by_seed) > 1 else next(iter(by_seed.values())))[name]
            sources, right = writers.setdefault(clean(answer["rationale"]), ([], []))
            sources.append(source)
            right.append(data.exact_match(answer["prediction"], examples[name].answers))
        question, context = clean(examples[name].question), clean(examples[name].context)
        items += [{"question_id": name, "seed": drawn, "sources": sources, "right": sum(right) / len(right),
                   "question": question, "context": context, "rationale": text}
                  for text, (sources, right) in writers.items()]  # fmt: skip
    return items


def clean(text: str) -> str:
    """Text that every file can hold: without NUL and halves of characters, and no space at its ends."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode().strip()


def blind(rows: list[dict]) -> list[dict]:
    """Shuffled, each with an "item" of five letters: nothing a spreadsheet takes for a number, a date or a word."""
    chance = secrets.SystemRandom()
    rows = chance.sample(rows, len(rows))
    names: dict[str, None] = {}
    while len(names) < len(rows):
        names["".join(chance.choices("bcdfghjkmnpqrstvwxz", k=5))] = None
    return [{"item": name, **row} for name, row in zip(names, rows, strict=True)]


def cell(text: str) -> str:
    """Text as a spreadsheet's cell. What begins like a formula is made text by an apostrophe in front, and also what
    would begin a cell in a spreadsheet that parts columns at semicolons."""
    return re.sub(r"(^|[;\t\r\n])([\s\"]*)(?=[=+\-@＝＋－＠])", r"\1\2'", text)


def as_csv(items: list[dict]) -> bytes:
    """The sheet for spreadsheets; with a byte order mark, without which Excel does not read UTF-8."""
    file = io.StringIO(newline="")
    rows = csv.writer(file)
    rows.writerow(["item", "question", "text", "reasoning", *(f"{a}: {QUESTIONS[a]} (1 to 5)" for a in ASPECTS)])
    rows.writerows([item["item"], *(cell(shown(item)[name]) for name in ("question", "context", "rationale")),
                    *[""] * len(ASPECTS)] for item in items)  # fmt: skip
    return file.getvalue().encode("utf-8-sig")


def shown(item: dict) -> dict[str, str]:
    """What raters see of an item."""
    return {name: item[name] or "(nothing was written)" for name in ("item", "question", "context", "rationale")}


def as_page(items: list[dict], sheet: str) -> str:
    """The sheet as one HTML page. ASCII JSON without < cannot end the script element that holds it."""
    content = {"sheet": sheet, "questions": QUESTIONS, "items": list(map(shown, items))}
    return PAGE.read_text(encoding="utf-8").replace("@SHEET@", json.dumps(content).replace("<", "\\u003c"))


def export(settings: Settings) -> None:
    out = Path(settings.out)
    items = blind(collect(Path(settings.run), settings.questions, settings.seed))
    if (out / "key.json").exists():
        raise UserError(f"{out / 'key.json'} is there already, and ratings of its sheet need it: choose another --out")
    sheet = secrets.token_hex(4)
    (out / "for_raters").mkdir(parents=True, exist_ok=True)
    key = {"sheet": sheet, "settings": vars(settings), "items": items}
    atomic_write(out / "key.json", as_json(key))
    atomic_write(out / "for_raters" / "sheet.csv", as_csv(items))
    atomic_write(out / "for_raters" / "sheet.html", as_page(items, sheet))
    print(f"{len(items)} rationales for {settings.questions} questions (the same words are rated once).\n"
          f"Hand out:  {out / 'for_raters'}/sheet.html, or sheet.csv\nKeep back: {out / 'key.json'}\n"
          f"Then:      python lab/ratings.py import {out / 'key.json'} FILE.csv …")  # fmt: skip


# ---- Import ----------------------------------------------------------------------------------------------------------


def read_key(path: Path) -> list[dict]:
    """The items of a key that `export` wrote. Raises UserError for another file."""
    items = read_json(path).get("items")
    if not items:
        raise UserError(f"{path}: this is no key that `ratings.py export` wrote")
    return items


def read_ratings(path: Path, names: list[str]) -> np.ndarray:
    """One rater's file → ratings (items, 8) in the order of `names`, NaN where there is none. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text (save it as CSV UTF-8)") from None
    delimiter = max(",;\t", key=re.split(r"[\r\n]", text, maxsplit=1)[0].count)  # spreadsheets write any of them
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} is no CSV ({error})") from None
    header = [name.partition(":")[0].strip() for name in lines[0][1]] if lines else []
    for name in ("item", *ASPECTS):
        if header.count(name) != 1:
            raise UserError(f"{path}: {header.count(name)} columns '{name}' where the sheet has one")
    place = {name: i for i, name in enumerate(names)}
    ratings, seen = np.full((len(names), len(ASPECTS)), np.nan), set()
    for number, row in lines[1:]:
        if not any(row):
            continue  # spreadsheets leave blank lines, and leave out blank ends of lines
        values = dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))
        item = values["item"]
        if any(row[len(header) :]):
            raise UserError(f"{path}: line {number} has more cells than there are columns")
        if item not in place:
            raise UserError(f"{path}: line {number}: the key has no item {item[:40]!a} (is it another sheet's?)")
        if item in seen:
            raise UserError(f"{path}: line {number}: item {item} a second time")
        seen.add(item)
        for i, aspect in enumerate(ASPECTS):
            value = values[aspect]
            if value not in ("", *"12345"):
                raise UserError(f"{path}: line {number}: {aspect} is {value[:40]!a} (expected 1 to 5 or blank)")
            ratings[place[item], i] = float(value or "nan")
    if np.isnan(ratings).all():
        raise UserError(f"{path}: no rating in it")
    return ratings


# ---- Statistics ------------------------------------------------------------------------------------------------------


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on; ties share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def alpha(ratings: np.ndarray) -> float:
    """
    Krippendorff's α for ordinal data: ratings (raters, items), NaN for none; NaN where nothing can be said.

    α = 1 − D_o / D_e, disagreement within items over that among all ratings (Krippendorff 2004, chapter 11). An item
    with one rating says nothing and is left out. The ordinal distance of two values is the squared difference of their
    midranks, and the mean squared difference of all pairs is twice a variance: no coincidence matrix is needed.
    """
    ratings = ratings[:, (~np.isnan(ratings)).sum(0) > 1]
    given = ~np.isnan(ratings)
    if not given.any():
        return math.nan
    ranks = np.zeros(ratings.shape)
    ranks[given] = midranks(ratings[given])
    counts = given.sum(0)
    centred = np.where(given, ranks - ranks.sum(0) / counts, 0)
    observed = ((centred**2).sum(0) * counts / (counts - 1)).sum() / counts.sum()
    expected = ranks[given].var(ddof=1)
    return 1 - observed / expected if expected else math.nan


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation over the pairs without NaN; NaN where one side does not vary."""
    both = ~np.isnan(x) & ~np.isnan(y)
    if both.sum() < 2:
        return math.nan
    x, y = midranks(x[both]), midranks(y[both])
    spread = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else math.nan


def estimate(statistic: Callable[[np.ndarray], float], groups: list[np.ndarray]) -> dict | None:
    """statistic(items) of all items, and its 95 % bootstrap interval over questions; groups: the items of each."""
    value = statistic(np.concatenate(groups))
    rng = np.random.default_rng(0)
    draws = [statistic(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
             for _ in range(0 if math.isnan(value) else BOOTSTRAPS)]  # fmt: skip
    return as_cell(value, np.array(draws))


def mean(ratings: np.ndarray) -> dict | None:
    """Mean of ratings (raters, questions) or of differences of them, NaN for none, and its interval over both."""
    given, values = ~np.isnan(ratings), np.nan_to_num(ratings)
    rng = np.random.default_rng(0)
    of_raters, of_questions = (rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAPS).astype(float) for n in ratings.shape)
    sums, counts = (((of_raters @ part) * of_questions).sum(1) for part in (values, given))
    draws = np.divide(sums, counts, out=np.full(BOOTSTRAPS, math.nan), where=counts > 0)
    return as_cell(values.sum() / given.sum() if given.any() else math.nan, draws)


def as_cell(value: float, draws: np.ndarray) -> dict | None:
    return None if math.isnan(value) else {"mean": float(value), "interval": interval(draws[~np.isnan(draws)])}


def summarise(items: list[dict], ratings: dict[str, np.ndarray]) -> dict:
    """Items of a key and, for each rater, ratings (items, 8) → everything the tables show, as plain JSON values."""
    every = np.stack(list(ratings.values()))  # (raters, items, 8)
    every = np.concatenate([every, every.mean(2, keepdims=True)], 2)  # NaN for all eight where one is missing
    questions = list(dict.fromkeys(item["question_id"] for item in items))
    groups = [np.array([i for i, item in enumerate(items) if item["question_id"] == q]) for q in questions]
    place = {(item["question_id"], source): i for i, item in enumerate(items) for source in item["sources"]}
    of = {source: every[:, [place[q, source] for q in questions]] for source in SOURCES}  # (raters, questions, 9)
    given = (~np.isnan(every)).sum(0)
    rated = np.divide(np.nan_to_num(every).sum(0), given, out=np.full(given.shape, math.nan), where=given > 0)
    scores = [rewards.aspects(item["rationale"], item["question"], item["context"]) for item in items]
    metrics = np.array([[*score.values(), rewards.r_aspect(score), item["right"]]
                        for score, item in zip(scores, items, strict=True)])  # fmt: skip
    table: dict = {
        "questions": len(questions),
        "items": len(items),
        "raters": {name: int((~np.isnan(rows)).sum()) for name, rows in ratings.items()},
        "columns": {},
        "Spearman": {},
    }
    for i, name in enumerate(COLUMNS):
        table["columns"][name] = {
            "alpha, ordinal": estimate(lambda at, i=i: alpha(every[:, at, i]), groups),
            **{source: mean(of[source][:, :, i]) for source in SOURCES},
            **{f"{a} minus {b}": mean(of[a][:, :, i] - of[b][:, :, i]) for a, b in DIFFERENCES},
        }
    for i, name in enumerate((*ASPECTS, "R_aspect", "EM")):
        table["Spearman"][name] = {
            column: estimate(lambda at, i=i, j=j: spearman(metrics[at, i], rated[at, j]), groups)
            for j, column in enumerate(COLUMNS) if j in (i, len(ASPECTS))
        }  # fmt: skip
    return table


def as_markdown(table: dict) -> str:
    def text(cell: dict | None, sign: str = "") -> str:
        return "–" if cell is None else with_interval(cell, "", sign)

    columns = table["columns"]
    differences = [f"{a} minus {b}" for a, b in DIFFERENCES]
    rows = [["mean rating [95 %]", *SOURCES]]
    rows += [[name, *(text(row[source]) for source in SOURCES)] for name, row in columns.items()]
    parts = [align(rows)]
    rows = [["difference [95 %]", *differences]]
    rows += [[name, *(text(row[d], "+") for d in differences)] for name, row in columns.items()]
    parts.append(align(rows))
    rows = [["", "agreement: α [95 %]", "metric", "Spearman with its rating [95 %]", "with all eight [95 %]"]]
    for (name, row), (metric, own) in zip(columns.items(), table["Spearman"].items(), strict=False):
        rows.append([name, text(row["alpha, ordinal"]), metric, text(own[name], "+"), text(own[COLUMNS[-1]], "+")])
    rows.append(["", "", "EM of M_L's answer from it", "", text(table["Spearman"]["EM"][COLUMNS[-1]], "+")])
    parts.append(align(rows))
    full = table["items"] * len(ASPECTS)
    given = ", ".join(f"{name} {count} of {full}" for name, count in table["raters"].items())
    notes = [f"{table['items']} rationales of {table['questions']} questions, {len(table['raters'])} raters; ratings "
             f"given: {given}.", "Means: bootstrap over questions and raters; α (Krippendorff, ordinal) and "
             "correlations: over questions. – where nothing varies or nobody, or only one, rated."]  # fmt: skip
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"


def import_ratings(key: Path, files: list[Path]) -> None:
    items, ratings = read_key(key), {}
    for path in files:
        name = clean(re.sub(r" ?\(\d+\)$", "", path.stem))  # "ratings-ann (1).csv" is a browser's second download
        if name in ratings:
            raise UserError(f"{path}: a second file of the rater {name} (give each rater's last file, once)")
        ratings[name] = read_ratings(path, [item["item"] for item in items])
    table = summarise(items, ratings)
    markdown = as_markdown(table)
    atomic_write(key.parent / "results.json", as_json(table))
    atomic_write(key.parent / "results.md", markdown)
    print(markdown)


def main() -> None:
    match sys.argv[1:]:
        case ["export", *flags]:
            export(parse_settings(Settings, __doc__, flags))
        case ["import", key, *files] if files:
            import_ratings(Path(key), list(map(Path, files)))
        case ["-h" | "--help"]:
            print(__doc__)
        case _:
            raise UserError("say export, or import KEY FILE.csv …: python lab/ratings.py --help explains both")


if __name__ == "__main__":
    run_main(main)
