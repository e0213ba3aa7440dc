from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import main, service, update
from federation.cli.render import connections as render_connections
from federation.errors import NotDone
from federation.program.installation import Installation
from federation.program.service import State
from federation.state import StateDir
from tests.support.cli import Api
from tests.support.local_server import daemon
from tests.support.releases import release

if TYPE_CHECKING:
    from pathlib import Path


class Manager:
    """A service of the program at `prefix`, whose start fails with the versions in `broken`."""

    is_system = False

    def __init__(self, prefix: Path, state_dir: Path) -> None:
        self.place = Installation(prefix)
        self.file = prefix / "federation.service"
        self._state_dir = state_dir
        self.broken: tuple[str, ...] = ()
        self.started: list[str | None] = []
        self.did: list[str] = []

    def state_dir(self) -> Path | None:
        return self._state_dir if self.file.exists() else None

    def state(self) -> State:
        return State(True, "active", 7, "", True, True)

    def start(self) -> None:
        self.started.append(self.place.current)
        if self.place.current in self.broken:
            raise NotDone("the service does not start (no)")

    def stop(self) -> None:
        self.did.append("stop")

    def forget(self) -> None:
        self.did.append("forget")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "prefix"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for version in ("0.8.0", "0.9.0"):
        release(tmp_path / "base", version, broken=True)
    return tmp_path / "base"


