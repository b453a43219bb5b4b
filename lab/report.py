"""Run folders → one page to show: what the methods score, how they learned, what the rationales say.

    python lab/report.py runs/kd runs/rl runs/eval                        # → runs/report/report.html and its pictures
    python lab/report.py runs/eval runs/kd* runs/rl* runs/lab/results/*.json --out runs/report-seeds

Give folders of eval.py, train_kd.py and train_rl.py, whether their runs have ended or not, and results of
lab/experiments.py. What is not given is left out, with a sentence that says what to run. The first comparison (eval.py;
without one the table at the end of the last training) is shown in full, of others the results. Runs that differ only in
their seed are one curve.

The page needs nothing but itself: its pictures are SVG in its text, and its own policy forbids it to load anything.
Each picture is also written as PNG, for light and for dark ground. Needs: pip install -r requirements-lab.txt
"""

import argparse
import base64
import html
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
import rl  # noqa: E402
from eval import BASELINES, METRICS, NEED_FACTS, bootstrap, interval, read_run, with_interval  # noqa: E402
from lab.experiments import cell_text, questions_of, signatures  # noqa: E402
from plumbing.command import run_main  # noqa: E402
from plumbing.errors import UserError  # noqa: E402
from plumbing.files import atomic_write, read_json, read_jsonl  # noqa: E402
from rewards import ASPECTS, quality  # noqa: E402

try:
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image
except ImportError:  # main says how to get it
    matplotlib = None

UNTRAINED, KD, RL = "LM-guided, untrained", "LM-guided, KD", "LM-guided, RL"  # the last two there: before and after
PARTS = 5  # of the rationales, by quality
SHOWN = 2  # samples of each kind

# What the paper claims according to METHOD.md: sentence, method, the one it is compared with, measure.
CLAIMS = (
    ("M_S after KD guides M_L better than M_L's own chain of thought", KD, "CoT", "EM"),
    ("KD with self-consistency is better than standard prompting", f"{KD} + SC", "standard", "EM"),
    ("KD with self-consistency is better than chain of thought", f"{KD} + SC", "CoT", "EM"),
    ("RL writes better rationales than KD", RL, KD, "R_aspect"),
    ("RL leads to more right answers than KD", RL, KD, "EM"),
    ("The best of N by quality is not reliably better in accuracy", f"{KD}, best of N", KD, "EM"),
)

# ---- 1. Reading ------------------------------------------------------------------------------------------------------

@dataclass
class Found:
    """A run folder as it is now."""

    place: Path
    kind: str  # as in eval.read_run
    settings: dict
    results: dict | None
    metrics: list[dict]
    dev: list[dict]

    @property
    def about(self) -> str:
        """What its table was made from."""
        s, t = self.settings, self.results
        facts = [count(t["questions"], "question"), count(t["seeds"], "seed")]
        facts += [f"{word} {s[name]}" for word, name in (("data", "data"), ("split", "split"), ("N =", "samples"))
                  if name in s]  # fmt: skip
        return f"{self.place}: {', '.join(facts)}."


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def find(place: Path) -> Found:
    """Reads a run folder; UserError where there is none."""
    kind, settings = read_run(place)
    if not kind:
        raise UserError(f"{place} is neither a run folder of eval.py, train_kd.py or train_rl.py nor a result of "
                        "lab/experiments.py")  # fmt: skip
    results = read_json(place / "results.json") if (place / "results.json").is_file() else None
    if results is not None and not isinstance(results.get("methods"), dict):
        raise UserError(f"{place / 'results.json'} holds no table of methods")
    return Found(place, kind, settings, results, *(read_jsonl(place / f"{x}.jsonl") for x in ("metrics", "dev")))


