"""The command line's part, with a manager that is made up; tests/integration/test_service.py has a real systemd."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import main, service
from federation.errors import NotDone
from federation.program.service import Plan, State
from federation.state import StateDir
from tests.support.nodes import TOKEN

if TYPE_CHECKING:
    from pathlib import Path


class Manager:
    kind = "systemd"

    def __init__(self, folder: Path, *, is_system: bool) -> None:
        self.is_system = is_system
        self.file = folder / f"{'system' if is_system else 'user'}.service"
        self.did: list[str] = []
        self.runs = False
        self.wrong: str | None = None
        self.fails = False
        self.plan: Plan | None = None

    def problem(self) -> str | None:
        return self.wrong

    def render(self, plan: Plan) -> str:
        self.plan = plan
        return f"{shlex.join(plan.words)}\n"

    def start(self) -> None:
        self.did.append("start")
        if self.fails:
            raise NotDone("the service does not start (no)")
        self.runs = True

    def stop(self) -> None:
        self.did.append("stop")
        self.runs = False

    def forget(self) -> None:
        self.did.append("forget")

    def state(self) -> State:
        says = "active (running)" if self.runs else "inactive (dead)"
        return State(self.runs, says, 7 if self.runs else None, "Sat", True, self.is_system, "" if self.is_system else "x")

    def state_dir(self) -> Path | None:
        words = shlex.split(self.file.read_text()) if self.file.exists() else []
        return service.Path(words[words.index("--state-dir") + 1]) if words else None

    def logs(self, last: int, follow: bool) -> list[str]:
        return ["sh", "-c", f"echo {last} {follow}"]


@pytest.fixture
def users(tmp_path: Path) -> Manager:
    return Manager(tmp_path, is_system=False)


@pytest.fixture
def machines(tmp_path: Path) -> Manager:
    return Manager(tmp_path, is_system=True)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: Manager, machines: Manager) -> None:
    for name in os.environ:
        if name.startswith(("FEDERATION_", "XDG_", "SUDO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(service, "_managers", lambda: [users, machines])


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*argv: str, given: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        with pytest.raises(SystemExit) as ended:
            main.main(["service", *argv])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_it_is_written_started_and_told(run: Any, users: Manager, tmp_path: Path) -> None:
    code, out, err = run("install", "--backend", "127.0.0.1:11434", "--no-mdns", "--name=-x")
    assert (code, err, users.did) == (0, "", ["start"])
    words = users.file.read_text().split()
    assert words[words.index("join") :] == [
        "join", "--state-dir", str(tmp_path / ".local/state/federation"),
        "--backend", "127.0.0.1:11434", "--name=-x", "--no-mdns",
    ]  # fmt: skip
    assert str(users.file) in out
    assert str(tmp_path / ".local/state/federation") in out
    assert "network a new one; `federation invite`" in out


def test_the_token_goes_to_the_state_directory_and_nowhere_else(run: Any, users: Manager, tmp_path: Path) -> None:
    code, out, err = run("install", "--token-file", "-", given=f"{TOKEN.encode()}\n")
    assert code == 0
    token = tmp_path / ".local/state/federation/token"
    assert (token.read_text().strip(), token.stat().st_mode & 0o777) == (TOKEN.encode(), 0o600)
    assert TOKEN.encode() not in users.file.read_text() + out + err
    assert "--token" not in users.file.read_text()
    assert "a new one" not in out
    code, out, _ = run("install")  # and again without: it goes on with it
    assert (code, token.read_text().strip(), "written anew" in out) == (0, TOKEN.encode(), True)


def test_a_running_service_is_stopped_before_its_token_changes(run: Any, users: Manager) -> None:
    run("install")
    users.did.clear()
    assert run("install", "--token-file", "-", given=TOKEN.encode())[0] == 0
    assert users.did == ["stop", "start"]
    users.did.clear()
    assert run("install", "--no-mdns")[0] == 0
    assert users.did == ["start"]


def test_what_is_wrong_is_said_before_anything_is_written(run: Any, users: Manager, tmp_path: Path) -> None:
    assert run("install", "--hold", "x")[0] == 2
    assert run("install", "--token-file", "-", given="nonsense")[0] == 2
    users.wrong = "systemd does not run on this machine"
    assert run("install")[::2] == (1, "federation: systemd does not run on this machine\n")
    users.wrong = None
    state = StateDir(tmp_path / ".local/state/federation")
    state.lock()  # a node that somebody started by hand
    code, _, err = run("install")
    state.unlock()
    assert (code, "Another federation daemon uses this state directory" in err) == (1, True)
    assert not users.file.exists()
    assert users.did == []


def test_a_service_that_does_not_start_says_why(run: Any, users: Manager) -> None:
    users.fails = True
    assert run("install")[::2] == (1, "federation: the service does not start (no)\n")


def test_this_shell_s_variables_are_not_the_service_s(run: Any, monkeypatch: pytest.MonkeyPatch, users: Manager) -> None:
    monkeypatch.setenv("FEDERATION_NAME", "x")
    code, _, err = run("install", "--print")
    assert (code, users.did) == (0, [])
    assert "the service does not get this shell's variables (FEDERATION_NAME)" in err


def test_printing_writes_nothing(run: Any, users: Manager, tmp_path: Path) -> None:
    code, out, _ = run("install", "--print", "--config", "c.toml")
    assert code == 2  # there is no such file
    (tmp_path / "c.toml").write_text('drain-timeout = "90s"\n')
    code, out, _ = run("install", "--print", "--config", str(tmp_path / "c.toml"), "--listen", "127.0.0.1:80")
    assert (code, "--config" in out, users.file.exists(), (tmp_path / ".local").exists()) == (0, True, False, False)
    assert users.plan is not None
    assert (users.plan.drain_s, users.plan.needs_low_port) == (90.0, True)


def test_paths_are_whole_for_a_service_starts_elsewhere(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("install", "--print", "--tls-cert", "c.pem", "--tls-key", "~/k.pem", "--state-dir", "s")
    assert f"--tls-cert {tmp_path}/c.pem --tls-key {tmp_path}/k.pem" in out
    assert f"--state-dir {tmp_path}/s" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_the_machine_s_takes_root(run: Any) -> None:
    assert "takes root" in run("install", "--system")[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gets that far")
def test_the_machine_s_does_not_begin_another_network_in_silence(
    run: Any, machines: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.account, "make", lambda *_: None)
    monkeypatch.setattr(service, "_check_reachable", lambda _: None)
    theirs = tmp_path / ".local/state/federation/token"
    theirs.parent.mkdir(parents=True)
    theirs.write_text(TOKEN.encode())
    code, _, err = run("install", "--system", "--state-dir", str(tmp_path / "machine"))
    assert (code, f"add --token-file {theirs}" in err) == (2, True)
    theirs.chmod(0o600)
    code, out, err = run("install", "--system", "--state-dir", str(tmp_path / "machine"), "--token-file", str(theirs))
    assert (code, err, machines.did) == (0, "", ["start"])
    assert "sudo federation status --state-dir" in out


def test_a_program_in_a_home_is_not_for_the_machine_s(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    program = tmp_path / "closed/federation"
    program.touch()
    with pytest.raises(NotDone, match="cannot reach"):
        service._check_reachable((str(program),))


def test_status(run: Any, users: Manager) -> None:
    code, _, err = run("status")
    assert (code, "no service is installed" in err) == (1, True)
    run("install")
    code, out, _ = run("status")
    assert (code, "active (running) since Sat, process 7" in out, "No federation daemon answers" in out) == (0, True, True)
    answer = json.loads(run("status", "--json")[1])
    assert (answer["scope"], answer["running"], answer["at_boot"]) == ("user", True, False)
    users.runs = False
    code, out, _ = run("status")
    assert (code, "federation service logs --user" in out) == (1, True)
    assert run("status", "--system")[0] == 1


def test_logs_are_the_manager_s(run: Any, users: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users.file.write_text("x --state-dir /s")
    monkeypatch.setattr(users, "logs", lambda last, follow: ["sh", "-c", f"echo {last} {follow} > {tmp_path}/said"])
    assert run("logs", "--last", "3", "-f")[0] == 0
    assert (tmp_path / "said").read_text() == "3 True\n"
    assert run("logs", "--last", "x")[0] == 2
    monkeypatch.setattr(users, "logs", lambda *_: ["sh", "-c", "exit 1"])
    assert "`federation logs` asks the node itself" in run("logs")[2]
    monkeypatch.setattr(users, "logs", lambda *_: ["no-such-program"])
    assert "is not installed here" in run("logs")[2]


def test_uninstall_leaves_the_data(run: Any, users: Manager, tmp_path: Path) -> None:
    run("install", "--token-file", "-", given=TOKEN.encode())
    users.did.clear()
    code, out, _ = run("uninstall")
    assert (code, users.did, users.file.exists()) == (0, ["stop", "forget"], False)
    assert (tmp_path / ".local/state/federation/token").exists()
    assert "identity and token stay" in out
