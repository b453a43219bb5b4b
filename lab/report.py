"""Run folders → one page: what was trained on what, how it went, what it scores, and what M_S wrote on the way.

    python lab/report.py runs/kd runs/rl runs/eval                              # → runs/report.html
    python lab/report.py runs/kd* runs/rl* runs/eval --pictures lab/pictures    # its pictures as SVG files, too

Give folders of train_kd.py, train_rl.py and eval.py, whether their runs have ended or not. What they lack is left out,
with a sentence that says why. The page is one file: it loads nothing, runs no script, and needs no other package.
Texts of data, models and settings enter it through `say`, which makes them text whatever they hold. Its frame is
lab/report.html, its pictures are drawn by lab/svg.py.
"""

import argparse
import html
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
import eval as evaluation  # noqa: E402
import rewards  # noqa: E402
import train_kd  # noqa: E402
import train_rl  # noqa: E402
from eval import BASELINES, bootstrap, interval, with_interval  # noqa: E402
from lab.runs import questions_of, signatures  # noqa: E402
from lab.svg import DARK, DASHES, LIGHT, SERIES, WIDTH, Line, Picture, as_file, curves, dots, stroke  # noqa: E402
from plumbing.command import field_comments, flag, run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import atomic_write, parse_json, read_json, read_jsonl  # noqa: E402
from plumbing.markup import split  # noqa: E402

FRAME = Path(__file__).resolve().parent / "report.html"
UNTRAINED, KD, RL = "LM-guided, untrained", "LM-guided, KD", "LM-guided, RL"

# ---- 1. Run folders --------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """A run folder as it is now."""

    place: Path
    kind: str  # as in eval.read_run
    settings: dict
    results: dict | None  # None: it has not ended
    filter: list | None
    metrics: list[dict]
    dev: list[dict]
    texts: list[dict]


def find(place: Path) -> Found:
    """Reads a run folder; UserError where there is none."""
    kind, settings = evaluation.read_run(place)
    if not kind:
        raise UserError(f"{place} is no run folder of train_kd.py, train_rl.py or eval.py")
    results, counts = place / "results.json", place / "filter.json"
    results = read_json(results) if results.is_file() else None
    counts = parse_json(counts.read_bytes(), str(counts)) if counts.is_file() else None
    logs = [read_jsonl(place / f"{name}.jsonl") for name in ("metrics", "dev", "texts")]
    return Found(place, kind, settings, results, counts, *logs)


# ---- 2. HTML ---------------------------------------------------------------------------------------------------------


def say(text: object) -> str:
    """Any text as text: no markup, and what is written from right to left turns nothing around it."""
    return f"<bdi>{html.escape(str(text))}</bdi>"


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def table(rows: Sequence[Sequence[object]], name: str) -> str:
    """Rows of texts; the first is the head."""
    lines = []
    for row in rows:
        tag = "td" if lines else "th"
        lines.append("".join(f"<{tag}>{say(cell)}</{tag}>" for cell in row))
    body = "".join(f"<tr>{line}</tr>" for line in lines[1:])
    return (f"<div class=wide tabindex=0><table class={name}><thead><tr>{lines[0]}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>")  # fmt: skip


def left_out(why: object) -> str:
    return f"<p>Left out: {say(why)}.</p>"


def show(picture: Picture) -> str:
    key = ""
    for line in picture.key:
        sample = stroke(0, 4, 28, 4, line.colour, 2.5, line.dash)
        key += f"<span><svg width=28 height=8>{sample}</svg>{say(line.label)}</span>"
    panels = ""
    for panel in picture.panels:
        box = f'viewBox="0 0 {WIDTH} {panel.height}" role=img aria-label="{html.escape(panel.title)}"'
        panels += f"<figure><svg {box}>{panel.svg}</svg><figcaption>{say(panel.caption)}</figcaption></figure>"
    return f"<p class=faint>{say(picture.caption)}</p><div class=key>{key}</div><div class=panels>{panels}</div>"


# ---- 3. What was trained on what -------------------------------------------------------------------------------------

