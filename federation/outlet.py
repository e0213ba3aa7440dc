"""Text for people, written on a thread of its own: the caller never waits for a pipe that nobody reads, a terminal that is
stopped, or a slow disk. Lines that find no room are dropped, and counted."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

MAX_WAITING = 1024 * 1024  # characters; a busy minute of a node whose log driver restarts
CHUNK = 64 * 1024  # characters of one write: what a pipe takes at once
FLUSH_S = 1.0  # at the end of the process: a reader that is there takes a megabyte in less
RETRY_MS = 1000  # where another process has made the descriptor non-blocking


class Outlet:
    """A text stream in place of `stream`, by its descriptor. `on_dropped(lines)` is called, on the thread, when the reader
    has caught up."""

    def __init__(
        self, stream: TextIO, *, on_dropped: Callable[[int], None] = lambda _lines: None, room: int = MAX_WAITING
    ) -> None:
        self._fd = stream.fileno()
        self.encoding = stream.encoding
        self._on_dropped = on_dropped
        self._room = room
        self._waiting: deque[str] = deque()
        self._size = 0  # of all that waits, and of the chunk that is being written
        self._dropped = 0  # lines
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Queue `text`, or drop it where there is no room."""
        with self._changed:
            if self._size + len(text) > self._room:
                self._dropped += text.count("\n")
            else:
                self._waiting.append(text)
                self._size += len(text)
                self._changed.notify_all()
                if self._thread is None:  # a daemon thread: one that is stuck in a write keeps no process from its end
                    self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
                    self._thread.start()
        return len(text)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def flush(self) -> None:
        """Nothing to do: the thread writes at once."""

    def drain(self, within_s: float = FLUSH_S) -> bool:
        """Wait until all is written, so long at most. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._size, within_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                chunk = [self._waiting.popleft()]
                size = len(chunk[0])
                while self._waiting and size + len(self._waiting[0]) <= CHUNK:
                    chunk.append(self._waiting.popleft())
                    size += len(chunk[-1])
            self._write(memoryview("".join(chunk).encode(self.encoding, "backslashreplace")))
            with self._changed:
                self._size -= size
                dropped = 0
                if not self._size:
                    dropped, self._dropped = self._dropped, 0
                self._changed.notify_all()
            if dropped:
                self._on_dropped(dropped)

    def _write(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # noqa: PERF203
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(RETRY_MS)
            except OSError:  # closed, or its terminal is gone: no reason to end
                return


def of(stream: TextIO, on_dropped: Callable[[int], None] = lambda _lines: None) -> TextIO:
    """An Outlet in place of `stream`, or `stream` itself where it is none of the system's: absent, closed, in memory."""
    try:
        return cast("TextIO", Outlet(stream, on_dropped=on_dropped))
    except (AttributeError, OSError, ValueError):
        return stream


def drain(*streams: TextIO) -> bool:
    """Wait until the outlets among `streams` have written all, for FLUSH_S each at most. Returns whether they have."""
    return all([stream.drain() for stream in streams if isinstance(stream, Outlet)])
