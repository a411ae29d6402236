"""docs/compatibility.md: every report has a row, and every row a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/compatibility.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| report", "| ---"))
]
REPORTS = 34


def functions(file: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)}


def test_every_report_has_a_row() -> None:
    numbers = {int(match[1]) for report, _, _ in ROWS if (match := re.match(r"(\d+) ", report))}
    assert numbers == set(range(1, REPORTS + 1))


def test_every_row_has_a_test_that_exists() -> None:
    for report, _, test in ROWS:
        file, _, name = test.strip("`").partition("::")
        assert name in functions(ROOT / file), f"{report}: {test}"
