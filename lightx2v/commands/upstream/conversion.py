"""The result of a conversion: settings, defaults of requests, and a note for every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Verdict = Literal["kept", "changed", "dropped", "unknown"]
Config = dict[str, Any]


class Note(NamedTuple):
    """What became of one key, and why."""

    verdict: Verdict
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """The settings of a model, and the defaults for `generation_config.json` in its folder."""

    settings: Config = field(default_factory=dict)
    defaults: Config = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def note(self, verdict: Verdict, key: str, reason: str) -> None:
        """Says what became of `key`."""
        self.notes.append(Note(verdict, key, reason))

    def default(self, key: str, name: str, value: object) -> None:
        """Makes the value of `key` the default `name` of requests, and says so."""
        self.defaults[name] = value
        self.note("changed", key, f"requests decide; their default is `{name}` in the model's generation_config.json")
