"""What a service is, whichever manager keeps it: systemd.py and launchd.py have the two that there are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

NAME = "federation"
SYSTEM_STATE_DIR = "/var/lib/federation"
STOP_MARGIN_S = 10  # beyond --drain-timeout, for the good-byes
START_S = 180  # a slow disk's first start; one that fails says so at once
MAX_PRIVILEGED_PORT = 1023


@dataclass(frozen=True)
class Plan:
    """`program`: its words, without `join`. `options`: those of `join`, without any secret."""

    program: tuple[str, ...]
    options: tuple[str, ...]
    state_dir: Path
    drain_s: float
    needs_low_port: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.program, "join", "--state-dir", str(self.state_dir), *self.options)

    @property
    def stop_s(self) -> int:
        return round(self.drain_s) + STOP_MARGIN_S


@dataclass(frozen=True)
class State:
    """`says`: the manager's own words. `at_boot`: whether it starts with the machine, without anybody's login."""

    running: bool
    says: str
    pid: int | None
    since: str
    enabled: bool
    at_boot: bool
    advice: str = ""


class Manager(Protocol):
    """One kind of service, the user's or the machine's. `run`s nothing before a method is called."""

    kind: str
    is_system: bool
    file: Path

    def problem(self) -> str | None:
        """Why no service can be had here; None if it can."""

    def render(self, plan: Plan) -> str: ...
    def start(self) -> None:
        """Read the file anew, start at each boot or login, and start now or anew; wait until the node serves.

        Raises NotDone with the service's last words.
        """

    def stop(self) -> None:
        """Stop, and start no more. Raises NotDone."""

    def forget(self) -> None:
        """The file is gone."""

    def state(self) -> State: ...
    def state_dir(self) -> Path | None:
        """The state directory in the file; None if there is no file of ours."""

    def logs(self, last: int, follow: bool) -> list[str]:
        """The command that shows the service's log."""


def write(file: Path, text: str, mode: int = 0o644) -> None:
    """Write whole or not at all. No secret is in it. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "w", encoding="utf-8") as to:
            to.write(text)
            to.flush()
            os.fsync(to.fileno())
        temporary.chmod(mode)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