ABOUT = {
    "kd": "<b>Distillation.</b> The small model M_S ({small}) learns to write the reasoning of the large model M_L "
          "({large}), as far as it passes the filter. Data: {data}, at most {train_limit} training questions, read at "
          "most {epochs} times, {batch_size} at once. Learning rate: up to {lr}.",
    "direct": "<b>A control.</b> The small model M_S ({small}) learns to answer by itself. Data: {data}, at most "
              "{train_limit} training questions, read at most {epochs} times. Learning rate: up to {lr}.",
    "rl": "<b>Refinement by PPO.</b> M_S as {kd} left it goes on. {steps} times it writes {samples_per_question} "
          "rationales for each of {questions} questions, M_L answers from them, and M_S learns from their rewards. A "
          "reward is the quality of the rationale (eight aspects, weights {weights}), and {task_weight} more if M_L's "
          "answer is right. Leaving the distilled model costs {beta} a nat. Learning rate: up to {lr}.",
    "eval": "<b>A comparison.</b> All methods answer the same questions of {data} ({split}, at most {limit}). "
            "M_L: {large}. M_S: {kd} and {rl}.",
}  # fmt: skip
SETTINGS = {"kd": train_kd.Settings, "direct": train_kd.Settings, "rl": train_rl.Settings, "eval": evaluation.Settings}


def settings(run: Found) -> str:
    """What a run does, in a few sentences, and every setting with its meaning."""
    values = run.settings | {"large": run.settings.get("large_model") or run.settings.get("large")}
    texts = defaultdict(lambda: "?")  # an older run may lack some
    for name, value in values.items():
        texts[name] = say(value)
    state = "It has ended." if run.results else "It has not ended: the same command goes on."
    if run.metrics:
        unit = "step" if run.kind == "rl" else "epoch"
        state = f"So far: {count(run.metrics[-1][unit], unit)}. {state}"
    meanings = field_comments(SETTINGS[run.kind])
    rows = [["setting", "value", "meaning"]]
    for name, value in run.settings.items():
        rows.append([flag(name), value, meanings.get(name, "")])
    return (f"<h3>{say(run.place)}</h3><p>{ABOUT[run.kind].format_map(texts)} {state}</p>"
            f"<details><summary>All settings</summary>{table(rows, 'settings')}</details>")  # fmt: skip


def filter_counts(run: Found) -> str:
    """What became of M_L's rationales before M_S learned from them."""
    if run.filter is None:
        return left_out(f"{run.place} has no filter.json yet; train_kd.py writes it once M_L has been asked")
    rows = [["rationales of M_L", "for training", "held out"]]
    for what in sorted(run.filter[0] | run.filter[1]):
        row = [what]
        of = "kept" if what.startswith("kept: ") else "asked"
        for counts in run.filter:
            share = counts.get(what, 0) / max(1, counts.get(of, 0))
            row.append(f"{counts.get(what, 0):,} ({100 * share:.0f} %)")
        rows.append(row)
    return (f"<h3>{say(run.place)}</h3><p>M_L wrote a rationale for each question, and M_S learns from those that were "
            "kept. Healthy: more than a fifth are kept, most others had a wrong answer, most of the kept stand in the "
            "context sentence by sentence, and few first sentences state the answer.</p>"
            f"{table(rows, 'numbers')}")  # fmt: skip


# ---- 4. Curves -------------------------------------------------------------------------------------------------------


def kd_picture(runs: list[Found]) -> Picture:
    panels = []
    for run in runs:
        training = [(row["epoch"], row["train_loss"]) for row in run.metrics if "train_loss" in row]
        held_out = [(row["epoch"], row["held_out_loss"]) for row in run.metrics]
        best = min(held_out, key=lambda point: point[1])
        lines = [Line("training", "orange", training, DASHES[1]), Line("held out", "blue", held_out, ring=best)]
        panels += curves(f"Loss of {run.place.name}, by epoch", "", lines)
    caption = ("How badly M_S predicts the next token of a rationale, in nats. The ring marks the epoch that was kept. "
               "Healthy: both fall, and the held-out loss flattens. It rises from the start: lower --lr. It still "
               "falls at the end: raise --epochs. Only the training loss falls: M_S learns by heart.")  # fmt: skip
    return Picture("kd", caption, panels, 2, lines)


