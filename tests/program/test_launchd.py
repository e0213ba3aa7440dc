"""The property list's format, and what is asked of launchctl: a stand-in, since no macOS runs these tests."""

from __future__ import annotations

import plistlib
import shlex
from pathlib import Path

import pytest

from federation.errors import NotDone
from federation.program import launchd
from federation.program.commands import Commands, Done
from federation.program.launchd import Launchd
from federation.program.service import Plan

HOME = Path("/Users/ann")
PLAN = Plan(("/usr/local/bin/federation",), ("--name", 'a <b> & "c"'), Path("/Users/ann/Library/f"), 30.0)


class Fake(Commands):
    """A launchctl. A service that is booted out is there for so many looks more."""

    def __init__(self, *, is_loaded: bool = False, looks: int = 0, refuses: str = "") -> None:
        super().__init__({})
        self.is_loaded, self.looks, self.refuses = is_loaded, looks, refuses
        self.ran: list[str] = []

    def run(self, *words: str, timeout_s: float = 0) -> Done:
        self.ran.append(shlex.join(words))
        match words[1]:
            case "print" if words[2].endswith("/federation"):
                if not self.is_loaded:
                    self.looks -= 1
                is_there = self.is_loaded or self.looks >= 0
                return Done(0, "federation = {\n\tstate = running\n\tpid = 7\n}\n", "") if is_there else Done(113, "", "no")
            case "bootout":
                self.is_loaded = False
            case "bootstrap" if self.refuses:
                return Done(5, "", self.refuses)
            case "bootstrap":
                self.is_loaded = True
        return Done(0, "", "")


def made(commands: Commands | None = None, *, is_system: bool = False) -> Launchd:
    return Launchd(commands or Fake(), HOME, is_system=is_system, uid=501, now=lambda: 0.0, sleep=lambda _: None)


def test_the_agent() -> None:
    agent = plistlib.loads(made().render(PLAN).encode())
    assert agent["ProgramArguments"] == list(PLAN.words)
    assert agent["ExitTimeOut"] > PLAN.drain_s
    assert agent["KeepAlive"] == {"SuccessfulExit": False}  # after `federation leave` it stays off
    assert agent["RunAtLoad"] is True
    assert agent["Umask"] == 0o077
    assert agent["StandardErrorPath"] == "/Users/ann/Library/Logs/federation.log"  # /tmp is for all
    assert str(made().file) == "/Users/ann/Library/LaunchAgents/federation.plist"
    assert str(made(is_system=True).file) == "/Library/LaunchDaemons/federation.plist"


def test_starting_anew_waits_for_the_old_one_s_end() -> None:
    commands = Fake(is_loaded=True, looks=3)
    made(commands).start()
    assert commands.ran[0] == "launchctl bootout gui/501/federation"
    assert commands.ran[-2:] == [
        "launchctl enable gui/501/federation",
        "launchctl bootstrap gui/501 /Users/ann/Library/LaunchAgents/federation.plist",
    ]
    assert commands.ran.count("launchctl print gui/501/federation") == 4


def test_one_that_does_not_start() -> None:
    with pytest.raises(NotDone, match="launchctl bootstrap: Input/output error"):
        made(Fake(refuses="Input/output error")).start()


def test_its_state() -> None:
    state = made(Fake(is_loaded=True)).state()
    assert (state.running, state.pid, state.at_boot) == (True, 7, False)
    assert "log in" in state.advice
    assert made(Fake(is_loaded=True), is_system=True).state().at_boot
    assert not made(Fake()).state().running
    stopped = Fake(is_loaded=True)
    made(stopped).stop()
    assert not stopped.is_loaded


def test_the_state_directory_is_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launchd, "SYSTEM_FILES", tmp_path)
    there = made(is_system=True)
    assert there.state_dir() is None
    there.file.write_text(there.render(PLAN))
    assert there.state_dir() == PLAN.state_dir
    there.file.write_text("no plist")
    assert there.state_dir() is None


def test_logs() -> None:
    assert made().logs(5, follow=True) == ["tail", "-n", "5", "-F", "/Users/ann/Library/Logs/federation.log"]
