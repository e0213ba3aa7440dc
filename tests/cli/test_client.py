from __future__ import annotations

import json
import os
import select
import socket
from contextlib import ExitStack, suppress
from http.server import HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from federation import unixsocket
from federation.api import proof
from federation.cli import client
from federation.errors import (
    ConfigError,
    ControlUnreachable,
    FederationError,
    KeyNeeded,
    NodeRefused,
    NotOurs,
    NotProven,
    OlderDaemon,
)
from federation.state import StateDir
from federation.units import HostPort
from tests.support.local_server import Handler, daemon, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "k" * 43


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(client, "SERVICE_STATE_DIR", tmp_path / "no service")
    return tmp_path


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "s")


def facts(path: Path, control: str) -> None:
    path.mkdir(parents=True)
    StateDir(path).save_daemon({"pid": 1, "control": control})


# Which daemon is meant


def test_root_means_the_service_where_it_runs_none_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, own, environ = StateDir(tmp_path / "service"), StateDir(tmp_path / "own/federation"), {"HOME": str(tmp_path)}
    environ["XDG_STATE_HOME"] = str(tmp_path / "own")
    monkeypatch.setattr(client, "SERVICE_STATE_DIR", service.path)
    monkeypatch.setattr(client.os, "geteuid", lambda: 0)
    service.path.mkdir()
    assert client.find(None, None, environ).state.path == own.path  # the service is stopped
    service.lock()
    assert client.find(None, None, environ).state.path == service.path
    assert client.find(None, own.path, environ).state.path == own.path
    assert client.find(None, None, {**environ, "FEDERATION_STATE_DIR": str(tmp_path / "s")}).state.path == tmp_path / "s"
    own.lock()
    assert client.find(None, None, environ).state.path == own.path
    own.unlock()
    monkeypatch.setattr(client.os, "geteuid", lambda: 1000)
    assert client.find(None, None, environ).state.path == own.path
    service.unlock()


def test_what_the_person_says_comes_first(tmp_path: Path) -> None:
    found = client.find("127.0.0.1:7", tmp_path / "s", {"FEDERATION_CONTROL": "127.0.0.1:2"})
    assert (found.address, found.state.path) == (HostPort("127.0.0.1", 7), tmp_path / "s")


def test_a_state_directory_is_asked_itself(tmp_path: Path) -> None:
    facts(tmp_path / "s", "127.0.0.1:40001")
    found = client.find(None, tmp_path / "s", {"FEDERATION_CONTROL": "127.0.0.1:2"})
    assert (found.address, found.listens_on) == (None, HostPort("127.0.0.1", 40001))
    with pytest.raises(ControlUnreachable, match="none runs with the state directory"):
        _ = client.find(None, tmp_path / "other", {}).listens_on


def test_then_the_environment_then_the_users_own(home: Path) -> None:
    environ = {"FEDERATION_STATE_DIR": f"{home}/own"}
    facts(home / "own", "0.0.0.0:5")
    assert client.find(None, None, environ).address is None
    assert client.find(None, None, environ).state.path == home / "own"
    assert client.find(None, None, {**environ, "FEDERATION_CONTROL": "192.0.2.1:6"}).address == HostPort("192.0.2.1", 6)
    # The address of the own daemon is the own daemon; port 0 says nothing about where it ended up.
    for text in ("127.0.0.1:5", "0.0.0.0:5", "127.0.0.1:0"):
        assert client.find(None, None, {**environ, "FEDERATION_CONTROL": text}).address is None


def test_the_settings_file_has_the_state_directory(home: Path) -> None:
    config = home / ".config/federation/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'control = "127.0.0.1:3"\nstate-dir = "{home}/elsewhere"')
    found = client.find(None, None, {})
    assert (found.state.path, found.address) == (home / "elsewhere", None)


@pytest.mark.parametrize(("text", "reason"), [("http://x:8485", "without a scheme"), ("8485", "port is missing")])
def test_addresses_that_cannot_be_are_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"--control '{text}': .*{reason}"):
        client.find(text, None, {})
    with pytest.raises(ConfigError, match=rf"FEDERATION_CONTROL '{text}'"):
        client.find(None, None, {"FEDERATION_CONTROL": text})


@pytest.mark.parametrize(("listens", "dialled"), [("0.0.0.0", "127.0.0.1"), ("[::]", "::1"), ("192.0.2.1", "192.0.2.1")])
def test_a_daemon_that_listens_everywhere_listens_here(tmp_path: Path, listens: str, dialled: str) -> None:
    facts(tmp_path / "s", f"{listens}:7")
    assert client.find(None, tmp_path / "s", {}).listens_on == HostPort(dialled, 7)
    assert client.find(f"{listens}:8", None, {}).address == HostPort(dialled, 8)


# By the socket


class Saying(Handler):
    status, said = 200, b"{}"
    asked: list[tuple[str, str, Any, str | None]]

    def reply(self, body: Any) -> tuple[int, Any]:
        self.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
        return self.status, self.said


def saying(status: int, said: bytes) -> type[Saying]:
    return type("Says", (Saying,), {"status": status, "said": said, "asked": []})


