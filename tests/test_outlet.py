"""Lines that nobody reads: the caller goes on, what finds no room is counted, and the reader hears the rest later."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

import pytest

from federation import outlet
from federation.outlet import Outlet

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = "x" * 99 + "\n"
WITHIN_S = 20.0


class Pipe:
    def __init__(self) -> None:
        read, write = os.pipe()
        self.reader: IO[bytes] = os.fdopen(read, "rb", buffering=0)
        self.writer = os.fdopen(write, "w", encoding="ascii")

    def read_all(self) -> bytes:
        """Until the writer is closed."""
        return b"".join(iter(lambda: self.reader.read(65536), b""))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.reader.close()
    pipe.writer.close()


def test_what_is_written_comes_out_in_order(pipe: Pipe) -> None:
    out = Outlet(pipe.writer)
    assert out.write("one\n") == 4
    print("two", file=out)  # type: ignore[call-overload]
    out.flush()
    assert out.drain(WITHIN_S)
    pipe.writer.close()
    assert pipe.read_all() == b"one\ntwo\n"


def test_nobody_reads_and_the_caller_goes_on(pipe: Pipe) -> None:
    """More than pipe and room hold: the first lines wait, the last ones are dropped and counted, and all goes on later."""
    told: list[int] = []
    heard = threading.Event()

    def dropped(lines: int) -> None:
        told.append(lines)
        heard.set()

    out = Outlet(pipe.writer, on_dropped=dropped, room=200_000)
    for _ in range(10_000):
        out.write(LINE)
    assert not out.drain(0)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_all()))
    reader.start()
    assert heard.wait(WITHIN_S)
    out.write("again\n")
    assert out.drain(WITHIN_S)
    pipe.writer.close()
    reader.join(WITHIN_S)
    lines = got[0].splitlines(keepends=True)
    assert lines[-1] == b"again\n"
    assert set(lines[:-1]) == {LINE.encode()}
    assert told == [10_000 - (len(lines) - 1)]
    assert told[0] > 0


def test_another_encoding_takes_any_character(pipe: Pipe) -> None:
    out = Outlet(pipe.writer)
    out.write("é…\n")
    assert out.drain(WITHIN_S)
    pipe.writer.close()
    assert pipe.read_all() == b"\\xe9\\u2026\n"


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: Pipe) -> None:
    """Node.js makes its pipes so, and they are shared with their children."""
    os.set_blocking(pipe.writer.fileno(), False)
    out = Outlet(pipe.writer)
    for _ in range(3000):
        out.write(LINE)
    got = b""
    while len(got) < 300_000:
        got += pipe.reader.read(65536)
    assert out.drain(WITHIN_S)
    assert got == LINE.encode() * 3000


def test_a_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    pipe.reader.close()
    out = Outlet(pipe.writer)
    out.write(LINE)
    assert out.drain(WITHIN_S)


def test_what_is_no_stream_of_the_system_stays() -> None:
    text = io.StringIO()
    assert outlet.of(text) is text
    assert outlet.of(None) is None  # type: ignore[arg-type]
    assert outlet.drain(text)


def test_a_stuck_reader_keeps_no_process_from_its_end() -> None:
    code = (
        "import sys; from federation import outlet\n"
        "sys.stderr = outlet.of(sys.stderr)\n"
        "for _ in range(5000): sys.stderr.write('x' * 99 + '\\n')\n"
        "assert not outlet.drain(sys.stderr)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(WITHIN_S) == 0  # nobody has read a byte
        finally:
            process.kill()
