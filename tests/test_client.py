from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from federation import client
from federation.errors import ConfigError, ControlUnreachable, FederationError
from federation.state import StateDir
from federation.values import HostPort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], HostPort]]:
    """Start an HTTP server that gives one answer to everything."""
    servers: list[HTTPServer] = []

    def start(status: int, body: bytes) -> HostPort:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

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


@pytest.mark.parametrize(("text", "reason"), [("0.0.0.0:8485", "loopback only"), ("8485", "port is missing")])
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
    with pytest.raises(FederationError, match="says no: not you"):
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
