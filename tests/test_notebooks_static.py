"""The committed notebooks, without running them: order, outputs, form, and nothing that leaks."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from course.committed import outputs_of, reference_file
from IPython.core.inputtransformer2 import TransformerManager

from tests.conftest import ROOT

CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LEAKS = re.compile(r"/(home|root|opt|work|tmp|Users)/|[A-Z]:\\|Bearer [A-Za-z0-9]{6}|127\.0\.0\.1:\d")


DOCKERFILE = (ROOT / "deploy" / "image" / "Dockerfile").read_text().splitlines()  # its paths are an image's


def without_dockerfile(output: Any) -> str:
    """An output, without the lines of the Dockerfile that it shows."""
    lines = [line for line in output.get("text", "").splitlines() if line not in DOCKERFILE]
    return str({**output, "text": "\n".join(lines)})


def read(chapter: Path) -> Any:
    notebook = nbformat.read(chapter, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(chapter: Path) -> list[Any]:
    return [cell for cell in read(chapter).cells if cell.cell_type == "code"]


def test_chapters_are_numbered_from_zero() -> None:
    assert [chapter.name[:2] for chapter in CHAPTERS] == [f"{i:02}" for i in range(len(CHAPTERS))]
    assert len(CHAPTERS) >= 6


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_ran_in_order_with_no_error_and_no_leak(chapter: Path) -> None:
    cells = code_cells(chapter)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert len(cell.source.splitlines()) <= 36
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr" or "stderr" in cell.metadata.get("tags", [])
            assert not LEAKS.search(without_dockerfile(output)), f"{chapter.name}: {output}"
            assert "Not so in this run" not in str(output), f"{chapter.name}: a claim that was not measured"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_opens_and_closes_as_chapters_do(chapter: Path) -> None:
    text = [cell.source for cell in read(chapter).cells if cell.cell_type == "markdown"]
    for part in ("**What you'll do.**", "**What you'll learn.**", "**What you need.**"):
        assert part in text[0]
    whole = "\n".join(text)
    for part in ("## Recap", "## Exercises", "## If it failed"):
        assert part in whole
    for link in re.findall(r"\]\(([^)#:]+)\)", whole):
        assert (chapter.parent / link).exists(), link


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_cell_that_reads_a_servers_log_waits_for_what_it_reads(chapter: Path) -> None:
    """A worker's lines are written a moment after it started or answered."""
    for cell in code_cells(chapter):
        reads = "log_dir" in cell.source and re.search(r"\.(read_text|read_bytes|open)\(", cell.source)
        assert not reads or "wait_" in cell.source, f"{chapter.name}: read it with server.wait_for_log"


def test_outputs_are_of_the_settings_that_are_committed() -> None:
    """A cheap sign of stale outputs: chapter 02 prints the settings that its server read."""
    chapter = next(chapter for chapter in CHAPTERS if chapter.name.startswith("02_"))
    printed = "".join(output.get("text", "") for cell in code_cells(chapter) for output in cell.outputs)
    (shown,) = re.findall(r"Settings: (\{.*\})", printed)
    settings = yaml.safe_load((ROOT / "model-config.yaml").read_text())
    assert ast.literal_eval(shown) == settings, "run `make outputs`, and commit what it changed"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_model_id_is_a_parameter(chapter: Path) -> None:
    for cell in code_cells(chapter):
        if "MODEL_ID = " in cell.source:
            assert cell.metadata["tags"] == ["parameters"]


def as_python(source: str) -> str:
    """A cell with its shell commands and magics turned into calls; its lines keep their numbers."""
    return str(TransformerManager().transform_cell(source))


