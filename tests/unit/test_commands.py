"""`python -m lightx2v` runs the command that its first word names, or makes a picture of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightx2v.__main__ import main
from lightx2v.commands import COMMANDS, generate


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        (["a cat", "--seed", "7"], ["a cat", "--seed", "7"]),
        (["generate", "a cat"], ["a cat"]),
        (["generate", "generate"], ["generate"]),
        (["a cat", "generate"], ["a cat", "generate"]),
        ([], []),
    ],
)
def test_a_prompt_needs_no_command(arguments: list[str], rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(given: Sequence[str]) -> int:
        seen.append(list(given))
        return 3

    monkeypatch.setattr(generate, "main", run)
    assert main(arguments) == 3
    assert seen == [rest]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "example: python -m lightx2v" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