PPO = (  # file, measure, title, what is healthy
    ("metrics", "reward", "Reward", "Healthy: rises, then flattens."),
    ("dev", "reward", "Reward on held-out questions", "Healthy: rises, too. The ring marks the M_S that was kept."),
    ("dev", "R_task", "Right answers on held-out questions", "Healthy: rises. Only quality rises: reward hacking."),
    ("dev", "R_aspect", "Quality on held-out questions, 0 to 8", "Healthy: rises together with right answers."),
    ("metrics", "factuality", "Factuality: does the context say it?",
     "Healthy: rises or stays. It falls while the reward rises: false sentences pay."),
    ("metrics", "kl", "KL to the distilled M_S, nats a text", "Healthy: from 0 to a few. Above 50: raise --beta."),
    ("metrics", "entropy", "Entropy, nats a token",
     "Healthy: falls slowly. Below a fifth: collapse. Three times as much: gibberish."),
    ("metrics", "length", "Length, tokens", "Healthy: steady. It falls to a third: short texts pay."),
    ("metrics", "ended", "Share that ends by itself", "Healthy: near 1. It falls: --missing-eos-penalty 1."),
    ("metrics", "ratio_max", "Highest ratio π / π_old", "Healthy: below 50, single spikes aside. Else lower --lr."),
    ("metrics", "clip_fraction", "Share of clipped tokens", "Healthy: 0.01 to 0.2. Above: lower --lr."),
    ("metrics", "explained_variance", "Explained variance of the critic", "Healthy: 0 or above."),
)  # fmt: skip
OTHERS = [("metrics", aspect, aspect.capitalize(), "") for aspect in rewards.ASPECTS if aspect != "factuality"]


def ppo_picture(name: str, caption: str, runs: list[Found], measures: Sequence[tuple]) -> Picture:
    """A panel for each measure, with a line for each run."""
    panels, key = [], []
    for i, run in enumerate(runs):
        key.append(Line(str(run.place), SERIES[i % len(SERIES)], dash=DASHES[i % len(DASHES)]))
    for log, measure, title, healthy in measures:
        lines = []
        for run, style in zip(runs, key, strict=True):
            points = [(row["step"], row[measure]) for row in getattr(run, log) if measure in row]
            lines.append(Line(style.label, style.colour, points, style.dash))
            if points and (log, measure) == ("dev", "reward"):
                lines[-1].ring = max(points, key=lambda point: point[1])
        panels += curves(title, healthy, lines)
    return Picture(name, caption, panels, 3, key)


def signs(runs: list[Found]) -> str:
    """The known signs of failure that the files show as they end."""
    found = ""
    for run in runs:
        steps = run.metrics if run.kind == "rl" else []
        for sign in signatures(run.results, steps, run.settings["max_new_tokens"]):
            found += f"<li>{say(run.place)}: {say(sign)}.</li>"
    return f"<ul>{found}</ul>" if found else "<p>None of those that are known.</p>"


# ---- 5. The methods side by side -------------------------------------------------------------------------------------


def colour_of(method: str) -> str:
    for start, colour in (("standard", "orange"), ("CoT", "orange"), (KD, "blue"), (RL, "green")):
        if method.startswith(start):
            return colour
    return "grey"


def results_picture(run: Found, name: str) -> Picture:
    panels = []
    for measure, title, unit in (("EM", "Right answers (EM), per cent", 100), ("R_aspect", "Quality, 0 to 8", 1)):
        cells = {}
        for method, row in run.results["methods"].items():
            if measure in row:
                low, high = row[measure]["interval"]
                cells[method] = (colour_of(method), unit * row[measure]["mean"], unit * low, unit * high)
        panels += dots(title, cells)
    about = f"{count(run.results['questions'], 'question')}, {count(run.results['seeds'], 'seed')}"
    caption = (f"{run.place}: {about}. Dots are means, lines 95 % intervals over questions and seeds. Orange: M_L by "
               "itself. Blue: M_S after distillation writes the rationale. Green: after PPO. Grey: untrained, and "
               "controls.")  # fmt: skip
    return Picture(name, caption, panels, 2)


def numbers(run: Found) -> str:
    """The table of methods; a difference whose interval holds 0 decides nothing."""
    methods = run.results["methods"]
    bases = [base for base in BASELINES if base in methods]
    rows = [["method", "EM [95 %]", "F1", "AI", "quality [95 %]", *(f"EM minus {base}" for base in bases),
             "seconds per question", "tokens per question"]]  # fmt: skip
    for name, row in methods.items():
        cells = [with_interval(row["EM"], "EM"), f"{100 * row['F1']['mean']:.1f}", f"{100 * row['AI']['mean']:.1f}"]
        cells.append(with_interval(row.get("R_aspect"), "R_aspect"))
        cells += [with_interval(row["EM"].get(f"minus {base}"), "EM", "+") for base in bases]
        cells += [f"{row['seconds per question']:.3f}", f"{row['tokens per question']:.1f}"]
        rows.append([name] + [cell.replace("-", "−") for cell in cells])
    return table(rows, "numbers")