def by_setting(runs: Sequence[Found]) -> dict[str, list[Found]]:
    """Runs that differ only in their seed, together; named as the first one's folder, without its number."""
    groups: dict[str, list[Found]] = {}
    for run in runs:
        same = {k: v for k, v in run.settings.items() if k not in ("seed", "out", "overwrite", "rationales")}
        same["kd"] = re.sub(r"\d+$", "", str(same.get("kd")))
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    named: dict[str, list[Found]] = {}
    for group in groups.values():
        place = group[0].place
        names = (re.sub(r"[-_]?\d+$", "", place.name), place.name, str(place))
        named[next(name for name in names if name and name not in named)] = group
    return named


# ---- 2. Quality and right answers ------------------------------------------------------------------------------------


@dataclass
class Rated:
    """What one method wrote and answered: lists over seeds of lists over questions."""

    answers: list[list[dict]] = field(default_factory=list)
    scores: list[list[dict[str, float]]] = field(default_factory=list)  # of rewards.quality
    right: list[list[bool]] = field(default_factory=list)


def rate(run: Found, examples: Sequence[data.Example], methods: Sequence[str]) -> dict[str, Rated]:
    """The answers of a comparison, scored anew; UserError where they are to other questions."""
    rated = {name: Rated() for name in methods}
    for row in read_jsonl(run.place / "answers.jsonl"):
        if row["method"] in methods:
            if [answer["id"] for answer in row["answers"]] != [example.id for example in examples]:
                raise UserError(f"the answers in {run.place} are to other questions than its settings name")
            pairs, method = list(zip(row["answers"], examples, strict=True)), rated[row["method"]]
            method.answers.append(row["answers"])
            method.scores.append([quality(a["rationale"], e, a["prediction"]) for a, e in pairs])
            method.right.append([data.exact_match(a["prediction"], e.answers) == 1 for a, e in pairs])
    return {name: method for name, method in rated.items() if method.answers}


def by_quality(scores: np.ndarray, right: np.ndarray, parts: int = PARTS) -> list[dict]:
    """Rationales (seeds, questions) in `parts` of about equal size by score, equal scores together → for each part its
    mean score, share of right answers, 95 % interval over questions and seeds (the borders stay), and size."""
    part = np.searchsorted(np.quantile(scores, np.arange(1, parts) / parts), scores)
    rows = []
    for inside in (part == i for i in range(parts)):
        if inside.any():
            size, hits = bootstrap(np.stack([inside, inside & right]).astype(float))
            rows.append({"score": float(scores[inside].mean()), "right": float(right[inside].mean()),
                         "interval": interval(hits[size > 0] / size[size > 0]), "n": int(inside.sum())})  # fmt: skip
    return rows


# ---- 3. Pictures -----------------------------------------------------------------------------------------------------

# Hues of Okabe and Ito, which colour-blind readers tell apart. In the page they are variables of its style sheet, so
# that one SVG does for both grounds.
LIGHT = {
    "ground": "#fffffe", "ink": "#1f2328", "faint": "#59636e", "rule": "#d8dee4", "grey": "#6e7781",
    "orange": "#c2560a", "blue": "#0969b6", "green": "#00835f", "purple": "#a8498a", "gold": "#9a6b00",
}  # fmt: skip
DARK = {
    "ground": "#0d1117", "ink": "#e6edf3", "faint": "#9198a1", "rule": "#30363d", "grey": "#8b949e",
    "orange": "#f28c4b", "blue": "#5fb4f0", "green": "#2fc79a", "purple": "#dd86c2", "gold": "#e0b040",
}  # fmt: skip
SERIES = ("green", "purple", "gold", "blue", "orange", "grey")


def style(c: dict[str, str]) -> dict:
    """Settings of matplotlib for a ground; no text is mathematics, whatever a folder is called."""
    settings = {
        "axes": {"titlesize": 9.5, "titlelocation": "left", "titleweight": "bold", "titlepad": 8, "facecolor": "none",
                 "edgecolor": c["rule"], "spines.top": False, "spines.right": False, "spines.left": False,
                 "grid": True, "axisbelow": True},
        "figure": {"facecolor": c["ground"]}, "font": {"size": 9}, "grid": {"color": c["rule"], "linewidth": 0.6},
        "legend": {"frameon": False}, "svg": {"fonttype": "none", "hashsalt": "lmcot"},
        "text": {"color": c["ink"], "parse_math": False}, "xtick": {"color": c["faint"], "major.size": 0},
        "ytick": {"color": c["faint"], "major.size": 0},
    }  # fmt: skip
    return {f"{part}.{name}": value for part, values in settings.items() for name, value in values.items()}


