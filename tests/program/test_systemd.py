"""The unit's text, and what is asked of systemctl. tests/integration/test_service.py has a real systemd."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from federation.errors import NotDone, UsageError
from federation.program import systemd
from federation.program.commands import Commands, Done
from federation.program.service import Plan
from federation.program.systemd import Systemd

HOME = Path("/home/ann")
PLAN = Plan(("/usr/local/bin/federation",), ("--backend", "127.0.0.1:11434"), Path("/var/lib/federation"), 30.0)


class Fake(Commands):
    """A systemctl that answers what it was told to, by its first word that is no option."""

    def __init__(self, **answers: Done) -> None:
        super().__init__({})
        self.answers = answers
        self.ran: list[str] = []

    def run(self, *words: str, timeout_s: float = 0) -> Done:
        self.ran.append(shlex.join(words))
        asked = next(word for word in words[1:] if not word.startswith("-")) if words[0] == "systemctl" else words[0]
        return self.answers.get(asked.replace("-", "_"), Done(0, "", ""))


def unit(text: str) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def made(commands: Commands | None = None, *, is_system: bool = True) -> Systemd:
    return Systemd(commands or Fake(), HOME, is_system=is_system, user="ann")


def test_where_units_are() -> None:
    assert str(made().file) == "/etc/systemd/system/federation.service"
    assert str(made(is_system=False).file) == "/home/ann/.config/systemd/user/federation.service"
    elsewhere = Commands({"XDG_CONFIG_HOME": "/c"})
    assert str(made(elsewhere, is_system=False).file) == "/c/systemd/user/federation.service"


def test_the_machine_s_unit() -> None:
    parser = unit(made().render(PLAN))
    service = parser["Service"]
    assert shlex.split(service["ExecStart"]) == list(PLAN.words)
    assert service["Type"] == "notify"  # daemon.py says READY=1
    assert "HUP" in service["ExecReload"]
    assert int(service["TimeoutStopSec"]) > PLAN.drain_s
    assert service["Restart"] == "on-failure"  # after `federation leave` it stays off
    assert int(service["WatchdogSec"]) >= 60  # a loaded machine is no hung one
    assert (service["User"], service["StateDirectory"], service["StateDirectoryMode"]) == (
        "federation",
        "federation",
        "0700",
    )
    assert (service["CapabilityBoundingSet"], service["ProtectSystem"]) == ("", "strict")
    assert parser["Install"]["WantedBy"] == "multi-user.target"


def test_the_one_to_read_in_examples_is_what_the_command_writes() -> None:
    assert (Path(__file__).parents[2] / "examples/federation.service").read_text() == made().render(PLAN)


def test_a_user_s_unit_asks_for_nothing_that_a_user_s_manager_may_not_do() -> None:
    parser = unit(made(is_system=False).render(PLAN))
    assert not {"User", "ProtectSystem", "ProtectHome", "PrivateTmp", "CapabilityBoundingSet"} & set(parser["Service"])
    assert parser["Service"]["NoNewPrivileges"] == "yes"
    assert parser["Install"]["WantedBy"] == "default.target"
    assert "network-online.target" not in made(is_system=False).render(PLAN)  # a user's manager has none


def test_another_state_directory_can_be_written_to() -> None:
    plan = Plan(PLAN.program, (), Path("/srv/f"), 30.0)
    service = unit(made().render(plan))["Service"]
    assert "StateDirectory" not in service
    assert service["ReadWritePaths"] == "/srv/f"


def test_low_ports_take_a_capability() -> None:
    plan = Plan(PLAN.program, (), PLAN.state_dir, 30.0, needs_low_port=True)
    service = unit(made().render(plan))["Service"]
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"


@pytest.mark.parametrize("word", ['a "b"', "c\\d", "$HOME", "100%", "%n", "x;y", "it's", " ", "ünïcödé", ""])
def test_each_word_arrives_as_it_was_given(word: str) -> None:
    """By systemd's rules of quoting: systemd.service(5), and systemd.syntax(7)."""
    escaped = systemd._escaped(word)
    plain = (
        escaped[1:-1].replace('\\"', '"').replace("\\\\", "\\") if escaped.startswith('"') else escaped.replace("\\\\", "\\")
    )
    assert plain.replace("%%", "%").replace("$$", "$") == word
    assert escaped.replace("%%", "").count("%") == escaped.replace("$$", "").count("$") == 0