def by_quality(scores: np.ndarray, right: np.ndarray, parts: int = 5) -> tuple[list, list]:
    """Rationales (seeds, questions) in `parts` of about equal size by score, equal scores together → the points (mean
    score, right answers in per cent) and their 95 % intervals over questions and seeds (the borders stay)."""
    part = np.searchsorted(np.quantile(scores, np.arange(1, parts) / parts), scores)
    points, intervals = [], []
    for i in np.unique(part):
        inside = part == i
        size, hits = bootstrap(np.stack([inside, inside & right]).astype(float))
        points.append((float(scores[inside].mean()), 100 * float(right[inside].mean())))
        intervals.append(tuple(interval(100 * hits[size > 0] / size[size > 0])))
    return points, intervals


def quality_picture(run: Found) -> Picture:
    """Whether better rationales lead to more right answers; UserError where the questions are gone."""
    examples = questions_of(run.place)
    scores, right = defaultdict(list), defaultdict(list)
    for row in read_jsonl(run.place / "answers.jsonl", "method", "answers"):
        name, answers = row["method"], row["answers"]
        if [answer["id"] for answer in answers] != [example.id for example in examples]:
            raise UserError(f"the answers in {run.place} are to other questions than its settings name")
        if name in ("CoT", UNTRAINED, KD, RL):
            pairs = list(zip(answers, examples, strict=True))
            scores[name].append([quality(answer, example)["R_aspect"] for answer, example in pairs])
            right[name].append([is_right(answer, example) for answer, example in pairs])
    lines = []
    for i, name in enumerate(scores):
        points, intervals = by_quality(np.array(scores[name]), np.array(right[name]))
        lines.append(Line(name, colour_of(name), points, DASHES[i % len(DASHES)], intervals=intervals))
    panels = curves("Right answers, per cent, by quality of the rationale", "", lines, 240)
    caption = (f"Does quality help? The rationales of {run.place} in five parts, from lowest to highest quality, and "
               "the share of right answers in each, with its 95 % interval. Healthy: it rises.")  # fmt: skip
    return Picture("quality", caption, panels, 1, lines)


# ---- 6. Six questions ------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """What was written about the same questions at several times."""

    title: str
    examples: dict[str, data.Example]  # by id
    looks: list[tuple[str, dict[str, dict]]]  # when, and the answers then, by id


def quality(answer: dict, example: data.Example) -> dict[str, float]:
    return rewards.quality(answer["rationale"], example, answer["prediction"])


def is_right(answer: dict, example: data.Example) -> bool:
    return data.exact_match(answer["prediction"], example.answers) == 1


def by_id(items: list) -> dict:
    return {item["id"] if isinstance(item, dict) else item.id: item for item in items}


def thin(rows: list, most: int) -> list:
    """At most so many of the rows: the first, the last, and some evenly between."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def story_of_training(run: Found) -> Story:
    """What texts.jsonl keeps, for PPO with the distillation before it; UserError if its data or that are gone."""
    kd = find(Path(run.settings["kd"])) if run.kind == "rl" else run
    epochs, steps = [], []
    for row in kd.texts:
        epochs.append((f"distillation, epoch {row['epoch']}" if row["epoch"] else "before training", row))
    if run.kind == "rl":
        best = min(kd.metrics, key=lambda row: row["held_out_loss"])["epoch"] if epochs else 0
        epochs = epochs[:best]  # with the best one PPO begins
        for row in run.texts:
            steps.append((f"PPO, step {row['step']}" if row["step"] else "after distillation", row))
    looks = [(when, by_id(row["answers"])) for when, row in thin(epochs, 4) + thin(steps, 5)]
    examples = data.load(kd.settings["data"], "dev", train_kd.SHOWN, kd.settings["context"])
    return Story(f"{run.place}, held-out questions", by_id(examples), looks)


def story_of_methods(run: Found) -> Story:
    """The answers of a table, from M_S at each stage, first seed; UserError where there are none."""
    looks = {}
    for row in read_jsonl(run.place / "answers.jsonl", "method", "seed", "answers"):
        if row["method"] in (UNTRAINED, KD, RL) and row["seed"] == 0:
            looks[row["method"]] = by_id(row["answers"])
    if not looks:
        raise UserError(f"{run.place} keeps no texts of M_S, or none yet")
    return Story(f"{run.place}, questions of its table", by_id(questions_of(run.place)), list(looks.items()))


FATES = {(False, True): "wrong, then right", (True, False): "right, then wrong",
         (True, True): "right, and stays so", (False, False): "wrong, and stays so"}  # fmt: skip


def fates_of(story: Story) -> dict[str, list[str]]:
    """What M_L's answers are at the first and the last look → ids of the questions that have all looks."""
    found = {fate: [] for fate in FATES.values()}
    (_, first), (_, last) = story.looks[0], story.looks[-1]
    for name, example in story.examples.items():
        if all(name in answers for _, answers in story.looks):
            found[FATES[is_right(first[name], example), is_right(last[name], example)]].append(name)
    return found


