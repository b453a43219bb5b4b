"""Proofs for what is taught: the tour prints what it shows, as page and as notebook, the exercises' lines are in the
code, the demo is true."""

import code
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from harness import call

import data
import eval as evaluation
import lmcot
import train_kd
import train_rl
from eval import number, with_interval
from lab import make_tour
from plumbing.command import parse_settings

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d+\.\d*")


def exercises() -> list[str]:
    """What stands before the exercises, and the text of each."""
    return re.split(r"^## (?=\d+\. )", (ROOT / "lab/EXERCISES.md").read_text(), flags=re.M)


def blocks(text: str, language: str) -> list[str]:
    """Its code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


class Terminal(code.InteractiveConsole):
    """Python's own prompt, into which a reader pastes; an error ends the test."""

    def write(self, text):
        raise AssertionError(text)

    def paste(self, block: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            for line in block.split("\n"):
                self.push(line)
        return out.getvalue()


def differs(printed: str, shown: str, words_only: bool = False) -> bool:
    """Whether two texts differ in more than the last digit of a number (or, words only, in more than numbers)."""
    if "".join(NUMBER.sub("#", printed).split()) != "".join(NUMBER.sub("#", shown).split()):
        return True
    if words_only:
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return any(abs(float(a) - float(b)) > 0.021 for a, b in pairs)


# ------------------------------------------------------------------------------------------------ the tour


def test_the_tour_prints_what_it_shows_when_pasted_into_one_prompt(monkeypatch):
    """All blocks but those that need the long trainings."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    page = make_tour.PAGE.read_text()
    steps = [block.groups() for block in make_tour.BLOCK.finditer(page)]
    assert len(steps) == page.count("```python") >= 15
    assert sum(bool(shown) for _, _, shown in steps) == page.count("```text") >= 12
    terminal, options = Terminal(), torch._tensor_str.PRINT_OPTS
    try:
        for needs_training, block, shown in steps:
            if needs_training:
                continue
            printed = terminal.paste(block)
            assert not differs(printed, shown or ""), f"{block}\nprints\n{printed}\nand the tour shows\n{shown}"
    finally:
        torch._tensor_str.PRINT_OPTS = options


def test_the_notebook_has_the_text_the_blocks_and_the_outputs_of_the_page():
    page = make_tour.PAGE.read_text()
    notebook = nbformat.read(make_tour.NOTEBOOK, 4)
    nbformat.validate(notebook)
    made = make_tour.cells(page)
    for cell, expected in zip(notebook.cells, made, strict=True):
        for part in ("id", "cell_type", "source", "metadata"):
            assert cell[part] == expected[part], "run lab/make_tour.py"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert make_tour.with_outputs(page, list(map(make_tour.printed, code[1:]))) == page, "run lab/make_tour.py"
    # Nothing of the page is lost: without fences and outputs it is the cells, but for the first, which is SETUP.
    rest = re.sub(r"^```text\n.*?^```$|^```.*?$", "", page, flags=re.M | re.S)
    assert " ".join(cell.source for cell in made if cell.source != make_tour.SETUP).split() == rest.split()


def test_the_notebook_shows_the_pictures_and_tells_nothing_of_the_machine():
    notebook = nbformat.read(make_tour.NOTEBOOK, 4)
    draws = [cell for cell in notebook.cells if cell.cell_type == "code" and "plt.show()" in cell.source]
    pictures = [output for cell in draws for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(draws) > 0
    assert notebook.metadata == make_tour.METADATA
    for output in pictures:
        del output["data"]["image/png"]
    for trace in (str(ROOT), str(Path.home()), "iopub", "/usr/", " 0x"):
        assert trace not in nbformat.writes(notebook)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_fresh_copy_makes_the_same_tour_trainings_included(tmp_path):
    """About ten minutes. Trained values differ from machine to machine: there only the words are compared."""
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "lab/make_tour.py"], cwd=tmp_path, check=True)
    old, new = make_tour.PAGE.read_text(), (tmp_path / "lab/TOUR.md").read_text()
    for shown, printed in zip(make_tour.BLOCK.finditer(old), make_tour.BLOCK.finditer(new), strict=True):
        assert printed[2] == shown[2]
        if "runs/" not in printed[2]:
            assert not differs(printed[3] or "", shown[3] or ""), f"{printed[3]}\nand the tour shows\n{shown[3]}"
        elif "write_rationales" not in printed[2]:
            assert not differs(printed[3], shown[3], words_only=True)
    assert len(list(tmp_path.glob("runs/*/*.pt"))) == 4 and (tmp_path / "lab/tour.ipynb").stat().st_size > 50_000


@pytest.mark.parametrize("page", ["TOUR.md", "EXERCISES.md"])
def test_every_file_and_function_that_a_heading_names_exists(page):
    headings = re.findall(r"^## .*?·(.*)$", (ROOT / "lab" / page).read_text(), re.M)
    named = [re.findall(r"`([\w./]+)`", group) for heading in headings for group in heading.split(" · ")]
    for file, *functions in named:
        source = (ROOT / file).read_text()
        for name in functions:
            assert re.search(rf"\b{name.split('.')[-1]}\b", source), f"{file} has no {name}"
    assert sum(map(len, named)) > 10


# ------------------------------------------------------------------------------------------------ the exercises


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_every_change_of_the_exercises_applies_to_the_code_as_it_is():
    patches = blocks((ROOT / "lab/EXERCISES.md").read_text(), "diff")
    assert patches
    for patch in patches:
        done = subprocess.run(["git", "apply", "--check", "-"], input=patch.encode(), cwd=ROOT, capture_output=True)
        assert done.returncode == 0, done.stderr.decode() + patch


SLOW_EXERCISES = [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3, 6, 7, 8)]


@pytest.mark.parametrize("number", [10, *SLOW_EXERCISES])
def test_an_exercise_prints_what_it_shows_and_with_another_runs_kd_the_same_words(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    part = exercises()[number]
    (block,), shown = blocks(part, "python"), blocks(part, "text")[0]
    if number in (6, 8):  # which look at the rollout that the page makes before
        _, rollout = blocks(exercises()[0], "python")
        block = rollout + block
    trained = "runs/kd" in block
    if trained and not Path("runs/kd/model").is_dir():
        pytest.skip("needs runs/kd")
    printed = Terminal().paste(block)
    assert not differs(printed, shown, words_only=trained), f"prints\n{printed}\nand the exercise shows\n{shown}"


def test_every_command_of_the_exercises_has_flags_that_its_script_knows():
    scripts = {"train_kd.py": train_kd, "train_rl.py": train_rl, "eval.py": evaluation, "lmcot.py": lmcot}
    page = (ROOT / "lab/EXERCISES.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python (\w+\.py)\b([^#\n]*)", "\n".join(blocks(page, "sh")), re.M)
    for script, flags in commands:
        if script in scripts:
            parse_settings(scripts[script].Settings, None, flags.split())  # SystemExit if a flag is unknown
    assert len(commands) >= 6


# ------------------------------------------------------------------------------------------------ the demo


def test_the_demo_shows_what_every_method_that_there_is_answers_in_80_columns(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lmcot, "DEMO_QUESTIONS", 20)
    Path("runs/kd").mkdir(parents=True)
    Path("runs/kd/model").symlink_to(ROOT / "tiny/small")  # an M_S that learned nothing
    assert call(monkeypatch, lmcot.main, "--demo") == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert max(map(len, out.splitlines())) == 80 and "runs/rl" not in words

    large, small = lmcot.LocalLM.load(ROOT / "tiny/large"), lmcot.LocalLM.load(ROOT / "tiny/small")
    examples = [example for example in data.load("tiny", "dev", 20) if example.question in words]
    assert len(examples) == words.count("Question ") == words.count("M_L is right ") - 1 > 2  # and in the table
    guided = lmcot.guided(large, examples, lmcot.write_rationales(small, examples))
    shown = {"Standard prompting": lmcot.standard(large, examples),
             "Chain of thought": lmcot.chain_of_thought(large, examples),
             "Guided by tiny/small": guided, "Guided by runs/kd/model": guided}  # fmt: skip
    for method, answers in shown.items():
        for answer, example in zip(answers, examples, strict=True):
            verdict = "right" if data.exact_match(answer.prediction, example.answers) else "wrong"
            assert f"{method} {answer.prediction} ({verdict}) {answer.rationale}".strip() in words


# ------------------------------------------------------------------------------------------------ the table


def test_the_readmes_table_is_what_its_runs_recorded():
    methods = json.loads((ROOT / "lab/table/eval/results.json").read_text("utf-8"))["methods"]
    readme = (ROOT / "README.md").read_text("utf-8").replace("−", "-")
    table = readme.partition("## Results")[2].partition("\n\n1,000 test questions")[0]
    rows = [re.split(r" *\| *", line)[2:4] for line in table.splitlines() if line.startswith("|")][2:]
    shown = ["standard", "CoT", "LM-guided, untrained", "LM-guided, KD", "LM-guided, RL", "LM-guided, RL, best of N",
             "gold rationale"]  # fmt: skip
    assert len(rows) == len(shown)
    for name, (em, quality) in zip(shown, rows, strict=True):
        assert em == with_interval(methods[name]["EM"], "EM"), name
        assert quality == (number(methods[name]["R_aspect"]["mean"], "R_aspect") if quality else ""), name

    for before, after in (("LM-guided, untrained", "LM-guided, KD"), ("LM-guided, KD", "LM-guided, RL")):
        gain = with_interval(methods[after]["EM"][f"minus {before}"], "EM", "+")
        assert gain in readme, (before, after)
