"""What a web page can make a browser send to a client's port, byte for byte, against real daemons: the entry has no
backend of its own, and the other node's lets any page ask and read. tests/browser has a real Chromium do it."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest
from harness import federation, http_get, wait_until

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Address, Daemon, Server

EVIL = "https://evil.example"
ATTACKS = {
    "a simple POST": f"POST /v1/chat HTTP/1.1\r\nHost: {{host}}\r\nOrigin: {EVIL}\r\nContent-Length: 0",
    "a preflight": f"OPTIONS /v1/chat HTTP/1.1\r\nHost: {{host}}\r\nOrigin: {EVIL}\r\nAccess-Control-Request-Method: POST",
    "a sandboxed frame": "POST /v1/chat HTTP/1.1\r\nHost: {host}\r\nOrigin: null\r\nContent-Length: 0",
    "a websocket": f"GET /ws HTTP/1.1\r\nHost: {{host}}\r\nOrigin: {EVIL}\r\nConnection: Upgrade\r\nUpgrade: websocket",
    "an image": "GET /unload HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors",
    "a rebound name": "POST /v1/chat HTTP/1.1\r\nHost: rebind.evil.example:8484\r\nContent-Length: 0",
    "odd spelling": f"POST /v1/chat HTTP/1.1\nhost:{{host}}\nORIGIN:\n {EVIL}\ncontent-length: 0",
}


@pytest.fixture(scope="module")
def backend(fleet: Fleet) -> Server:
    return fleet.backend("cors", "llama")


@pytest.fixture(scope="module")
def exit_node(fleet: Fleet, backend: Server) -> Daemon:
    return fleet.daemon("exit", backends={"default": backend, "echo": fleet.backend("banner")})


@pytest.fixture(scope="module")
def entry(fleet: Fleet, exit_node: Daemon) -> Daemon:
    entry = fleet.daemon(
        "entry",
        "--allow-origin",
        "https://chat.example",
        "--hold",
        "0",
        peer=exit_node,
        services=("default", "echo", "none"),
    )
    wait_until(lambda: entry.offers() == {"exit"}, within=10, what="the entry sees the exit")
    return entry


def ask(address: Address, head: str, *, pieces: int = 1) -> bytes:
    """All that comes back. The request asks for the end of the connection."""
    data = head.format(host=f"{address[0]}:{address[1]}").encode() + b"\r\nConnection: close\r\n\r\n"
    with socket.create_connection(address, timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = -(-len(data) // pieces)
        try:
            for at in range(0, len(data), step):
                client.sendall(data[at : at + step])
                if pieces > 1:
                    time.sleep(0.002)  # so that they arrive as pieces
        except (BrokenPipeError, ConnectionResetError):
            pass
        if "Connection: Upgrade" not in head:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
            if answer.startswith(b"HTTP/1.1 200"):  # the backend keeps connections
                break
    return answer


@pytest.mark.parametrize("pieces", [1, 1000])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_page_of_another_site_reaches_no_backend(entry: Daemon, backend: Server, attack: str, pieces: int) -> None:
    before = backend.seen()
    answer = ask(entry.entry(), ATTACKS[attack], pieces=pieces)
    assert backend.seen() == before
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"Access-Control" not in head
    assert "start this node with --" in json.loads(body)["error"]["message"]


def test_who_was_turned_away_is_counted_and_told_why(fleet: Fleet, entry: Daemon) -> None:
    def turned_away() -> float:
        text = http_get(entry.control, "/metrics").body.decode()
        lines = [line for line in text.splitlines() if 'result="turned_away",service="default"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = turned_away()
    ask(entry.entry(), ATTACKS["a simple POST"])
    wait_until(lambda: turned_away() == before + 1, within=5, what="it is counted")
    shown = federation("explain", "--last", "1", "--state-dir", str(entry.state_dir), home=fleet.directory).stdout
    assert f"turned away: web pages of {EVIL} may not ask here" in shown
    wait_until(lambda: f"why='web pages of {EVIL} may not ask here" in entry.log(), within=5, what="its line in the log")


SERVED = {
    "curl": "GET / HTTP/1.1\r\nHost: {host}",
    "another spelling": "GET / HTTP/1.1\r\nhOST: 127.1:8484",
    "no Host": "GET / HTTP/1.0",
    "this machine by name": f"GET / HTTP/1.1\r\nHost: {socket.gethostname()}.:8484",
    "from a container": "GET / HTTP/1.1\r\nHost: host.docker.internal:8484",
    "a page of this machine": "GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site:cross-site",
    "the backend's own page": "POST / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin",
    "an editor": "POST / HTTP/1.1\r\nHost: {host}\r\nOrigin: vscode-webview://1ab2",
    "an allowed page": "POST / HTTP/1.1\r\nHost: {host}\r\nOrigin: https://chat.example\r\nSec-Fetch-Site: cross-site",
    "through a proxy of an allowed name": "GET / HTTP/1.1\r\nHost: chat.example",
}


@pytest.mark.parametrize("pieces", [1, 1000])
@pytest.mark.parametrize("who", SERVED)
def test_everybody_else_is_served(entry: Daemon, who: str, pieces: int) -> None:
    assert ask(entry.entry(), SERVED[who], pieces=pieces).endswith(b"\r\n\r\nllama")


def test_a_head_without_end_reaches_no_backend(entry: Daemon, backend: Server) -> None:
    before = backend.seen()
    answer = ask(entry.entry(), "GET / HTTP/1.1\r\nHost: {host}\r\nX: " + "a" * 20_000, pieces=20)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert backend.seen() == before


def test_a_method_longer_than_any_buffer_reaches_no_backend(entry: Daemon, backend: Server) -> None:
    """A script of a rebound page may choose it, and a backend that takes it keeps the connection for what comes next."""
    before = backend.seen()
    answer = ask(entry.entry(), f"{'A' * 70_000} / HTTP/1.1\r\nHost: rebind.evil.example:8484")
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 403 "))
    assert backend.seen() == before


def test_other_protocols_do_not_wait(entry: Daemon) -> None:
    """A server that speaks first, a word that is not a method, a method's beginning that nothing follows."""
    with socket.create_connection(entry.entry("echo"), timeout=30) as client:
        reader = client.makefile("rb")
        assert reader.readline().startswith(b"220 ")
        for words in (b"GET", b" key\r\n", b"POST / HTTP/1.1\r\nHost: rebind.evil.example\r\n"):
            client.sendall(words)  # the first ones decide
            time.sleep(0.05)
        assert [reader.readline() for _ in range(3)] == [
            b"GET key\r\n", b"POST / HTTP/1.1\r\n", b"Host: rebind.evil.example\r\n"
        ]  # fmt: skip


