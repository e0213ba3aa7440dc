"""Starts intruder.py beside a test and speaks with it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon

INTRUDER = Path(__file__).with_name("intruder.py")


@contextmanager
def intruder(victim: Daemon, token_file: Path, mode: str) -> Iterator[Intruder]:
    with subprocess.Popen(
        [sys.executable, str(INTRUDER), str(token_file), victim.multiaddr, mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=clean_environment(victim.directory),
    ) as process:  # fmt: skip
        try:
            yield Intruder(process)
        finally:
            process.kill()


class Intruder:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def says(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        said: dict[str, Any] = json.loads(line)
        return said

    def end(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()