@pytest.mark.parametrize("word", ["a\nExecStart=/bin/evil", "\x00", "\u202e"])
def test_a_word_that_ends_the_line_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="printable"):
        made().render(Plan(PLAN.program, ("--name", word), PLAN.state_dir, 30.0))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("is_system", [True, False])
def test_systemd_itself_finds_nothing_wrong(tmp_path: Path, is_system: bool) -> None:
    plan = Plan(("/bin/true",), ("--name", 'a "b" $x %n'), PLAN.state_dir, 30.0, needs_low_port=True)
    text = made(is_system=is_system).render(plan).replace("User=federation", "User=root")
    (tmp_path / "federation.service").write_text(text)
    scope = [] if is_system else ["--user"]
    done = subprocess.run(
        ["systemd-analyze", *scope, "verify", str(tmp_path / "federation.service")],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert "federation.service" not in done.stderr


def test_the_state_directory_is_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemd, "SYSTEM_UNITS", tmp_path)
    assert made().state_dir() is None
    made().file.write_text(made().render(PLAN))
    assert made().state_dir() == PLAN.state_dir
    made().file.write_text("[Service]\nExecStart=/bin/other\n")  # written by hand
    assert made().state_dir() is None


def test_starting() -> None:
    commands = Fake(show=Done(0, "ActiveState=active\nSubState=running\n", ""))
    made(commands).start()
    assert [line for line in commands.ran if " show " not in line] == [
        "systemctl --no-pager daemon-reload",
        "systemctl --no-pager enable federation.service",
        "systemctl --no-pager reset-failed federation.service",
        "systemctl --no-pager restart federation.service",
    ]


def test_one_that_does_not_start_says_its_last_words() -> None:
    words = "noise\nfederation: Cannot listen: the port is in use\nfederation.service: Failed\n"
    commands = Fake(restart=Done(1, "", "Job failed"), journalctl=Done(0, words, ""))
    with pytest.raises(NotDone, match=r"does not start \(Cannot listen: the port is in use\)"):
        made(commands).start()
    with pytest.raises(NotDone, match="systemctl enable: no"):
        made(Fake(enable=Done(1, "", "no"))).start()


def test_what_state_it_is_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = (
        "ActiveState=active\nSubState=running\nMainPID=7\nActiveEnterTimestamp=Sat\nUnitFileState=enabled\nResult=success\n"
    )
    state = made(Fake(show=Done(0, said, ""))).state()
    assert (state.running, state.says, state.pid, state.since, state.enabled, state.at_boot) == (
        True, "active (running)", 7, "Sat", True, True,
    )  # fmt: skip
    failed = "ActiveState=failed\nSubState=failed\nMainPID=0\nUnitFileState=disabled\nResult=exit-code\n"
    state = made(Fake(show=Done(0, failed, ""))).state()
    assert (state.running, state.says, state.pid, state.enabled) == (False, "failed (failed), exit-code", None, False)
    monkeypatch.setattr(systemd, "LINGER", tmp_path)
    users = made(Fake(show=Done(0, said, "")), is_system=False)
    assert (users.state().at_boot, "loginctl enable-linger" in users.state().advice) == (False, True)
    (tmp_path / "ann").touch()
    assert (users.state().at_boot, users.state().advice) == (True, "")


def test_no_systemd_no_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemd, "RUNS", tmp_path / "no")
    assert "systemd does not run" in (made().problem() or "")
    monkeypatch.setattr(systemd, "RUNS", tmp_path)
    assert made().problem() is None
    away = Fake(show_environment=Done(1, "", "Failed to connect to bus: No medium found"))
    assert "your own systemd does not answer (Failed to connect to bus" in (made(away, is_system=False).problem() or "")


@pytest.mark.parametrize(("text", "seconds"), [("1min 40s\n", 100), ("40s\n", 40), ("1h 1s", 3601), ("infinity\n", 90)])
def test_times_as_systemctl_shows_them(text: str, seconds: float) -> None:
    assert made(Fake(show=Done(0, text, "")))._property_s("TimeoutStopUSec") == seconds


def test_logs() -> None:
    assert made().logs(5, follow=True) == ["journalctl", "--unit=federation.service", "--no-pager", "--lines=5", "--follow"]
    assert made(is_system=False).logs(5, follow=False)[1] == "--user-unit=federation.service"
