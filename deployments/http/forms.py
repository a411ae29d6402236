"""Reads multipart forms part by part, within limits of size and number."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from deployments.http.bodies import FORM, bounded, check_media_type, in_time
from lightx2v.errors import InvalidRequest

MAX_PARTS = 128
MAX_FIELD_BYTES = 256 << 10


@dataclass(slots=True)
class Part:
    """A part of a form. `name` and `filename` are those of its Content-Disposition; an absent filename is empty."""

    header: bytearray = field(default_factory=bytearray)
    disposition: bytes = b""
    name: str = ""
    filename: str = ""
    data: bytearray = field(default_factory=bytearray)

    @property
    def is_absent(self) -> bool:
        """Whether it says nothing: an empty field, or a file that nobody chose, as browsers send it."""
        return not self.data and not self.filename

    @property
    def text(self) -> str:
        """The text of a field. Raises InvalidRequest."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"{self.name[:80]}: must be text in UTF-8; no file is taken by this name", self.name[:80]
            ) from None


async def read_form(request: Request, limit: int, is_file: Callable[[str], bool]) -> list[Part]:
    """The parts of a form of at most `limit` bytes, in order, without those that are absent.

    `is_file` tells from the name of a part whether it may be as long as the form. A filename does not tell: some
    clients give one to every field, and others give none to files. Raises InvalidRequest or PayloadTooLarge.
    """
    check_media_type(request, FORM)
    _, options = parse_options_header(request.headers["content-type"])
    with _readable():
        reader = _Reader(options.get(b"boundary", b""), is_file)
        async with in_time(), aclosing(bounded(request, limit)) as stream:
            await reader.read(stream)
    return [part for part in reader.parts if not part.is_absent]


class _Reader:
    """Collects what a parser of forms reports."""

    def __init__(self, boundary: bytes, is_file: Callable[[str], bool]) -> None:
        if not boundary:
            raise FormParserError("its Content-Type names no boundary")
        self.parts: list[Part] = []
        self._is_file, self._is_complete = is_file, False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._name_header,
                "on_header_value": self._add_disposition,
                "on_header_end": self._end_header,
                "on_headers_finished": self._name_part,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
        )

    async def read(self, stream: AsyncGenerator[bytes, None]) -> None:
        """Reads the whole form. Raises FormParserError, also for a form that is cut, and InvalidRequest."""
        async for chunk in stream:
            self._parser.write(chunk)
        self._parser.finalize()
        if not self._is_complete:
            raise FormParserError("it ends before its last boundary")

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise FormParserError(f"it has more than {MAX_PARTS} parts")
        self.parts.append(Part())

    def _name_header(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].header += data[start:end]

    def _add_disposition(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        if part.header.lower() == b"content-disposition":
            part.disposition += data[start:end]

    def _end_header(self) -> None:
        self.parts[-1].header.clear()

    def _name_part(self) -> None:
        part = self.parts[-1]
        _, options = parse_options_header(part.disposition)
        if b"name" not in options:
            raise FormParserError("a part of it has no name")
        part.name, part.filename = (options.get(key, b"").decode(errors="replace") for key in (b"name", b"filename"))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.data += data[start:end]
        if len(part.data) > MAX_FIELD_BYTES and not self._is_file(part.name):
            name = part.name[:80]
            raise InvalidRequest(f"{name}: a field of at most {MAX_FIELD_BYTES} bytes, and no file, is read", name)

    def _end(self) -> None:
        self._is_complete = True


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise InvalidRequest(f"the form cannot be read: {error}"[:200]) from None
