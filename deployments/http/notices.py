"""Headers that tell what had no effect, such as `X-Prompt-Truncated: 512 of 700 tokens are read`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from lightx2v.models.notices import Notice, NoticeKind


def header_name(kind: NoticeKind) -> str:
    """The header of a kind of notice."""
    return "X-" + kind.replace("_", "-").title()


SEED, WARNINGS = "X-Seed", "X-Warnings"
NOTICE_HEADERS = (*(header_name(kind) for kind in get_args(NoticeKind)), SEED, WARNINGS)


def notice_headers(notices: Iterable[Notice]) -> dict[str, str]:
    """The headers of an answer with these notices."""
    return {header_name(notice.kind): notice.text for notice in notices}


def task_headers(seed: int, warnings: Sequence[str]) -> dict[str, str]:
    """The headers of an answer that is a picture alone. The `warnings` are sentences in ASCII."""
    return {SEED: str(seed), **({WARNINGS: "; ".join(warnings)} if warnings else {})}
