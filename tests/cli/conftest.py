"""Fixtures of the command line: a state directory, a node's API there, and a command that asks it."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import ask, main
from federation.state import StateDir
from tests.support.cli import Api
from tests.support.local_server import daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    for name in os.environ:
        if name.startswith(("FEDERATION_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    state = StateDir(tmp_path / "state")
    state.lock()
    state.unlock()
    return state


@pytest.fixture
def api(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    api = Api()
    for name in ("POLL_S", "WATCH_S"):
        monkeypatch.setattr(ask, name, 0.0)
    with daemon(state, api.handler):
        state.save_daemon({"control": "127.0.0.1:8485"})
        yield api


@pytest.fixture
def run(state: StateDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main([*argv, "--state-dir", str(state.path)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(ended.value.code or 0), said.out, said.err

    return run