def functions(source: str) -> dict[str, str]:
    """By their code, the names of the functions that a cell defines; exercises' are empty."""
    if source.startswith("%%") or "exercises.check(" in source:
        return {}
    tree = ast.parse(as_python(source))
    return {ast.dump(node): node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_what_only_chapters_use_is_defined_once() -> None:
    """In notebooks/course, then; a chapter's cells are for its lesson."""
    seen: dict[str, str] = {}
    for chapter in CHAPTERS:
        for cell in code_cells(chapter):
            for code, name in functions(cell.source).items():
                assert code not in seen, f"{name} of {chapter.name} is in {seen[code]} too: notebooks/course"
                seen[code] = chapter.name
            for plumbing in ("def free_port", "def raw_server", "for _ in range(5)]\nports"):
                assert plumbing not in cell.source, f"{chapter.name}: notebooks/course has this"


# What a learner reads past: a statement that begins with an import, or in which one of these occurs.
PLUMBING = {
    "imports": r"^(import|from) ",
    "folders": r"\.(mkdir|chmod|unlink|touch)\(|rmtree|\bcopy(file|tree)?\(|tempfile|\.parent\b",
    "ports": r"\bfree_ports?\b|\bports\b|\bsocket\b|:\{?port",
    "waiting": r"\bsleep\(|wait_until|monotonic|deadline|\.is_set\(|\.join\(\)|\bEvent\(",
    "processes": r"subprocess|Popen|psutil|[Tt]hread(Pool|\()|\bpool\b|\.(terminate|kill)\(|os\.environ"
    r"|sys\.path",
    "plotting": r"\b(plt|axes|axis|ax|figure|fig|panes?)\b|\.plot\b",
}
MOST = 0.10  # of the lines of code


def statements(body: list[ast.stmt]) -> Iterator[range]:
    """The lines of each statement; of a compound one (with, for, def, …) its head only."""
    for node in body:
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        for handler in getattr(node, "handlers", []):
            inner += handler.body
        last = min(child.lineno for child in inner) - 1 if inner else node.end_lineno or node.lineno
        yield range(node.lineno, max(last, node.lineno) + 1)
        yield from statements(inner)


def is_code(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


def plumbing(source: str) -> tuple[list[str], int]:
    """The lines of plumbing in a cell, and how many lines of code it has.

    Files that are written and shell scripts are the lesson.
    """
    if source.startswith("%%engine"):
        source = source.partition("\n")[2]
    lines = source.splitlines()
    code = sum(map(is_code, lines))
    if source.startswith("%%"):
        return [], code
    found: list[str] = []
    for numbers in statements(ast.parse(as_python(source)).body):
        statement = [line for number in numbers if is_code(line := lines[number - 1])]
        text = "\n".join(statement).strip()
        if any(re.search(pattern, text) for pattern in PLUMBING.values()):
            found += statement
    return found, code


def test_chapters_show_their_lesson_and_little_plumbing() -> None:
    shares = {}
    total = [0, 0]
    for chapter in CHAPTERS:
        cells = [plumbing(cell.source) for cell in code_cells(chapter)]
        lines = [line for found, _ in cells for line in found]
        code = sum(count for _, count in cells)
        shares[chapter.stem] = f"{len(lines) / code:.1%}, {len(lines)} of {code} lines"
        total = [total[0] + len(lines), total[1] + code]
    print(*(f"{name:28} {share}" for name, share in shares.items()), sep="\n")
    assert total[0] <= MOST * total[1], f"{total[0]} of {total[1]} lines. Move some into notebooks/course."


def test_plumbing_is_found() -> None:
    cell = "import os\n\nwith TorchServe(\n    models={}\n) as server:\n    time.sleep(1)\n    server.stop()"
    assert plumbing(cell) == (["import os", "    time.sleep(1)"], 6)
    assert plumbing("%%writefile a.py\nimport os") == ([], 2)
    assert plumbing("%%engine name\nimport os\nx = 1") == (["import os"], 2)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_reference_run_is_the_committed_one(chapter: Path) -> None:
    """Cells that can't run everywhere show outputs from a file; cells and file are of the same run."""
    cells = outputs_of("engine", chapter)
    file = reference_file(chapter)
    assert file.exists() == bool(cells)
    if cells:
        runs = json.loads(file.read_text())
        printed = {
            name: ["".join(o.get("text", "") for o in run["outputs"]), run["source"]]
            for name, run in runs.items()
        }
        assert printed == {
            name: ["".join(o.get("text", "") for o in cell["outputs"]), cell["source"]]
            for name, cell in cells.items()
        }, "run `python -m course.committed engine …` in notebooks, and commit what it changed"
