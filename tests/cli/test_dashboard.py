from __future__ import annotations

import webbrowser
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import dashboard
from federation.errors import ControlUnreachable, FederationError
from federation.state import StateDir
from tests.support.local_server import Handler, daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE = "c" * 43


class Api(Handler):
    asked: list[str] = []  # noqa: RUF012  the tests' own, cleared by the fixture

    def reply(self, _body: Any) -> tuple[int, Any]:
        self.asked.append(f"{self.command} {self.path}")
        return 200, {"sessions": 2} if self.path.endswith("revoke") else {"code": CODE, "lifetime_s": 30.0}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateDir]:
    Api.asked.clear()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(dashboard, "SNAPS", tmp_path / "no snaps")
    state = StateDir(tmp_path / "s")
    with daemon(state, Api):
        state.save_daemon({"control": "0.0.0.0:8485"})
        state.control_key()
        yield state


def args(state: StateDir, **more: Any) -> Namespace:
    return Namespace(**{"control": None, "state_dir": state.path, "open": False, "revoke": False, **more})


@pytest.mark.parametrize("listens", ["0.0.0.0", "127.0.0.1", "localhost", "LocalHost."])
def test_it_prints_where_the_page_is(state: StateDir, capsys: pytest.CaptureFixture[str], listens: str) -> None:
    """By address: a browser goes to ::1 for localhost, where anybody may listen and be handed the code."""
    state.save_daemon({"control": f"{listens}:8485"})
    dashboard.dashboard(args(state))
    assert capsys.readouterr().out == f"http://127.0.0.1:8485/#code={CODE}\n"
    assert Api.asked == ["POST /api/v1/dashboard/code"]


def test_no_code_goes_to_a_browsers_command_line(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    monkeypatch.chdir(state.path.parent)
    dashboard.dashboard(args(state, open=True, state_dir=Path("s")))
    (url,) = opened
    page = state.path / "dashboard.html"
    assert url == page.as_uri()
    assert f'content="0; url=http://127.0.0.1:8485/#code={CODE}"' in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    said = capsys.readouterr()
    assert said.out == f"http://127.0.0.1:8485/#code={CODE}\n"
    assert "may not read that file (one from a snap or a flatpak may not), open the address within 30 s" in said.err


@pytest.mark.parametrize("sign", ["snap", "no snaps"])
def test_where_snaps_are_the_browser_gets_a_file_that_it_may_read(
    state: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    (tmp_path / sign).mkdir()
    victim = tmp_path / "victim"
    victim.touch()
    page = tmp_path / "federation-dashboard.html"
    page.symlink_to(victim)
    dashboard.dashboard(args(state, open=True))
    assert opened == [page.as_uri()]
    assert CODE in page.read_text()
    assert (page.stat().st_mode & 0o777, victim.read_text()) == (0o600, "")
    assert not (state.path / "dashboard.html").exists()


def test_a_home_that_cannot_be_written_is_no_reason_to_open_nothing(
    state: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    (tmp_path / "snap").mkdir()
    (tmp_path / "federation-dashboard.html").mkdir()
    dashboard.dashboard(args(state, open=True))
    assert opened == [(state.path / "dashboard.html").as_uri()]


def test_no_browser_is_told(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    with pytest.raises(FederationError, match="no browser can be opened here"):
        dashboard.dashboard(args(state, open=True))


def test_sessions_are_ended(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard.dashboard(args(state, revoke=True))
    assert capsys.readouterr().out.startswith("2 sessions ended: ")
    assert Api.asked == ["POST /api/v1/dashboard/revoke"]


def test_without_a_daemon_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ControlUnreachable):
        dashboard.dashboard(args(StateDir(tmp_path)))