Panel = Callable[..., None]  # draws into (axes, colours)


@dataclass
class Picture:
    """Small panels: in the page as many side by side as there is room for, in the PNG `columns`."""

    name: str  # of the PNG
    caption: str
    panels: list[Panel]
    columns: int
    size: tuple[float, float]  # inches of a panel
    key: dict[str, str] = field(default_factory=dict)  # what a colour stands for: label → colour

    def draw(self, panels: Sequence[Panel], columns: int, c: dict[str, str], key: dict[str, str], **form) -> bytes:
        rows, file = -(-len(panels) // columns), io.BytesIO()
        with matplotlib.rc_context(style(c)):
            size = (self.size[0] * columns, self.size[1] * rows + 0.25 * -(-len(key) // (2 * columns)))
            figure = Figure(size, layout="constrained")
            for i, panel in enumerate(panels):
                panel(figure.add_subplot(rows, columns, i + 1), c)
            if key:
                lines = [matplotlib.lines.Line2D([], [], color=c[colour], linewidth=2.5) for colour in key.values()]
                figure.legend(lines, list(key), loc="outside upper left", ncols=2 * columns, fontsize=8)
            figure.savefig(file, **form)
        return file.getvalue()

    def svg(self, panel: Panel) -> str:
        """One panel as an SVG element whose text is text and whose colours are the page's variables."""
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        text = self.draw([panel], 1, LIGHT, {}, format="svg", transparent=True, metadata=unsaid).decode()
        text = re.sub(r".*?<svg.*?(viewBox=\S+ \S+ \S+ \S+\").*?>", r"<svg \1>", text, count=1, flags=re.DOTALL)
        for name, colour in LIGHT.items():
            text = text.replace(colour, f"var(--{name})")
        return text

    def png(self, c: dict[str, str]) -> bytes:
        drawn = Image.open(io.BytesIO(self.draw(self.panels, self.columns, c, self.key, format="png", dpi=120)))
        file = io.BytesIO()  # 64 colours are enough, and a third of the bytes
        drawn.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, "png", optimize=True)
        return file.getvalue()


def colour_of(method: str) -> str:
    starts = {"standard": "orange", "CoT": "orange", KD: "blue", RL: "green"}
    return next((colour for start, colour in starts.items() if method.startswith(start)), "grey")


def typeset(numbers: str) -> str:
    """With true minus signs, and an interval that stays in one line."""
    return numbers.replace("-", "−").replace(", ", ",\N{NO-BREAK SPACE}")


def whiskers(title: str, cells: dict[str, dict | None], measure: str, sign: str = "", colour: str = "") -> Panel:
    """A dot and its interval for each label, and the numbers beside it; with a sign, a line at 0."""
    scale = 100 if measure in METRICS else 1

    def panel(ax, c):
        for i, (label, cell) in enumerate(cells.items()):
            if not cell:
                continue
            shade = c[colour or colour_of(label)]
            ax.plot([scale * bound for bound in cell["interval"]], [i, i], color=shade, linewidth=2)
            ax.plot(scale * cell["mean"], i, "o", color=shade, markersize=5)
            numbers = typeset(with_interval(cell, measure, sign))
            ax.text(1.02, i, numbers, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        if sign:
            ax.axvline(0, color=c["faint"], linewidth=1, zorder=1)
        rows(ax, c, cells)
        ax.set_title(title)

    return panel


def rows(ax, c, labels) -> None:
    """Labels down the left side, the first on top."""
    ax.set_yticks(range(len(labels)), list(labels), color=c["ink"])
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.margins(x=0.06)


def curves(title: str, groups: Sequence[tuple[str, list[list[tuple[float, float]]]]], kept: str = "") -> Panel:
    """Groups (colour, runs of (x, y)): each run thin, and their mean as far as all of them go; the lowest point of
    each run of the colour `kept` is marked."""

    def panel(ax, c):
        for colour, runs in groups:
            runs = [run for run in runs if run]
            for run in runs:
                ax.plot(*zip(*run, strict=True), color=c[colour], linewidth=0.8, alpha=0.35 if len(runs) > 1 else 1)
                if colour == kept:
                    ax.plot(*min(run, key=lambda point: point[1]), "o", color=c[colour], markersize=4)
            if len(runs) > 1:
                mean = np.mean([run[: min(map(len, runs))] for run in runs], 0)
                ax.plot(mean[:, 0], mean[:, 1], color=c[colour], linewidth=2)
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=7)
        ax.yaxis.get_major_locator().set_params(nbins=5)
        ax.set_title(title)

    return panel


def results_picture(name: str, run: Found) -> Picture:
    methods, panels = run.results["methods"], []
    for measure, title in (("EM", "Right answers (EM), per cent"), ("R_aspect", "Quality (R_aspect), 0 to 8")):
        cells = {method: row.get(measure) for method, row in methods.items()}
        panels += [whiskers(title, cells, measure)] * any(map(bool, cells.values()))
    caption = (f"{run.about} Dots are means, lines 95 % intervals over questions and seeds. Orange: M_L by itself; "
               "blue: M_S after KD writes the rationale; green: after RL; grey: untrained, controls.")  # fmt: skip
    return Picture(name, caption, panels, 2, (4.7, 0.75 + 0.22 * len(methods)))


def differences_picture(run: Found) -> Picture:
    methods, panels = run.results["methods"], []
    for base in BASELINES:
        cells = {method: row["EM"][f"minus {base}"] for method, row in methods.items()
                 if f"minus {base}" in row["EM"] and method not in NEED_FACTS}  # fmt: skip
        panels += [whiskers(f"EM minus that of {base}, points", cells, "EM", "+")] * bool(cells)
    caption = f"{run.about} Paired differences on the same questions, 95 % intervals: one that holds 0 decides nothing."
    return Picture("differences", caption, panels, 3, (4.7, 0.75 + 0.22 * len(methods)))


def aspects_picture(run: Found, before: str, after: str) -> Picture:
    methods = run.results["methods"]

    def levels(ax, c):
        for i, aspect in enumerate(ASPECTS):
            ax.plot([methods[name][aspect]["mean"] for name in (before, after)], [i, i], color=c["rule"], linewidth=6)
            for name, y in ((before, i - 0.12), (after, i + 0.12)):
                ax.plot(methods[name][aspect]["interval"], [y, y], color=c[colour_of(name)], linewidth=2)
                ax.plot(methods[name][aspect]["mean"], y, "o", color=c[colour_of(name)], markersize=4.5)
        rows(ax, c, ASPECTS)
        ax.set_title("Aspects of rationales, 0 to 1 each")

    cells = {aspect: methods[after][aspect].get(f"minus {before}") for aspect in ASPECTS}
    panels = [levels] + [whiskers("Paired difference", cells, "", "+", colour_of(after))] * all(cells.values())
    return Picture("aspects", f"{run.about} {before}, and {after}: means and 95 % intervals.", panels, 2, (4.7, 2.5),
                   {name: colour_of(name) for name in (before, after)})  # fmt: skip


def quality_picture(run: Found, rated: dict[str, Rated]) -> Picture:
    parts = {}
    for name, r in rated.items():
        scores = [[score["R_aspect"] for score in of_seed] for of_seed in r.scores]
        parts[name] = by_quality(np.array(scores), np.array(r.right))

    def panel(ax, c):
        for name, points in parts.items():
            x, y = [p["score"] for p in points], [100 * p["right"] for p in points]
            low, high = np.transpose([[100 * bound for bound in p["interval"]] for p in points])
            ax.plot(x, y, "o-", color=c[colour_of(name)], linewidth=1.4, markersize=5)
            ax.vlines(x, low, high, color=c[colour_of(name)], linewidth=1.8)
        ax.set_ylim(0, 102)
        ax.set_title("Right answers, per cent, by R_aspect of the rationale")

    ends = "; ".join(f"{name} {100 * points[0]['right']:.0f} and {100 * points[-1]['right']:.0f} %"
                     for name, points in parts.items())  # fmt: skip
    caption = (f"{run.about} Each method's rationales (one for a question and seed, greedy) in {PARTS} parts of about "
               "equal size by R_aspect: the mean quality of a part, and the share of right answers with its 95 % "
               f"interval. Lowest and highest part: {ends}.")  # fmt: skip
    return Picture("quality", caption, [panel], 1, (5.0, 2.9), {name: colour_of(name) for name in parts})


def runs_of(groups: dict[str, list[Found]]) -> str:
    return "; ".join(f"{name}: {count(len(group), 'run')}" for name, group in groups.items())


def kd_picture(groups: dict[str, list[Found]]) -> Picture:
    key, panels = {"training": "orange", "held-out": "blue"}, []
    for name, group in groups.items():
        losses = [(key[part], [[(row["epoch"], row[loss]) for row in run.metrics if loss in row] for run in group])
                  for part, loss in (("training", "train_loss"), ("held-out", "held_out_loss"))]  # fmt: skip
        target = group[0].settings.get("target", "rationale")
        panels.append(curves(f"{name}: loss on the {target}, nats per token", losses, "blue"))
    caption = ("By epoch. Thin: a run; thick: the mean of runs that differ only in their seed, as far as all of them "
               f"go; dot: the epoch that was kept ({runs_of(groups)}).")  # fmt: skip
    return Picture("kd", caption, panels, 2, (4.7, 2.2), key)


PPO = {  # title of a panel → value of a row of metrics.jsonl
    "Reward R, as the run weighs its parts": lambda row: row["reward"],
    "Quality: sum of the eight aspects": lambda row: sum(row[aspect] for aspect in ASPECTS),
    "Share of right answers (R_task)": lambda row: row["R_task"],
    "KL to the KD model, nats per rationale": lambda row: row["kl"],
    "Entropy, nats per token": lambda row: row["entropy"],
    "Length, tokens": lambda row: row["length"],
    "Share that ends by itself": lambda row: row["ended"],
    "Highest ratio π / π_old of a token": lambda row: row["ratio_max"],
    "Clip fraction": lambda row: row["clip_fraction"],
    "KL of an update, nats per token": lambda row: row["approx_kl"],
    "Explained variance of the critic": lambda row: row["explained_variance"],
}


def rl_pictures(groups: dict[str, list[Found]]) -> list[Picture]:
    key = dict(zip(groups, SERIES * len(groups), strict=False))

    def lines(title: str, value: Callable, log: str = "metrics") -> Panel:
        return curves(title, [(key[name], [[(row["step"], value(row)) for row in getattr(run, log)] for run in group])
                              for name, group in groups.items()])  # fmt: skip

    panels = [lines(title, value) for title, value in PPO.items()]
    panels.insert(1, lines("R on held-out questions, greedy", lambda row: row["reward"], "dev"))
    aspects = [lines(aspect.capitalize(), lambda row, aspect=aspect: row[aspect]) for aspect in ASPECTS]
    shown = key if len(groups) > 1 else {}
    about = ("By step of PPO; means over its rationales, sampled at temperature 1. Thin: a run; thick: the mean of "
             f"runs that differ only in their seed ({runs_of(groups)}).")  # fmt: skip
    return [Picture("rl", about, panels, 3, (3.7, 1.9), shown),
            Picture("rl-aspects", about, aspects, 4, (2.9, 1.7), shown)]  # fmt: skip


# ---- 4. The page -----------------------------------------------------------------------------------------------------

e = html.escape


def show(picture: Picture) -> str:
    key = "".join(f"<span><i style='color:var(--{colour})'></i>{e(label)}</span>"
                  for label, colour in picture.key.items())  # fmt: skip
    panels, width = "".join(map(picture.svg, picture.panels)), 80 * picture.size[0]  # about as large as it was drawn
    form = f"--width:{width:.0f}px; max-width:{1.4 * width * len(picture.panels):.0f}px"
    return (f"<figure><div class=key>{key}</div><div class=panels style='{form}'>{panels}</div>"
            f"<figcaption>{e(picture.caption)}</figcaption></figure>")  # fmt: skip


def table(rows: Sequence[Sequence[str]], name: str = "") -> str:
    """Rows of plain texts; the first is the head."""
    head, *body = ["".join(f"<{tag}>{e(cell)}</{tag}>" for cell in row)
                   for row, tag in zip(rows, ["th"] + ["td"] * len(rows), strict=False)]  # fmt: skip
    body = "".join(f"<tr>{row}</tr>" for row in body)
    return f'<div class=wide><table id="{e(name)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def claims(run: Found) -> str:
    found = [["claim", "measured here", "difference [95 %]", "interval"]]
    for claim, method, base, measure in CLAIMS:
        cell = run.results["methods"].get(method, {}).get(measure, {}).get(f"minus {base}")
        if cell:
            low, high = cell["interval"]
            where = "above 0" if low > 0 else "below 0" if high < 0 else "holds 0: not decided"
            numbers = typeset(with_interval(cell, measure, "+"))
            found.append([claim, f"{measure}: {method} minus {base}", numbers, where])
    return table(found, "claims") + f"<p class=faint>{e(run.about)} EM in points, R_aspect out of 8.</p>"


def numbers(run: Found) -> str:
    measures = (*METRICS, "R_aspect")
    found = [["method", *(f"{measure} [95 %]" for measure in measures), "s/question", "tokens/question"]]
    for name, row in run.results["methods"].items():
        cells = [typeset(with_interval(row[measure], measure)) if measure in row else "" for measure in measures]
        found.append([name, *cells, f"{row['seconds per question']:.3f}", f"{row['tokens per question']:.1f}"])
    return f"<details><summary>All numbers</summary>{table(found, 'numbers')}</details>"


def signs(ppo: Sequence[Found], compared: Sequence[Found]) -> str:
    """What rl.warnings says at the steps at which train_rl.py asks it, and experiments.signatures at the end."""
    found, looks = [], 0
    for run in ppo:
        every, limit = run.settings["eval_every"], run.settings["max_new_tokens"]
        for step in range(every, len(run.metrics) + 1, every):
            looks += 1
            found += [[str(run.place), str(step), warning] for warning in rl.warnings(run.metrics[:step], limit)]
    for run in {run.place: run for run in (*ppo, *compared)}.values():
        said = {sign for place, _, sign in found if place == str(run.place)}
        of_ppo = run.metrics if run in ppo else []
        ended = signatures(run.results if run in compared else None, of_ppo, run.settings["max_new_tokens"])
        found += [[str(run.place), "end", sign] for sign in ended if sign not in said]
    where = f"{count(len(ppo), 'run')} of PPO, looked at when train_rl.py does, {count(looks, 'time')} in all"
    where += f", and {count(len(compared), 'comparison')}"
    seen = table([["run", "step", "sign"], *found], "signs") if found else ""
    return f"<p>{count(len(found), 'sign')} in {where}.</p>{seen}"


CHANGES = {(False, True): "Wrong before, right after", (True, False): "Right before, wrong after",
           (True, True): "Right before and after", (False, False): "Wrong before and after"}  # fmt: skip


def samples(rated: dict[str, Rated], before: str, after: str, examples: Sequence[data.Example]) -> str:
    """The first questions of each kind of change, first seed, with what each method wrote."""
    parts = []
    pairs = list(zip(rated[before].right[0], rated[after].right[0], strict=True))
    for change, title in CHANGES.items():
        places = [i for i, pair in enumerate(pairs) if pair == change]
        parts.append(f"<h3>{title}: {len(places):,} of {len(pairs):,}</h3><div class=cards>")
        for i in places[:SHOWN]:
            x = examples[i]
            parts.append(f"<article><h4>{e(x.question)}</h4><details><summary>context</summary>{e(x.context)}</details>"
                         f"<p>gold answer: <b>{e(x.answer)}</b></p>")  # fmt: skip
            for name, r in rated.items():
                answer, scores, right = r.answers[0][i], r.scores[0][i], r.right[0][i]
                aspects = " · ".join(f"{aspect} {scores[aspect]:.2f}" for aspect in ASPECTS)
                parts.append(f"<div class={colour_of(name)}><h4>{e(name)}</h4><p>{e(answer['rationale'])}</p><p>M_L: "
                             f"<b>{e(answer['prediction'])}</b>, {'right ✓' if right else 'wrong ✗'} · R_aspect "
                             f"{scores['R_aspect']:.2f}</p><small>{aspects}</small></div>")  # fmt: skip
            parts.append("</article>")
        parts.append("</div>")
    return "".join(parts)


def experiment(result: dict) -> str:
    """A result file of lab/experiments.py; what its cells are is said there."""

    def text(cell, column: str) -> str:
        numbers = cell_text(cell, column)
        return typeset(numbers) if isinstance(cell, dict | float) else numbers

    parts = []
    for each in result["tables"]:
        rows = [[text(*pair) for pair in zip(row, each["columns"], strict=True)] for row in each["rows"]]
        parts.append(f"<p>{e(each['title'])}</p>{table([each['columns'], *rows])}")
    cost = f"{count(result['seeds'], 'seed')}, {result['cpu_minutes']:.0f} CPU minutes; intervals: 95 %."
    return "".join(parts) + f"<p class=faint>{e(result['command'])}: {cost}</p>"


CSS = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1rem 5rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1rem 0 .3rem } h2 { margin: 3.5rem 0 .7rem; font-size: 1.35rem }
h3 { margin: 2rem 0 .6rem; font-size: 1.05rem } h4 { margin: 0 } p, figcaption { max-width: 50rem; margin: .5rem 0 }
.faint, figcaption, small, summary, th { color: var(--faint) } .faint, figcaption, details { font-size: .9rem }
figure { margin: 1rem 0 2rem } .wide { overflow-x: auto } .wide > * { min-width: 42rem; max-width: 66rem }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--width)), 1fr)); gap: 1.2rem }
svg { display: block; width: 100%; height: auto } svg text { font-family: inherit !important }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; margin: .5rem 0 }
.key i { display: inline-block; width: 1.5em; margin-right: .5em; vertical-align: middle; border-top: 3px solid }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; margin: .6rem 0 }
th, td { text-align: left; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { font-weight: 500 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
article { border: 1px solid var(--rule); border-radius: .6rem; padding: 1rem; overflow-wrap: anywhere }
article p { margin: .1rem 0 } small { font-size: .76rem } article div h4 { font-size: .8rem }
article div { border-left: 3px solid; padding-left: .7rem; margin-top: .8rem; font-size: .92rem }
"""


def page(sections: Sequence[tuple[str, str]], intro: str) -> str:
    css = CSS + "".join(f".{name} {{ border-color: var(--{name}) }} .{name} h4 {{ color: var(--{name}) }}\n"
                        for name in SERIES)  # fmt: skip
    for word, colours in (("LIGHT", LIGHT), ("DARK", DARK)):
        css = css.replace(word, "; ".join(f"--{name}: {colour}" for name, colour in colours.items()))
    method = base64.b64encode((Path(__file__).resolve().parent / "pictures" / "method.svg").read_bytes()).decode()
    body = "".join(f"<section><h2>{e(title)}</h2>{content}</section>" for title, content in sections)
    body = body.replace(" %", "\N{NO-BREAK SPACE}%")
    return f"""<!doctype html>
<html lang=en><head><meta charset=utf-8><title>LM-guided chain of thought: a report</title>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>{css}</style></head><body><h1>LM-guided chain of thought: a report</h1><p class=faint>{e(intro)}</p>
<div class=wide><img alt="M_S writes a rationale, M_L answers from it, and rewards for both train M_S"
src="data:image/svg+xml;base64,{method}"></div>{body}</body></html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path, metavar="FOLDER", help="run folders")
    parser.add_argument("--out", type=Path, default=Path("runs/report"), help="folder to write (default: runs/report)")
    given = parser.parse_args()
    if matplotlib is None:
        raise UserError("the report is drawn by matplotlib: pip install -r requirements-lab.txt")
    try:
        write(list(dict.fromkeys(given.places)), given.out)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"one of the folders holds what no run of this version writes ({error!r})") from error