def test_the_own_daemon_is_asked_for_nothing_more(state: StateDir) -> None:
    handler = saying(200, b'{"peers":  []}')
    with daemon(state, handler):
        state.control_key()
        assert client.Daemon(state).ask("/api/v1/peers") == '{"peers":  []}'
        client.Daemon(state).ask("/x", method="POST", body={"a": 1}, owner=True)
    assert handler.asked == [("GET", "/api/v1/peers", None, None), ("POST", "/x", {"a": 1}, None)]


def test_a_refusal_is_told_without_what_moves_a_terminal(state: StateDir) -> None:
    refusal = json.dumps({"error": "not\x1b[2J you"}).encode()
    with daemon(state, saying(403, refusal)), pytest.raises(NodeRefused, match=r"^not\?\[2J you$"):
        client.Daemon(state).ask("/")
    with daemon(state, saying(401, b'{"error": "no"}')), pytest.raises(KeyNeeded, match=r"no$"):
        client.Daemon(state).ask("/")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b"", b"[" * 100_000])
def test_another_program_is_told(body: bytes, state: StateDir) -> None:
    with daemon(state, saying(200, body)), pytest.raises(ControlUnreachable, match="is not a federation daemon"):
        client.Daemon(state).ask("/")


def test_no_daemon_is_told(state: StateDir, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ControlUnreachable, match=r"federation join.*none runs with the state directory \S+/s$"):
        client.Daemon(state).ask("/")
    facts(state.path, "127.0.0.1:1")  # as a killed daemon leaves it
    state.control_key()
    unixsocket.listen(state.path, "control.sock").close()
    with pytest.raises(ControlUnreachable, match=r"federation join.*none runs with the state directory \S+/s$"):
        client.Daemon(state).ask("/")
    monkeypatch.setattr(client, "SERVICE_STATE_DIR", home)
    with pytest.raises(ControlUnreachable, match=f"sudo federation COMMAND --state-dir {home}$"):
        client.Daemon(state).ask("/")


