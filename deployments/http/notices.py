"""Headers that tell what had no effect, such as `X-Prompt-Truncated: 512 of 700 tokens are read`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from lightx2v.models.notices import Notice, NoticeKind


def header_name(kind: NoticeKind) -> str:
    """The header of a kind of notice."""
    return "X-" + kind.replace("_", "-").title()


NOTICE_HEADERS = tuple(header_name(kind) for kind in get_args(NoticeKind))


def notice_headers(notices: Iterable[Notice]) -> dict[str, str]:
    """The headers of an answer with these notices."""
    return {header_name(notice.kind): notice.text for notice in notices}
