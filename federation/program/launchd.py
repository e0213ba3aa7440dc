"""The node as a service of launchd on macOS: an agent of the user who is logged in, or a daemon of the machine.

The property list holds no secret. launchd knows neither reload nor drain: SIGHUP goes by `launchctl kill HUP`, and SIGTERM
gives the node its --drain-timeout before launchd ends it.
"""

from __future__ import annotations

import plistlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.errors import NotDone
from federation.program.service import NAME, Plan, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.program.commands import Commands, Done

SYSTEM_FILES = Path("/Library/LaunchDaemons")
SYSTEM_LOG = Path("/Library/Logs/federation.log")
END_S = 120.0  # a drain that takes longer is cut by launchd itself (ExitTimeOut)
POLL_S = 0.25


class Launchd:
    kind = "launchd"

    def __init__(
        self, commands: Commands, home: Path, *, is_system: bool, uid: int,
        now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._commands = commands
        self._now, self._sleep = now, sleep
        self.is_system = is_system
        self._domain = "system" if is_system else f"gui/{uid}"
        self.file = (SYSTEM_FILES if is_system else home / "Library/LaunchAgents") / f"{NAME}.plist"
        self._log = SYSTEM_LOG if is_system else home / "Library/Logs/federation.log"

    def problem(self) -> str | None:
        done = self._commands.run("launchctl", "print", self._domain)
        return f"launchd does not answer for {self._domain} ({done.said}); log in at the screen" if done.code else None

    def render(self, plan: Plan) -> str:
        return plistlib.dumps(self._content(plan), sort_keys=False).decode()

    def _content(self, plan: Plan) -> dict[str, Any]:
        return {
            "Label": NAME,
            "ProgramArguments": list(plan.words),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},  # after `federation leave` it stays off
            "ExitTimeOut": plan.stop_s,
            "ProcessType": "Interactive",
            "SoftResourceLimits": {"NumberOfFiles": 16384},
            "Umask": 0o077,
            "StandardErrorPath": str(self._log),
        }

    def start(self) -> None:
        self._end()  # an earlier file of it
        self._commands.run("launchctl", "enable", f"{self._domain}/{NAME}")
        done = self._commands.run("launchctl", "bootstrap", self._domain, str(self.file))
        if done.code:
            raise NotDone(f"launchctl bootstrap: {done.said}")

    def stop(self) -> None:
        done = self._end()
        if self.state().running:
            raise NotDone(f"launchctl bootout: {done.said}")

    def _end(self) -> Done:
        """bootout returns before the process has ended, and until then launchd takes no new one of that name."""
        done = self._commands.run("launchctl", "bootout", f"{self._domain}/{NAME}", timeout_s=END_S)
        deadline = self._now() + END_S
        while self._commands.run("launchctl", "print", f"{self._domain}/{NAME}").code == 0 and self._now() < deadline:
            self._sleep(POLL_S)
        return done

    def forget(self) -> None:
        """launchd looks at its files when it starts, and at no other time."""

    def state(self) -> State:
        done = self._commands.run("launchctl", "print", f"{self._domain}/{NAME}")
        found = dict(re.findall(r"^\s*(state|pid) = (.+)$", done.out, re.M))
        says = found.get("state", "not loaded")
        pid = int(found["pid"]) if found.get("pid", "").isdigit() else None
        advice = "" if self.is_system else "it starts when you log in, not at the boot"
        return State(says == "running", says, pid, "", not done.code, self.is_system and not done.code, advice)

    def state_dir(self) -> Path | None:
        try:
            words = plistlib.loads(self.file.read_bytes())["ProgramArguments"]
            return Path(words[words.index("--state-dir") + 1])
        except (OSError, plistlib.InvalidFileException, LookupError, ValueError, TypeError):
            return None

    def logs(self, last: int, follow: bool) -> list[str]:
        return ["tail", "-n", str(last), *(["-F"] if follow else []), str(self._log)]