def support_of(sentence: str, example: data.Example) -> float | None:
    """How far the context says what a sentence says, as `rewards.factuality` has it; None if it states nothing."""
    steps = rewards.read(sentence, example.question, example.context).steps
    return min((step.support for step in steps), default=None)


def marked(rationale: str, example: data.Example) -> str:
    """A rationale with a sign and a colour for each of its sentences; one that is said again and again is one."""
    said = ""
    for sentence, again in itertools.groupby(split(rationale)):
        times = len(list(again))
        support = support_of(sentence, example)
        if support is None:
            kind, sign = "none", "·"
        elif support >= 0.9:
            kind, sign = "full", "✓"
        else:
            kind, sign = ("part", "≈") if support > 0 else ("no", "✗")
        said += f'<span class="sentence {kind}"><b>{sign}</b> {say(sentence)}{f" × {times}" * (times > 1)}</span> '
    return said or "<i>(nothing)</i>"


def look_of(when: str, answer: dict, example: data.Example) -> str:
    """A rationale with its signs, M_L's answer from it, and the eight aspects as bars."""
    scores = quality(answer, example)
    verdict = "<span class=full><b>✓ right</b></span>"
    if not is_right(answer, example):
        verdict = "<span class=no><b>✗ wrong</b></span>"
    bars = ""
    for aspect in rewards.ASPECTS:
        bars += f'<li>{aspect} <i><i style="width: {100 * scores[aspect]:.0f}%"></i></i> {scores[aspect]:.2f}</li>'
    return (f"<li><b>{say(when)}</b><div><p>{marked(answer['rationale'], example)}</p><p>M_L answers "
            f"<b>{say(answer['prediction'])}</b> {verdict}</p></div><div>quality {scores['R_aspect']:.2f} of 8"
            f"<ul class=bars>{bars}</ul></div></li>")  # fmt: skip


def question(story: Story, name: str, fate: str) -> str:
    """One question at all times; times in a row with the same text and answer are one row."""
    example, rows = story.examples[name], ""
    told = [(when, answers[name]) for when, answers in story.looks]
    for _, group in itertools.groupby(told, key=lambda look: (look[1]["rationale"], look[1]["prediction"])):
        same = list(group)
        when = " to ".join(dict.fromkeys([same[0][0], same[-1][0]]))
        rows += look_of(when, same[0][1], example)
    return (f"<article><p class=faint>M_L's answer: {fate}</p><h4>{say(example.question)}</h4><p>Right answer: "
            f"<b>{say(example.answer)}</b></p><details><summary>The context</summary><p>{say(example.context)}</p>"
            f"</details><ol>{rows}</ol></article>")  # fmt: skip


def six_questions(story: Story, is_open: bool) -> str:
    """The first two questions that stay right, that stay wrong, and that change."""
    fates = fates_of(story)
    if not any(fates.values()):
        raise UserError(f"the texts of {story.title} are about other questions than its settings name")
    fate_of = {name: fate for fate, names in fates.items() for name in names}
    gained, lost, right, wrong = fates.values()
    changed = gained[:1] + lost[:1] + gained[1:2] + lost[1:2]
    articles = ""
    for name in right[:2] + wrong[:2] + changed[:2]:
        articles += question(story, name, fate_of[name])
    counts = ". ".join(f"{fate.capitalize()}: {len(names)}" for fate, names in fates.items())
    return (f"<details {'open' * is_open}><summary>{say(story.title)}</summary><p class=faint>The first of each kind, "
            f"by M_L's first and last answer. Of all {len(fate_of)}: {counts}.</p>{articles}</details>")  # fmt: skip