@pytest.fixture
def manager(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    manager = Manager(prefix, tmp_path / "state")
    for name in os.environ:
        if name.startswith(("FEDERATION_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(service, "all_installed", lambda: [manager] if manager.file.exists() else [])
    monkeypatch.setattr(service, "owner_of", lambda _: "ann")
    monkeypatch.setattr(update, "POLL_S", 0.0)
    return manager


@pytest.fixture
def run(prefix: Path, manager: Manager, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        own = (Installation(prefix), prefix / "lib/federation/x")
        monkeypatch.setattr(update.installation, "find", lambda _: own)
        with pytest.raises(SystemExit) as ended:
            main.main(list(argv))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(ended.value.code or 0), said.out, said.err

    return run


def archive(base: Path, version: str) -> str:
    return str(next(base.glob(f"federation-{version}-*.tar.gz")))


def test_an_update_and_back(run: Any, base: Path, prefix: Path) -> None:
    place = Installation(prefix)
    code, out, _ = run("update", "--from", archive(base, "0.8.0"))
    assert (code, place.current, "is not in your PATH" in out) == (0, "0.8.0", True)
    code, out, _ = run("update", "--check", "--from", str(base))
    assert (code, out) == (0, f"0.9.0 is at {base}, 0.8.0 is installed\n")
    code, out, _ = run("update", "--from", str(base))
    assert (code, place.current, "0.8.0 stays" in out) == (0, "0.9.0", True)
    assert run("update", "--check", "--from", str(base))[:2] == (1, f"0.9.0 is the newest at {base}\n")
    assert "is installed already" in run("update", "--from", str(base))[1]
    code, out, _ = run("update", "--rollback")
    assert (code, place.current, "back at 0.8.0" in out) == (0, "0.8.0", True)


def test_older_ones_on_purpose_only(run: Any, base: Path, prefix: Path) -> None:
    run("update", "--from", str(base))
    code, _, err = run("update", "--from", archive(base, "0.8.0"))
    assert (code, "0.8.0 is older than 0.9.0" in err) == (2, True)
    assert run("update", "--older", "--from", archive(base, "0.8.0"))[0] == 0
    assert Installation(prefix).current == "0.8.0"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "--from is missing"),
        (["--from", "/nowhere/at/all"], 1, "has no SHA256SUMS"),
        (["--from", "ftp://x/y"], 2, "by http or https"),
        (["--from", "/", "--sha256", "abc"], 2, "64 hexadecimal digits"),
        (["--rollback"], 1, "no version before this one"),
        (["--wait", "x"], 2, "--wait"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run: Any, words: list[str], code: int, says: str) -> None:
    found, out, err = run("update", *words)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert says in err


def test_a_checkout_and_an_environment_say_what_to_do(
    manager: Manager, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        main.main(["update"])
    assert "this is a checkout" in capsys.readouterr().err
    monkeypatch.setattr(update.federation, "__file__", str(tmp_path / "site-packages/federation/__init__.py"))
    with pytest.raises(SystemExit):
        main.main(["update"])
    assert "pipx upgrade federation" in capsys.readouterr().err


def installed(manager: Manager) -> None:
    manager.file.write_text(f"ExecStart={manager.place.link} join")


def test_the_service_drains_and_restarts(run: Any, base: Path, manager: Manager) -> None:
    run("update", "--from", archive(base, "0.8.0"))
    installed(manager)
    api = Api()
    busy = {"draining": True, "in_flight": 1, "clients": 2}
    api.answers["POST drain"] = [busy, busy, {"draining": True, "in_flight": 0, "clients": 0}]
    state = StateDir(manager._state_dir)
    with daemon(state, api.handler):
        code, out, err = run("update", "--from", str(base))
    assert (code, err) == (0, "")
    assert api.asked == ["POST drain"] * 3
    assert manager.started == ["0.9.0"]
    assert "the service of ann runs 0.9.0 now" in out


def test_it_does_not_wait_for_ever(run: Any, base: Path, manager: Manager) -> None:
    run("update", "--from", archive(base, "0.8.0"))
    installed(manager)
    api = Api()
    api.answers["POST drain"] = [{"draining": True, "in_flight": 1, "clients": 0}]
    with daemon(StateDir(manager._state_dir), api.handler):
        code, _, err = run("update", "--from", str(base), "--wait", "0.1s")
    assert (code, manager.started, "still open after 0.1 s" in err) == (0, ["0.9.0"], True)


def test_who_does_not_wait_leaves_a_node_that_takes_connections(
    run: Any, base: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("update", "--from", archive(base, "0.8.0"))
    installed(manager)
    api = Api()
    api.answers["POST drain"] = [{"draining": True, "in_flight": 1, "clients": 0}]
    api.answers["POST undrain"] = [{"draining": False, "in_flight": 1, "clients": 0}]

    def interrupt(_open: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(render_connections, "still_open", interrupt)
    with daemon(StateDir(manager._state_dir), api.handler):
        assert run("update", "--from", str(base))[0] == 130
    assert (api.asked, manager.started) == (["POST drain", "POST undrain"], [])


def test_a_version_that_does_not_start_is_taken_back(run: Any, base: Path, manager: Manager) -> None:
    run("update", "--from", archive(base, "0.8.0"))
    installed(manager)
    manager.broken = ("0.9.0",)
    code, _, err = run("update", "--from", str(base))
    assert (code, manager.started) == (1, ["0.9.0", "0.8.0"])
    assert "0.9.0 was taken back, and 0.8.0 runs again: the service does not start (no)" in err
    assert (manager.place.current, manager.place.versions) == ("0.8.0", ["0.8.0"])
    assert run("update", "--rollback")[0] == 1  # to nothing


def test_a_node_that_somebody_started_is_named(run: Any, base: Path, tmp_path: Path) -> None:
    state = StateDir(tmp_path / ".local/state/federation")
    state.lock()
    _, out, _ = run("update", "--from", str(base))
    state.unlock()
    assert "a node runs here" in out


# Uninstall


def state_of(manager: Manager) -> StateDir:
    state = StateDir(manager._state_dir)
    state.lock()
    state.identity()
    state.save_token("x")
    state.save_peers({})
    (state.path / "handover").mkdir()
    (state.path / "handover/a.tar.gz").touch()
    (state.path / ".token.123").touch()  # of a write that was cut off
    state.unlock()
    return state


def test_a_dry_run_says_every_file_and_removes_none(run: Any, base: Path, manager: Manager, prefix: Path) -> None:
    run("update", "--from", str(base))
    installed(manager)
    state = state_of(manager)
    everything = sorted(path for path in prefix.parent.rglob("*"))
    code, out, _ = run("uninstall", "--dry-run")
    assert code == 0
    assert f"  {manager.file}\n" in out
    assert f"  {prefix}/bin/federation -> ../lib/federation/current/federation\n" in out
    assert f"stays: {state.path}" in out
    _, out, _ = run("uninstall", "--dry-run", "--state")
    assert all(f"  {state.path}/{name}" in out for name in ("identity", "token", "lock", ".token.123", "handover"))
    files = json.loads(run("uninstall", "--dry-run", "--state", "--json")[1])["files"]
    assert f"{prefix}/lib/federation/0.9.0/federation" in files
    assert f"{state.path}/handover/a.tar.gz" in files
    assert sorted(path for path in prefix.parent.rglob("*")) == everything


def test_identity_and_token_stay(run: Any, base: Path, manager: Manager, prefix: Path) -> None:
    run("update", "--from", str(base))
    installed(manager)
    state = state_of(manager)
    code, out, _ = run("uninstall", "--yes")
    assert (code, manager.did, out.endswith("removed\n")) == (0, ["stop", "forget"], True)
    assert not prefix.exists()
    assert (state.path / "identity").exists()


def test_with_state_nothing_is_left(run: Any, base: Path, manager: Manager, prefix: Path, tmp_path: Path) -> None:
    run("update", "--from", str(base))
    installed(manager)
    state = state_of(manager)
    (tmp_path / ".config/federation").mkdir(parents=True)
    (tmp_path / ".config/federation/config.toml").touch()
    assert run("uninstall", "--state", "--yes")[0] == 0
    assert not state.path.exists()
    assert not (tmp_path / ".config/federation/config.toml").exists()


def test_what_is_not_ours_stays(run: Any, manager: Manager, prefix: Path) -> None:
    prefix.mkdir()
    installed(manager)
    state = state_of(manager)
    (state.path / "thesis.tex").touch()
    Installation(prefix).home.mkdir(parents=True)
    code, _, err = run("uninstall", "--state", "--yes")
    assert (code, "thesis.tex in it is not ours" in err) == (0, True)
    assert [path.name for path in state.path.iterdir()] == ["thesis.tex"]


def test_a_running_node_keeps_its_state(run: Any, manager: Manager, tmp_path: Path, prefix: Path) -> None:
    Installation(prefix).home.mkdir(parents=True)
    state = StateDir(tmp_path / ".local/state/federation")
    state.lock()
    code, _, err = run("uninstall", "--state", "--yes")
    assert (code, "a node runs with" in err, (state.path / "lock").exists()) == (1, True, True)
    state.unlock()
    assert run("uninstall", "--json")[0] == 2