def write(places: Sequence[Path], out: Path) -> None:
    """The page and its pictures."""
    experiments = {place: read_json(place) for place in places if place.suffix == ".json" and place.is_file()}
    for place, result in experiments.items():
        if not {"question", "tables", "command", "seeds", "cpu_minutes"} <= result.keys():
            raise UserError(f"{place} is no result of lab/experiments.py")
    runs = [find(place) for place in places if place not in experiments]
    kd, ppo = ([run for run in runs if run.kind in kinds and run.metrics] for kinds in (("kd", "direct"), ("rl",)))
    compared = [run for run in runs if run.kind == "eval" and run.results] or [run for run in runs if run.results][-1:]
    pictures, sections = [], []

    def section(title: str, *parts: "str | Picture") -> None:
        pictures.extend(part for part in parts if isinstance(part, Picture))
        sections.append((title, "".join(show(part) if isinstance(part, Picture) else part for part in parts)))

    def left_out(title: str, why: str) -> None:
        section(title, f"<p>Left out: {e(why)}.</p>")

    rated: dict[str, Rated] = {}
    if not compared:
        left_out("Results", "none of the folders has a table of methods; python eval.py makes one")
    else:
        first, methods = compared[0], compared[0].results["methods"]
        known = [name for name in (UNTRAINED, KD, RL) if name in methods]
        section("What the paper claims, and what was measured", claims(first))
        section("Results", results_picture("results", first), numbers(first), differences_picture(first))
        if len(known) > 1:
            section("Eight aspects of quality", aspects_picture(first, *known[-2:]))
        try:
            examples = questions_of(first.place)
            rated = rate(first, examples, [name for name in ("CoT", *known) if name in methods])
            if not rated:
                raise UserError(f"{first.place} has no rationales of M_S or M_L")
            section("Quality and right answers", quality_picture(first, rated))
        except (UserError, OSError) as error:
            left_out("Quality and right answers, samples", str(error))
    if kd:
        section("Distillation: how M_S learned to write", kd_picture(by_setting(kd)))
    else:
        left_out("Distillation", "give the folder of a run of train_kd.py, such as runs/kd")
    if ppo:
        section("Refinement: what PPO did", *rl_pictures(by_setting(ppo)))
    else:
        left_out("Refinement", "give the folder of a run of train_rl.py, such as runs/rl")
    section("Signs of failure", signs(ppo, compared))
    for result in experiments.values():
        section(result["question"], experiment(result))
    if rated and len(known) > 1:
        section(f"Samples before ({known[-2]}) and after ({known[-1]})", f"<p class=faint>{e(first.about)} The first "
                "questions of each kind, first seed.</p>", samples(rated, *known[-2:], examples))  # fmt: skip
    for i, run in enumerate(compared[1:], start=2):
        section(f"Results of {run.place}", results_picture(f"results-{i}", run), numbers(run))

    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        for ending, colours in (("", LIGHT), ("-dark", DARK)):
            atomic_write(out / f"{picture.name}{ending}.png", picture.png(colours))
    names = ", ".join(map(str, places))
    atomic_write(out / "report.html", page(sections, f"lab/report.py made it from {names}."))
    print(f"{out / 'report.html'}, and {2 * len(pictures)} pictures beside it")


if __name__ == "__main__":
    run_main(main)