def test_our_own_503_is_for_pages_too_that_may_ask(entry: Daemon) -> None:
    nobody = entry.entry("none")
    head, _, body = ask(nobody, "GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://localhost:3000").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert {b"Access-Control-Allow-Origin: http://localhost:3000", b"Vary: Origin"} <= set(head.split(b"\r\n"))
    assert json.loads(body)["error"]["code"] == 503
    assert ask(nobody, f"GET / HTTP/1.1\r\nHost: {{host}}\r\nOrigin: {EVIL}").startswith(b"HTTP/1.1 403 ")
    head, _, body = ask(nobody, "HEAD / HTTP/1.1\r\nHost: {host}").partition(b"\r\n\r\n")
    assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 503 Service Unavailable", b"")
    preflight = "OPTIONS / HTTP/1.1\r\nHost: {host}\r\nOrigin: https://chat.example\r\nAccess-Control-Request-Method: POST"
    assert ask(nobody, preflight).startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("option", [("--no-browser-check",), ("--allow-origin", "*")])
def test_the_check_can_be_switched_off(fleet: Fleet, exit_node: Daemon, option: tuple[str, ...]) -> None:
    open_door = fleet.daemon(option[0].strip("-"), *option, peer=exit_node)
    wait_until(lambda: "exit" in open_door.offers(), within=10, what="it sees the exit")
    for attack in ("a simple POST", "a rebound name", "an image"):
        assert ask(open_door.entry(), ATTACKS[attack]).startswith(b"HTTP/1.1 200 ")
    assert open_door.stop() == 0
