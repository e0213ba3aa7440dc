"""ban and unban, against a control API that only keeps the list, and against a state directory that no daemon uses."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import access
from federation.errors import ControlUnreachable, NotFound, StateDirBusy
from federation.mesh.bans import Bans
from federation.state import StateDir
from tests.support.local_server import Handler, daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A, B = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
ROWS = {"athens": {"peer_id": A, "name": "athens", "since": "now"}, B: {"peer_id": B, "name": "", "since": "now"}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[StateDir]:
    """A state directory whose daemon answers."""
    banned: list[dict[str, str]] = []

    class Api(Handler):
        def reply(self, body: Any) -> tuple[int, Any]:
            if self.command == "POST":
                row = ROWS[body["peer"]]
                if self.path == "/api/v1/ban" and row not in banned:
                    banned.append(row)
                elif self.path == "/api/v1/unban":
                    banned.remove(row)
            return 200, {"banned": banned}

    state = StateDir(tmp_path)
    with daemon(state, Api):
        yield state


def args(state: StateDir, peer: str | None = None, **more: Any) -> Namespace:
    return Namespace(**{"peer": peer, "control": None, "state_dir": state.path, "json": False, **more})


def test_the_daemon_is_told(running: StateDir) -> None:
    assert access.ban_or_list(args(running)) == "nobody is banned here"
    assert access.ban_or_list(args(running, "athens")).startswith(f"banned athens ({A}): its connection is cut")
    assert access.ban_or_list(args(running, "athens")) == "athens is banned already; `federation ban` lists who is"
    access.ban_or_list(args(running, B))
    assert access.ban_or_list(args(running)) == f"athens ({A}), since now\n{B}, since now"
    assert json.loads(access.ban_or_list(args(running, json=True))) == {"banned": list(ROWS.values())}
    assert access.let_in(args(running, "athens")) == f"no longer banned: athens ({A})"
    assert access.ban_or_list(args(running)) == f"{B}, since now"
    assert json.loads(access.let_in(args(running, B, json=True))) == {"banned": []}
    assert not (running.path / "banned.json").exists()  # that is the daemon's own to write


def test_where_no_daemon_runs_the_state_directory_is_changed(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert access.ban_or_list(args(state, A)) == f"banned {A}, from the next start on"
    assert A in Bans(state)
    assert access.ban_or_list(args(state)).startswith(f"{A}, since 20")
    with pytest.raises(NotFound, match="give a whole id"):
        access.ban_or_list(args(state, "bergen"))
    with pytest.raises(NotFound):
        access.let_in(args(state, B))
    assert access.let_in(args(state, A[-6:])) == f"no longer banned: {A}"
    assert A not in Bans(state)
    state.lock()  # nobody holds it
    state.unlock()


def test_a_daemon_that_does_not_answer_is_not_written_over(tmp_path: Path) -> None:
    running = StateDir(tmp_path)
    running.lock()
    with pytest.raises(StateDirBusy):
        access.ban_or_list(args(StateDir(tmp_path), A))
    running.unlock()
    assert A not in Bans(running)


def test_nothing_is_made_where_nothing_was(tmp_path: Path) -> None:
    for command in (access.ban_or_list, access.let_in):
        with pytest.raises(ControlUnreachable):
            command(args(StateDir(tmp_path / "none"), A))
    with pytest.raises(ControlUnreachable):
        access.ban_or_list(args(StateDir(tmp_path), A, control="127.0.0.1:1"))
    assert list(tmp_path.iterdir()) == []