def questions(runs: list[Found]) -> str:
    """Six questions of each training, or if there is none, of each comparison."""
    trainings = [run for run in runs if run.kind in ("kd", "rl")]
    began = {Path(run.settings["kd"]).resolve() for run in trainings if run.kind == "rl"}
    parts = ""
    for run in trainings or runs:
        if run.place.resolve() in began:
            continue  # the story of PPO begins with it
        try:
            story = story_of_training(run) if run.texts else story_of_methods(run)
            parts += six_questions(story, is_open=not parts)
        except (UserError, OSError) as error:
            parts += left_out(error)
    return parts


# ---- 7. The page -----------------------------------------------------------------------------------------------------


def trainings(runs: list[Found]) -> dict[str, list]:
    """The page's sections about training: their places in the frame, and their HTML and pictures."""
    kd = [run for run in runs if run.kind in ("kd", "direct")]
    ppo = [run for run in runs if run.kind == "rl"]
    no_kd = [left_out("no folder of train_kd.py was given, such as runs/kd")]
    no_ppo = [left_out("no folder of train_rl.py was given, such as runs/rl")]
    parts = {"FILTER": no_kd, "KD": no_kd, "PPO": no_ppo}
    if kd:
        parts["FILTER"] = [filter_counts(run) for run in kd if run.kind == "kd"]
        begun = [run for run in kd if run.metrics]
        parts["KD"] = [kd_picture(begun)] if begun else [left_out("no epoch has ended yet")]
    if ppo:
        begun = [run for run in ppo if run.metrics or run.dev]
        caption = "Held-out questions: greedy rationales. All else: means over a step's rationales, at temperature 1."
        others = "The other aspects. One that falls while the reward rises is what the others were bought with."
        parts["PPO"] = [ppo_picture("rl", caption, begun, PPO), ppo_picture("rl-aspects", others, begun, OTHERS)]
        if not begun:
            parts["PPO"] = [left_out("no step has ended yet")]
    return parts


def methods(runs: list[Found]) -> list:
    """The tables of the comparisons; without one, that of the last training that has ended."""
    ended = [run for run in runs if run.results]
    compared = [run for run in ended if run.kind == "eval"] or ended[-1:]
    if not compared:
        return [left_out("no run has a table of methods yet; python eval.py makes one")]
    parts = []
    for i, run in enumerate(compared, start=1):
        parts += [results_picture(run, f"results-{i}" if i > 1 else "results"), numbers(run)]
    try:
        parts.append(quality_picture(compared[0]))
    except (UserError, OSError) as error:
        parts.append(left_out(error))
    return parts


def page(sections: dict[str, list], places: Sequence[Path]) -> str:
    filled = {"PLACES": say(" ".join(map(str, places)))}
    for name, colours in (("LIGHT", LIGHT), ("DARK", DARK)):
        filled[name] = "; ".join(f"--{colour}: {value}" for colour, value in colours.items())
    for name, parts in sections.items():
        filled[name] = "".join(show(part) if isinstance(part, Picture) else part for part in parts)
    return re.sub("@([A-Z]+)@", lambda place: filled[place[1]], FRAME.read_text("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path, metavar="FOLDER", help="run folders")
    parser.add_argument("--out", type=Path, default=Path("runs/report.html"), help="page (default: runs/report.html)")
    parser.add_argument("--pictures", type=Path, help="folder for its pictures as SVG, on light and on dark ground")
    given = parser.parse_args()
    places = list(dict.fromkeys(given.places))
    runs = list(map(find, places))
    try:
        sections = {"SETTINGS": list(map(settings, runs)), "SIGNS": [signs(runs)], **trainings(runs)}
        sections |= {"METHODS": methods(runs), "QUESTIONS": [questions(runs)]}
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"one of the folders holds what no run of this version writes ({error!r})") from error

    given.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(given.out, page(sections, places).encode(errors="replace"))
    print(f"The page is {given.out}.")
    if given.pictures:
        save_pictures([part for parts in sections.values() for part in parts], given.pictures)


def save_pictures(parts: list, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if isinstance(part, Picture) and part.panels:
            for ending, colours in (("", LIGHT), ("-dark", DARK)):
                svg = as_file(part, colours)
                atomic_write(folder / f"{part.name}{ending}.svg", svg.encode(errors="replace"))


if __name__ == "__main__":
    run_main(main)
