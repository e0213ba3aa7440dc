from __future__ import annotations

import json
import webbrowser
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import pytest

from federation import cli_dashboard, client
from federation.errors import FederationError
from federation.state import StateDir

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    monkeypatch.delenv("FEDERATION_CONTROL_KEY", raising=False)
    state = StateDir(tmp_path / "s")
    state.lock()
    state.unlock()
    state.save_daemon({"control": "127.0.0.1:8485"})
    asked: list[Any] = []

    def ask(address: object, path: str, **how: Any) -> str:
        asked.append((str(address), path, how))
        return json.dumps({"node": {"state_dir": str(state.path)}})

    monkeypatch.setattr(client, "ask", ask)
    return state


def args(state: StateDir, **more: Any) -> Namespace:
    return Namespace(**{"control": None, "state_dir": state.path, "open": False, **more})


def test_it_prints_where_the_page_is(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    state.control_key()
    cli_dashboard.dashboard(args(state))
    assert capsys.readouterr().out == f"http://127.0.0.1:8485/#key={state.load_control_key()}\n"


def test_no_key_goes_to_a_browser_s_command_line(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = state.control_key()
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    cli_dashboard.dashboard(args(state, open=True))
    (url,) = opened
    assert url == (state.path / "dashboard.html").as_uri()
    assert key not in url
    assert f'content="0; url=http://127.0.0.1:8485/#key={key}"' in (state.path / "dashboard.html").read_text()


def test_no_browser_is_told(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.control_key()
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    with pytest.raises(FederationError, match="no browser can be opened here"):
        cli_dashboard.dashboard(args(state, open=True))
