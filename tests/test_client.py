from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from federation import client
from federation.errors import ConfigError, ControlUnreachable, FederationError, KeyNeeded
from federation.state import StateDir
from federation.values import HostPort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


asked: list[str] = []  # method, path, key


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], HostPort]]:
    """Start an HTTP server that gives one answer to everything."""
    servers: list[HTTPServer] = []
    asked.clear()

    def start(status: int, body: bytes) -> HostPort:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
                is_owner = self.headers.get("Authorization") == "Bearer " + "k" * 43
                self.send_response(200 if status == 401 and is_owner else status)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_args: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return HostPort("127.0.0.1", server.server_port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def daemon(path: Path, control: str) -> None:
    path.mkdir(parents=True)
    StateDir(path).save_daemon({"pid": 1, "control": control})


# Where the node listens


def test_what_the_person_says_comes_first(tmp_path: Path) -> None:
    daemon(tmp_path / "s", "127.0.0.1:1")
    assert client.find_control("127.0.0.1:7", tmp_path / "s", {"FEDERATION_CONTROL": "127.0.0.1:2"}).port == 7


def test_a_state_directory_knows_its_daemons_port(tmp_path: Path) -> None:
    daemon(tmp_path / "s", "127.0.0.1:40001")
    environ = {"FEDERATION_CONTROL": "127.0.0.1:2"}
    assert client.find_control(None, tmp_path / "s", environ) == HostPort("127.0.0.1", 40001)
    with pytest.raises(ControlUnreachable, match="none runs with the state directory"):
        client.find_control(None, tmp_path / "other", environ)


def test_then_the_environment_then_the_running_daemon_then_the_settings_file(home: Path) -> None:
    assert client.find_control(None, None, {}) == HostPort("127.0.0.1", 8485)
    config = home / ".config/federation/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'control = "127.0.0.1:3"\nstate-dir = "{home}/elsewhere"')
    assert client.find_control(None, None, {}).port == 3
    daemon(home / "elsewhere", "127.0.0.1:4")
    assert client.find_control(None, None, {}).port == 4
    daemon(home / "by-variable", "127.0.0.1:5")
    environ = {"FEDERATION_STATE_DIR": f"{home}/by-variable"}
    assert client.find_control(None, None, environ).port == 5
    assert client.find_control(None, None, {**environ, "FEDERATION_CONTROL": "127.0.0.1:6"}).port == 6
    # Port 0 says nothing about where the daemon ended up.
    assert client.find_control(None, None, {**environ, "FEDERATION_CONTROL": "127.0.0.1:0"}).port == 5


@pytest.mark.parametrize(("text", "reason"), [("http://x:8485", "without a scheme"), ("8485", "port is missing")])
def test_addresses_that_cannot_be_are_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"--control '{text}': .*{reason}"):
        client.find_control(text, None, {})
    with pytest.raises(ConfigError, match=rf"FEDERATION_CONTROL '{text}'"):
        client.find_control(None, None, {"FEDERATION_CONTROL": text})


def test_a_daemon_file_without_an_address_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    StateDir(tmp_path / "s").save_daemon({"pid": 1})
    with pytest.raises(ControlUnreachable):
        client.find_control(None, tmp_path / "s", {})


# What it answers


def test_the_answer_comes_as_it_is(answering: Callable[[int, bytes], HostPort]) -> None:
    address = answering(200, b'{"peers":  []}')
    assert client.ask(address, "/api/v1/peers") == '{"peers":  []}'


def test_a_refusal_is_told(answering: Callable[[int, bytes], HostPort]) -> None:
    with pytest.raises(FederationError, match=r"^not you$"):
        client.ask(answering(403, b'{"error": "not you"}'), "/")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b""])
def test_another_program_on_the_port_is_told(body: bytes, answering: Callable[[int, bytes], HostPort]) -> None:
    with pytest.raises(ControlUnreachable, match="is not a federation daemon"):
        client.ask(answering(200, body), "/")


def test_no_daemon_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = HostPort("127.0.0.1", free.getsockname()[1])
    with pytest.raises(ControlUnreachable, match=f"federation join.*{address}: Connection refused"):
        client.ask(address, "/")


def test_a_daemon_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ControlUnreachable, match="timed out"):
        client.ask(HostPort("127.0.0.1", silent.getsockname()[1]), "/")


# The owner's key


def keyed(path: Path) -> str:
    state = StateDir(path)
    state.lock()
    state.unlock()
    return state.control_key()


def test_the_key_goes_with_the_request(answering: Callable[[int, bytes], HostPort]) -> None:
    client.ask(answering(200, b"{}"), "/x", method="POST", key="secret", body={"a": 1})
    assert asked == ["POST /x Bearer secret"]


def test_the_key_is_in_the_daemons_state_directory(tmp_path: Path, answering: Callable[[int, bytes], HostPort]) -> None:
    key = keyed(tmp_path / "s")
    address = answering(200, json.dumps({"node": {"state_dir": str(tmp_path / "s")}}).encode())
    assert client.find_key(address, None, {}) == key  # it says where
    assert client.find_key(HostPort("192.0.2.1", 1), tmp_path / "s", {}) == key
    assert client.find_key(HostPort("192.0.2.1", 1), None, {"FEDERATION_STATE_DIR": str(tmp_path / "s")}) == key
    assert client.find_key(address, tmp_path / "s", {"FEDERATION_CONTROL_KEY": "other"}) == "other"
    with pytest.raises(KeyNeeded, match=f"FEDERATION_CONTROL_KEY.*there is none in {tmp_path / 'no'}"):
        client.find_key(address, tmp_path / "no", {})


def test_reading_takes_the_key_only_where_it_must(tmp_path: Path, answering: Callable[[int, bytes], HostPort]) -> None:
    (tmp_path / "s").mkdir()
    StateDir(tmp_path / "s")._write("control.key", b"k" * 43)
    environ = {"FEDERATION_STATE_DIR": str(tmp_path / "s")}
    assert client.read(answering(200, b"{}"), "/x", None, environ) == "{}"
    assert asked == ["GET /x None"]
    asked.clear()
    assert client.read(answering(401, b"{}"), "/x", None, environ) == "{}"
    assert asked == ["GET /x None", "GET /api/v1/status None", "GET /x Bearer " + "k" * 43]


def test_a_wrong_key_is_told_in_one_line(answering: Callable[[int, bytes], HostPort]) -> None:
    with pytest.raises(KeyNeeded, match="asks for its control key") as caught:
        client.ask(answering(401, b'{"error": "the control key is wrong"}'), "/x", key="y")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("listens", "dialled"), [("0.0.0.0", "127.0.0.1"), ("[::]", "::1"), ("192.0.2.1", "192.0.2.1")])
def test_a_daemon_that_listens_everywhere_listens_here(tmp_path: Path, listens: str, dialled: str) -> None:
    daemon(tmp_path / "s", f"{listens}:7")
    assert client.find_control(None, tmp_path / "s", {}) == HostPort(dialled, 7)
    assert client.find_control(f"{listens}:8", None, {}) == HostPort(dialled, 8)