def test_a_daemon_that_hangs_is_told(state: StateDir) -> None:
    state.lock()
    with state.listen_control() or socket.socket(), pytest.raises(ControlUnreachable, match="timed out"):
        client.Daemon(state).ask("/", timeout_s=0.05)
    state.unlock()


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n "])
def test_who_trickles_keeps_nobody(
    piece: bytes, state: StateDir, at: Callable[[type[Handler]], HostPort], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece comes well before the socket's own timeout, and no piece is the last."""
    monkeypatch.setattr(client, "WHOLE_ANSWER_S", 0.3)

    class Trickling(Handler):
        def do_GET(self) -> None:
            with suppress(OSError):
                self.wfile.write(piece)
                while not select.select([self.connection], [], [], 0.01)[0]:
                    self.wfile.write(piece if b" 100 " in piece else b" ")

    with pytest.raises(ControlUnreachable):
        client.Daemon(state, at(Trickling)).ask("/", timeout_s=0.25)


def test_a_daemon_on_its_way_is_told(state: StateDir) -> None:
    state.lock()
    with pytest.raises(ControlUnreachable, match=rf"process {os.getpid()} on .*\) is about to start, or to end"):
        client.Daemon(state).ask("/")
    state.unlock()


def test_another_users_daemon_is_not_asked(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = saying(200, b"{}")
    with daemon(state, handler):
        monkeypatch.setattr(unixsocket, "peer_uid", lambda _: 54321)
        with pytest.raises(NotOurs, match=r"with sudo: the user 54321 answers in"):
            client.Daemon(state).ask("/")

        def shut(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(unixsocket, "connect", shut)
        with pytest.raises(NotOurs, match=r"with sudo: \S+/s belongs to the user "):
            client.Daemon(state).ask("/")
    assert handler.asked == []


# By an address


class Proving(Handler):
    """A daemon with a key, of which an impostor has another one."""

    challenges: proof.Challenges
    seen: list[str]
    spoils = ""

    def reply(self, body: Any) -> tuple[int, Any]:
        self.seen.append(self.headers.get("Authorization") or "")
        host = self.headers["Host"]
        if self.path.startswith("/api/v1/challenge?nonce="):
            nonce, shown = self.challenges.issue(self.path.partition("=")[2], host)
            return 200, {"nonce": nonce, "proof": shown}
        data = b"" if body is None else json.dumps(body).encode()
        shown = (self.headers.get("Authorization") or "").removeprefix(f"{proof.SCHEME} ")
        self.nonces = self.challenges.take(shown, host, self.command, self.path, data)
        return (200, {"ok": True}) if self.nonces else (401, {"error": "no"})

    def end_headers(self) -> None:
        nonces = getattr(self, "nonces", None)
        if nonces:
            body = json.dumps({"ok": True}).encode()
            self.send_header(proof.ANSWER_HEADER, self.spoils or self.challenges.answered(nonces, 200, body))
        super().end_headers()


@pytest.fixture
def at() -> Iterator[Callable[[type[Handler]], HostPort]]:
    """Serves at a port."""
    with ExitStack() as stack:

        def start(handler: type[Handler]) -> HostPort:
            server = HTTPServer(("127.0.0.1", 0), handler)
            stack.enter_context(serving(server))
            return HostPort("127.0.0.1", server.server_port)

        yield start


def proving(key: str, **more: Any) -> type[Proving]:
    return type("Proves", (Proving,), {"challenges": proof.Challenges(key, lambda: 1.0), "seen": [], **more})


def test_both_sides_prove_the_key_and_neither_says_it(state: StateDir, at: Callable[[type[Handler]], HostPort]) -> None:
    handler = proving(KEY)
    address = at(handler)
    for method, body in (("GET", None), ("POST", {"a": [1]})):
        asked = client.Daemon(state, address, KEY).ask("/api/v1/x?y=1", method=method, body=body, owner=True)
        assert json.loads(asked) == {"ok": True}
    assert len(handler.seen) == 4
    assert not [text for text in handler.seen if KEY in text]


def test_the_key_is_the_state_directorys_or_the_variables(state: StateDir, at: Callable[[type[Handler]], HostPort]) -> None:
    state.lock()
    address = at(proving(state.control_key()))
    state.unlock()
    found = client.find(str(address), state.path, {})
    assert json.loads(found.ask("/x", owner=True)) == {"ok": True}
    assert state.control_key() not in repr(found)
    other = client.find(str(address), state.path, {"FEDERATION_CONTROL_KEY": f"{KEY}\n"})
    assert KEY not in repr(other)
    with pytest.raises(NotProven):
        other.ask("/x")


@pytest.mark.parametrize("owner", [True, False])
def test_an_impostor_is_told_nothing(state: StateDir, at: Callable[[type[Handler]], HostPort], owner: bool) -> None:
    handler = proving("another")
    with pytest.raises(NotProven, match="does not prove to be your daemon"):
        client.Daemon(state, at(handler), KEY).ask("/api/v1/secret", method="POST", body={"a": 1}, owner=owner)
    assert handler.seen == [""]  # the challenge alone


def test_an_answer_that_was_changed_is_not_used(state: StateDir, at: Callable[[type[Handler]], HostPort]) -> None:
    with pytest.raises(NotProven, match="its answer was changed on the way"):
        client.Daemon(state, at(proving(KEY, spoils="0" * 64)), KEY).ask("/x")


@pytest.mark.parametrize("status", [404, 401])  # on loopback and off
def test_an_older_daemon_is_told_apart(status: int, state: StateDir, at: Callable[[type[Handler]], HostPort]) -> None:
    handler = saying(status, b'{"error": "Not Found"}')
    with pytest.raises(OlderDaemon, match="restart it"):
        client.Daemon(state, at(handler), KEY).ask("/x", owner=True)
    assert [authorization for *_, authorization in handler.asked] == [None]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"nonce": 1, "proof": []}', b"{}", b'{"nonce": "a\\r\\nX: y"}'])
def test_what_proves_nothing_is_told(body: bytes, state: StateDir, at: Callable[[type[Handler]], HostPort]) -> None:
    with pytest.raises(FederationError) as caught:
        client.Daemon(state, at(saying(200, body)), KEY).ask("/x")
    assert isinstance(caught.value, NotProven | ControlUnreachable)


def test_without_a_key_there_is_only_what_anybody_may_read(state: StateDir, at: Callable[[type[Handler]], HostPort]) -> None:
    handler = saying(200, b"{}")
    without = client.Daemon(state, at(handler))
    assert without.ask("/x") == "{}"
    for how in ({"owner": True}, {"method": "POST"}):
        with pytest.raises(KeyNeeded, match=f"FEDERATION_CONTROL_KEY.*there is none in {state.path}"):
            without.ask("/x", **how)  # type: ignore[arg-type]
    assert len(handler.asked) == 1


def test_nobody_at_the_port_is_told(state: StateDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = HostPort("127.0.0.1", free.getsockname()[1])
    for key in (None, KEY):
        with pytest.raises(ControlUnreachable, match=f"federation join.*{address}: Connection refused"):
            client.Daemon(state, address, key).ask("/")


def test_a_daemon_whose_disk_takes_no_socket_is_asked_by_its_port(
    state: StateDir, at: Callable[[type[Handler]], HostPort]
) -> None:
    state.lock()
    handler = proving(state.control_key())
    state.save_daemon({"control": str(at(handler))})
    assert json.loads(client.Daemon(state).ask("/x", owner=True)) == {"ok": True}
    state.save_daemon({"control": str(at(proving("another")))})
    with pytest.raises(NotProven):
        client.Daemon(state).ask("/x")
    state.unlock()
    assert len(handler.seen) == 2


def test_a_state_directory_is_found_by_all_commands_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave the ~ of --state-dir=~/x alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDERATION_STATE_DIR", "~/own")
    assert client.state_dir(Path("~/x")).path == tmp_path / "x" == client.find(None, Path("~/x")).state.path
    assert client.state_dir(None).path == tmp_path / "own" == client.find(None, None).state.path
