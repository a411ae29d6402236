"""Imports run one way, so that what is pure stays pure and the HTTP side stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lightx2v.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("lightx2v", "deployments", "training", "benchmarks", "tests")
MOST_LINES = 500

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"lightx2v.types", "lightx2v.errors"}),
    frozenset(f"lightx2v.{name}" for name in ("config", "fp8", "key_hash", "limits", "media", "packing", "sizes")),
    frozenset({"lightx2v.weights", "lightx2v.residency", "lightx2v.layers"}),
    frozenset({"lightx2v.models"}),
    frozenset({"lightx2v.checkpoint"}),
    frozenset({"lightx2v.stages"}),
    frozenset({"lightx2v.pipeline"}),
    frozenset({"lightx2v.commands"}),
    frozenset({"lightx2v.__main__"}),
    frozenset(f"deployments.{name}" for name in ("logs", "messages", "remote", "scaling", "settings", "tensor_bytes")),
    frozenset({"deployments.card"}),
    frozenset({"deployments.serving", "deployments.stage"}),
    frozenset({"deployments.http"}),
    frozenset({"deployments.app"}),
)
"""A module imports from earlier entries and from its own package, never from its neighbours in the same entry."""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str) -> Iterator[str]:
    """Every module that is imported anywhere in it: at the top, in a function, or for the type checker only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports_of(file: Path) -> tuple[str, ...]:
    return tuple(imports(file.read_text()))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imported(*packages: str) -> list[tuple[str, str]]:
    """Who imports what, as (module, imported)."""
    return [(module_of(file), target) for package in packages for file in files(package) for target in imports_of(file)]


def layer(module: str) -> tuple[int, str] | None:
    """Where a module is in LAYERS, by rank and name."""
    return next(
        ((rank, name) for rank, names in enumerate(LAYERS) for name in names if within(module, name)),
        None,
    )


def upward(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The imports that do not lead down."""
    wrong = []
    for module, target in edges:
        here, there = layer(module), layer(target)
        if here and there and here[1] != there[1] and there[0] >= here[0]:
            wrong.append((module, target))
    return wrong


def test_imports_lead_down() -> None:
    edges = imported("lightx2v", "deployments")
    assert len(edges) > 200
    assert upward(edges) == []


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("from lightx2v.config import EngineSettings", "lightx2v.types", True),
        ("from lightx2v import residency", "lightx2v.weights.device", True),
        ("def f():\n    import lightx2v.stages.stage", "lightx2v.models.registry", True),
        ("from deployments.stage.wire import pack", "lightx2v.__main__", True),
        ("from deployments.stage.wire import pack", "deployments.serving.graph", True),
        ("from deployments.http.errors import error_body", "deployments.card.coordinator", True),
        ("from lightx2v import errors", "lightx2v.residency.ledger", False),
        ("from lightx2v.residency.lease import Lease", "lightx2v.residency.ledger", False),
        ("from lightx2v.pipeline import Pipeline", "deployments.stage.server", False),
    ],
)
def test_the_rule_itself(source: str, module: str, wrong: bool) -> None:
    assert bool(upward([(module, target) for target in imports(source)])) is wrong


def test_every_module_has_a_layer() -> None:
    modules = {module_of(file) for file in (*files("lightx2v"), *files("deployments"))}
    assert {module for module in modules if layer(module) is None} == {"lightx2v", "deployments"}
    assert {name for names in LAYERS for name in names} <= modules


def test_residency_is_pure() -> None:
    allowed = ("lightx2v.types", "lightx2v.errors", "lightx2v.residency")
    for module, target in imported("lightx2v/residency"):
        standard = target.partition(".")[0] in sys.stdlib_module_names
        assert standard or any(within(target, name) for name in allowed), (module, target)


@pytest.mark.parametrize(
    "forbidden", ["ray", "starlette", "fastapi", "uvicorn", "deployments", "training", "benchmarks"]
)
def test_the_engine_knows_nothing_of_serving(forbidden: str) -> None:
    assert [edge for edge in imported("lightx2v") if within(edge[1], forbidden)] == []


def test_only_deployments_imports_ray() -> None:
    importers = {module.partition(".")[0] for module, target in imported(*PACKAGES) if within(target, "ray")}
    assert importers <= {"deployments", "tests"}
    assert "deployments" in importers


def test_only_tests_import_from_tests() -> None:
    importers = {module.partition(".")[0] for module, target in imported(*PACKAGES) if within(target, "tests")}
    assert importers == {"tests"}


def test_nothing_that_is_installed_imports_what_is_not() -> None:
    edges = imported("lightx2v", "deployments")
    assert [edge for edge in edges if edge[1].partition(".")[0] in ("training", "benchmarks", "tests")] == []


HEAVY = ("torch", "transformers", "diffusers", "safetensors")


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("deployments/http", HEAVY),
        ("deployments/serving", HEAVY),
        ("deployments/card", HEAVY),
        ("lightx2v/media", (*HEAVY, "ray", "starlette")),
        ("lightx2v/residency", (*HEAVY, "ray", "pydantic")),
        ("lightx2v/__main__.py", (*HEAVY, "ray", "starlette")),
        *((f"lightx2v/commands/{name}.py", (*HEAVY, "ray", "starlette")) for name in COMMANDS),
    ],
)
def test_what_a_package_does_not_pull_in(package: str, absent: tuple[str, ...]) -> None:
    """All modules of it are imported in a process of their own, because other tests have imported everything here."""
    path = ROOT / package
    modules = [module_of(file) for file in ([path] if path.is_file() else files(package))]
    script = f"import sys, {', '.join(modules)}; print(*sorted(set(sys.modules) & set({absent!r})))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


@pytest.mark.parametrize("package", ["lightx2v", "deployments", "training"])
def test_no_file_is_long(package: str) -> None:
    lengths = {module_of(file): len(file.read_text().splitlines()) for file in files(package)}
    assert lengths
    assert {module: lines for module, lines in lengths.items() if lines > MOST_LINES} == {}
