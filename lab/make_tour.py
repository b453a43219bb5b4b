"""The tour as a page and as a notebook, from one source.

    pip install -r requirements-lab.txt && python lab/make_tour.py

The source is lab/TOUR.md: prose and blocks of Python. This script runs all blocks in one interpreter, in their order.
What a block prints it writes below the block, in place of the text that stands there, and it makes lab/tour.ipynb of
prose, blocks, outputs and pictures. Whoever changes the page runs it again; a test compares the two.
A block of "python trained" shows what trainings left in runs/, and trains first what is not there (twelve minutes).
What goes to stderr, such as a progress bar, is left out.
"""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

LAB = Path(__file__).resolve().parent
PAGE, NOTEBOOK = LAB / "TOUR.md", LAB / "tour.ipynb"
BLOCK = re.compile(r"^```python( trained)?\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.M | re.S)  # mark, source, output
SETUP = """# The notebook lies in lab/, and the code wants the project's folder.
import os

if os.path.exists("make_tour.py"):
    os.chdir("..")"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells(page: str) -> list[NotebookNode]:
    """The page → the cells of its notebook, which have not run. Each section of prose begins a new cell."""
    made = []
    end = 0
    for block in BLOCK.finditer(page):
        made += prose_cells(page[end : block.start()])
        if end == 0:
            made.append(new_code_cell(SETUP))
        made.append(new_code_cell(block[2].strip(), metadata={"tags": ["trained"]} if block[1] else {}))
        end = block.end()
    made += prose_cells(page[end:])
    for number, cell in enumerate(made):
        cell.id = f"cell-{number}"  # nbformat's own are random
    return made


def prose_cells(prose: str) -> list[NotebookNode]:
    sections = re.split(r"^(?=## )", prose, flags=re.M)
    return [new_markdown_cell(section.strip()) for section in sections if section.strip()]


def run(made: list[NotebookNode]) -> NotebookNode:
    """Run the cells in a kernel that stands in the project's folder → a notebook in which nothing tells when or where.
    An error in a cell ends it."""
    resources = {"metadata": {"path": str(LAB.parent)}}
    NotebookClient(new_notebook(cells=made), kernel_name="python3", resources=resources, record_timing=False).execute()
    for cell in made:
        if cell.cell_type == "code":
            text = printed(cell)
            pictures = [output for output in cell.outputs if output.output_type == "display_data"]
            cell.outputs = pictures
            if text:  # a kernel sends it in pieces
                cell.outputs = [new_output("stream", name="stdout", text=text), *pictures]
    return new_notebook(cells=made, metadata=METADATA)


def printed(cell: NotebookNode) -> str:
    """What a cell wrote to stdout, without spaces at the ends of lines."""
    pieces = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    return re.sub(r" +$", "", "".join(pieces), flags=re.M)


def with_outputs(page: str, texts: list[str]) -> str:
    """The page with these texts below its blocks, one for each; "" for a block that prints nothing."""
    waiting = iter(texts)

    def block_and_text(block: re.Match) -> str:
        text = next(waiting)
        return f"```python{block[1] or ''}\n{block[2]}```\n" + (f"```text\n{text}```\n" if text else "")

    return BLOCK.sub(block_and_text, page)


def main() -> None:
    page = PAGE.read_text("utf-8")
    notebook = run(cells(page))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    PAGE.write_text(with_outputs(page, [printed(cell) for cell in code[1:]]), "utf-8")  # the first is SETUP
    nbformat.write(notebook, NOTEBOOK)
    print(f"{PAGE} and {NOTEBOOK}: {len(code) - 1} blocks")


if __name__ == "__main__":
    main()
