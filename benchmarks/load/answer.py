"""The answer to one request of a load."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from benchmarks.load.mix import Call

OK = 200
NONE = 0
"""The status of a request that got no answer."""


@dataclass(frozen=True)
class Answer:
    """Moments are seconds of one clock."""

    call: Call
    due: float
    """When the request had to be sent."""
    sent: float
    ended: float
    """When the last byte of the answer had come."""
    status: int
    code: str = ""
    """Why there is no picture: the server's code, or the name of the connection's error."""
    digest: str = ""
    """SHA-256 of the picture, in its base64 text."""
    retry_after: float | None = None
    """The seconds after which the server lets a refused client try again."""

    @property
    def is_picture(self) -> bool:
        return self.status == OK

    @property
    def seconds(self) -> float:
        """From the moment at which the request was due: a client that sends late does not hide what its user waits."""
        return self.ended - self.due

    @property
    def seconds_since_sent(self) -> float:
        """What the server took."""
        return self.ended - self.sent


def pictures(answers: Iterable[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.is_picture]


def digest_of(body: bytes) -> str:
    """SHA-256 of the picture in the body of an answer. Raises ValueError, KeyError or IndexError if there is none."""
    return sha256(json.loads(body)["data"][0]["b64_json"].encode()).hexdigest()


def code_of(body: bytes) -> str:
    """The code of an error's body; what it begins with if it is none of ours."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return body[:60].decode(errors="replace")
