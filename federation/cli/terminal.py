"""Standard output for answers, standard error for progress and complaints, and secrets from standard input or a file.

A reader that goes away (`federation logs | head`) ends a command quietly. Progress is for people who watch: it overwrites
itself on a terminal and is silent elsewhere.
"""

from __future__ import annotations

import codecs
import os
import shutil
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from federation.errors import UsageError
from federation.units import decoded, without_tokens

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

MAX_SECRET_TEXT = 65536  # several times the longest token
PIPE_WIDTH = 1000  # a pipe has no width: nothing is cut there
_ERASE_LINE = "\r\x1b[K"


def is_terminal(stream: Any) -> bool:
    return bool(stream and stream.isatty())


def colorful(stream: Any) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_utf8(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").replace("_", "") == "utf8"


def width() -> int:
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else PIPE_WIDTH


def show_anything() -> None:
    """Let standard output and error show what their encoding lacks as an escape or a stand-in: never an error."""
    codecs.register_error("federation", _stand_in)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test's stream may be without, or None under pythonw and cron
        if reconfigure is not None:
            reconfigure(errors="federation")


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return text.replace("\u2026", "~").encode("ascii", "backslashreplace").decode(), error.end


def say(text: str) -> None:
    print(text, flush=True)


def flush() -> None:
    """Flush standard output; a reader that went away (`peers | head`) is no error, now or at the interpreter's end."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError:  # closed
        sys.stdout = None


def complain(text: str) -> None:
    """One line on standard error, whatever it repeats."""
    with suppress(OSError):
        print(f"federation: {without_tokens(' '.join(text.split()))}", file=sys.stderr)


def read_stdin(what: str) -> str:
    """A secret that somebody pipes in or, at a terminal, types unseen. Raises UsageError."""
    if sys.stdin is None:
        raise UsageError(f"there is no standard input to read the {what} from")
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass(f"{what.capitalize()}: ")
    try:
        raw = getattr(sys.stdin, "buffer", None)
        return sys.stdin.read(MAX_SECRET_TEXT) if raw is None else decoded(raw.read(MAX_SECRET_TEXT))
    except UnicodeDecodeError:
        raise UsageError(f"the {what} on standard input is not text in UTF-8") from None


def read_secret(path: Path, what: str) -> str:
    """The text of a file that only its owner should read, the `what` ("token"); - is standard input. Raises UsageError."""
    if str(path) == "-":
        return read_stdin(what)
    try:
        with path.expanduser().open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o044:
                complain(f"others on this machine can read the {what} in {path}; make it private: chmod 600 {path}")
            return decoded(file.read(MAX_SECRET_TEXT))
    except OSError as error:
        raise UsageError(f"cannot read the {what} file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the {what} file {path} is not text in UTF-8") from None


def confirm(question: str) -> bool:
    """Ask the person at the terminal. Without a terminal the answer is yes."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class Progress:
    """One line on standard error that is written anew each time, and gone at the end."""

    def __init__(self) -> None:
        self._shown = False
        self._on = is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    def show(self, text: str) -> None:
        if self._on:
            limit = shutil.get_terminal_size().columns - 1
            self._write(_ERASE_LINE + text[:limit])
            self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._shown:
            self._write(_ERASE_LINE)

    def _write(self, text: str) -> None:
        with suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)


class Screen:
    """Standard output written over in place, for `--watch`. On a pipe each picture follows the one before."""

    def __init__(self) -> None:
        self._in_place = is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Self:
        if self._in_place:
            print(
                "\x1b[?1049h\x1b[?25l\x1b[?7l", end="", flush=True
            )  # a screen of its own; no cursor, no line goes over two
        return self

    def show(self, text: str) -> None:
        if not self._in_place:
            say(text)
            return
        rows = shutil.get_terminal_size().lines - 1
        lines = "".join(f"{line}\x1b[K\n" for line in text.split("\n")[:rows])
        print(f"\x1b[H{lines}\x1b[J", end="", flush=True)  # each line's rest erased, not the screen: nothing flickers

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._in_place:
            with suppress(OSError):
                print("\x1b[?7h\x1b[?25h\x1b[?1049l", end="", flush=True)
