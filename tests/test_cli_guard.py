"""ban and unban, against a control API that only keeps the list, and against a state directory that no daemon uses."""

from __future__ import annotations

import json
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from federation import cli_guard
from federation.bans import Bans
from federation.errors import ControlUnreachable, FederationError, NotFound, StateDirBusy
from federation.state import StateDir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A, B = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
ROWS = {"athens": {"peer_id": A, "name": "athens", "since": "now"}, B: {"peer_id": B, "name": "", "since": "now"}}


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"banned": self.server.banned})  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        server: Any = self.server
        if self.headers["Authorization"] != f"Bearer {server.key}":
            self._answer({"error": "no"}, 401)
            return
        row = ROWS[json.loads(self.rfile.read(int(self.headers["Content-Length"])))["peer"]]
        if self.path == "/api/v1/ban" and row not in server.banned:
            server.banned.append(row)
        elif self.path == "/api/v1/unban":
            server.banned.remove(row)
        self._answer({"banned": server.banned})

    def _answer(self, answer: object, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StateDir]:
    """A state directory whose daemon answers."""
    state = StateDir(tmp_path)
    state.lock()
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        server.banned, server.key = [], state.control_key()  # type: ignore[attr-defined]
        state.save_daemon({"control": f"127.0.0.1:{server.server_port}"})
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()
    state.unlock()


def args(state: StateDir, peer: str | None = None, **more: Any) -> Namespace:
    return Namespace(**{"peer": peer, "control": None, "state_dir": state.path, "json": False, **more})


def test_the_daemon_is_told(daemon: StateDir) -> None:
    assert cli_guard.ban_or_list(args(daemon), {}) == "nobody is banned here"
    assert cli_guard.ban_or_list(args(daemon, "athens"), {}).startswith(f"banned athens ({A}): its connection is cut")
    assert cli_guard.ban_or_list(args(daemon, "athens"), {}) == "athens is banned already; `federation ban` lists who is"
    cli_guard.ban_or_list(args(daemon, B), {})
    assert cli_guard.ban_or_list(args(daemon), {}) == f"athens ({A}), since now\n{B}, since now"
    assert json.loads(cli_guard.ban_or_list(args(daemon, json=True), {})) == {"banned": list(ROWS.values())}
    assert cli_guard.let_in(args(daemon, "athens"), {}) == f"no longer banned: athens ({A})"
    assert cli_guard.ban_or_list(args(daemon), {}) == f"{B}, since now"
    assert json.loads(cli_guard.let_in(args(daemon, B, json=True), {})) == {"banned": []}
    assert not (daemon.path / "banned.json").exists()  # that is the daemon's own to write


def test_without_the_key_it_does_not_listen(daemon: StateDir) -> None:
    with pytest.raises(FederationError, match=r": no$"):
        cli_guard.ban_or_list(args(daemon, "athens"), {"FEDERATION_CONTROL_KEY": "wrong"})


def test_where_no_daemon_runs_the_state_directory_is_changed(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert cli_guard.ban_or_list(args(state, A), {}) == f"banned {A}, from the next start on"
    assert A in Bans(state)
    assert cli_guard.ban_or_list(args(state), {}).startswith(f"{A}, since 20")
    with pytest.raises(NotFound, match="give a whole id"):
        cli_guard.ban_or_list(args(state, "bergen"), {})
    with pytest.raises(NotFound):
        cli_guard.let_in(args(state, B), {})
    assert cli_guard.let_in(args(state, A[-6:]), {}) == f"no longer banned: {A}"
    assert A not in Bans(state)
    state.lock()  # nobody holds it
    state.unlock()


def test_a_daemon_that_does_not_answer_is_not_written_over(tmp_path: Path) -> None:
    running = StateDir(tmp_path)
    running.lock()
    with pytest.raises(StateDirBusy):
        cli_guard.ban_or_list(args(StateDir(tmp_path), A), {})
    running.unlock()
    assert A not in Bans(running)


def test_nothing_is_made_where_nothing_was(tmp_path: Path) -> None:
    for command in (cli_guard.ban_or_list, cli_guard.let_in):
        with pytest.raises(ControlUnreachable):
            command(args(StateDir(tmp_path / "none"), A), {})
    with pytest.raises(ControlUnreachable):
        cli_guard.ban_or_list(args(StateDir(tmp_path), A, control="127.0.0.1:1"), {})
    assert list(tmp_path.iterdir()) == []
