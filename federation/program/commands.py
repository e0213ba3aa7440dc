"""Runs other programs: systemctl, launchctl, the program of another version. Their words come back, nothing is printed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT_S = 60.0
NOT_FOUND, TIMED_OUT = 127, 124  # as shells have it
# A program that brings its own Python sets these for itself (PyInstaller), and system programs would load its libraries.
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last thing that it said, in one line."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


class Commands:
    """`environ`: this process's environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = cleaned(environ)

    def run(self, *words: str, timeout_s: float = TIMEOUT_S) -> Done:
        """Run a program to its end. One that is not there, or takes too long, has an exit code too."""
        return run(words, self.environ, timeout_s)


def run(words: Sequence[str], environ: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> Done:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False, env=dict(environ)
        )
    except OSError as error:
        return Done(NOT_FOUND, "", f"{words[0]}: {error.strerror or error}")
    except subprocess.TimeoutExpired:
        return Done(TIMED_OUT, "", f"{words[0]} took longer than {timeout_s:g} s")
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def cleaned(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for another program, without what a program with its own Python set for itself."""
    cleaned = {name: value for name, value in environ.items() if not name.startswith("_PYI_") and name != "_MEIPASS2"}
    for name in _LIBRARY_PATHS:
        original = cleaned.pop(f"{name}_ORIG", None)
        if original is not None:
            cleaned[name] = original
        elif name in cleaned and any(other.startswith("_PYI_") for other in environ):
            del cleaned[name]
    return cleaned
