from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import detect
from federation.config import Settings
from federation.units import HostPort

if TYPE_CHECKING:
    from collections.abc import Iterator

# What each server answers, as seen in its documentation or source.
SERVERS: dict[str, dict[str, Any]] = {
    "ollama": {"/": "Ollama is running", "/api/version": {"version": "0.5.7"}},
    "localai": {"/readyz": "OK", "/system": {"backends": ["llama-cpp"], "loaded_models": []}, "/health": "OK"},
    "llama.cpp": {"/health": {"status": "ok"}, "/props": {"total_slots": 4, "default_generation_settings": {}}},
    "vllm": {"/version": {"version": "0.6.3"}, "/v1/models": {"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]}},
    "lm-studio": {"/api/v0/models": {"object": "list", "data": [{"id": "m", "state": "loaded"}]}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "nothing known": {},
    "a web page": {"/": "<html>Welcome", "/health": "OK", "/version": "1.0", "/readyz": "OK"},
    "another federation": {"/health": "x", "/v1/models": {"data": [{"owned_by": "somebody"}]}, "/version": {"version": "1"}},
    "odd JSON": {"/version": [1], "/v1/models": {"data": {"a": 1}}, "/system": "[]", "/readyz": "OK", "/api/v0/models": 7},
}


@contextmanager
def serving(pages: dict[str, Any], headers: dict[str, str] | None = None) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.send_response_only(404 if page is None else 200)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write((page if isinstance(page, str) else json.dumps(page)).encode())

        def log_message(self, *_args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def all_at(port: int) -> list[Any]:
    """Every kind, asked for at that port."""
    return [(kind, title, port, is_it) for kind, title, _, is_it in detect.KINDS]


@pytest.mark.parametrize("kind", SERVERS)
def test_each_server_is_known_for_what_it_is_and_nothing_else(kind: str) -> None:
    with serving(SERVERS[kind]) as port:
        for wanted in detect.KINDS:
            found = detect.find(kinds=[(*wanted[:2], port, wanted[3])])
            assert [server.kind for server in found] == ([kind] if wanted[0] == kind else [])
        (found_one,) = detect.find(kinds=all_at(port))
        assert (found_one.kind, found_one.address) == (kind, HostPort("127.0.0.1", port))


def test_a_llama_cpp_without_props_is_known_by_its_header() -> None:
    with serving({"/health": {"status": "ok"}}, {"Server": "llama.cpp"}) as port:
        assert [server.kind for server in detect.find(kinds=all_at(port))] == ["llama.cpp"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_answers_in_another_way_is_left_alone(name: str) -> None:
    with serving(OTHERS[name]) as port:
        assert detect.find(kinds=all_at(port)) == []


def test_silence_and_nobody_take_no_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        assert detect.find(kinds=all_at(silent.getsockname()[1])) == []
        assert time.monotonic() - begun < len(detect.KINDS) * (detect.TIMEOUT_S + 0.5)
        port = silent.getsockname()[1]
    assert detect.find(kinds=all_at(port)) == []


def test_own_ports_are_not_asked() -> None:
    with serving(SERVERS["ollama"]) as port:
        assert detect.find(without=(port,), kinds=all_at(port)) == []


# Whose it is

LISTEN, CONNECTED = "0A", "01"


def table(*rows: tuple[str, int, str, int]) -> str:
    """As /proc/net/tcp has it: local address, port, state, uid."""
    lines = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
    for n, (at, port, state, uid) in enumerate(rows):
        remote = f"{'0' * len(at)}:0000" if state == LISTEN else f"{at}:2CAA"
        rest = "00000000:00000000 00:00000000 00000000"
        lines.append(
            f"{n:>4}: {at}:{port:04X} {remote} {state} {rest} {uid:>5}        0 372390 1 0000000012171b20 100 0 0 10 0"
        )
    return "\n".join(lines) + "\n"


TCP = table(
    ("0100007F", 11434, LISTEN, 1001), ("00000000", 8080, LISTEN, 997), ("0200007F", 8000, LISTEN, 1002),
    ("0100007F", 8000, CONNECTED, 1003),
)  # fmt: skip
TCP6 = table(
    ("0" * 32, 8080, LISTEN, 1004), ("0000000000000000FFFF00000100007F", 11434, LISTEN, 1005),
    ("00000000000000000000000001000000", 11434, LISTEN, 1006),
)  # fmt: skip


def test_who_listens() -> None:
    """Not: another address, a connection, ::1, where a connect to 127.0.0.1 does not end."""
    assert detect.listeners(TCP, 11434) == {1001}
    assert detect.listeners(TCP, 8080) == {997}
    assert detect.listeners(TCP, 8000) == set()
    assert detect.listeners(TCP6, 8080) == {1004}
    assert detect.listeners(TCP6, 11434) == {1005}
    assert detect.listeners("", 1) == detect.listeners("nonsense\n" * 9, 1) == set()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_the_kernel_says_whose_socket_it_is(host: str) -> None:
    is_6 = ":" in host
    with socket.create_server((host, 0), family=socket.AF_INET6 if is_6 else socket.AF_INET, dualstack_ipv6=is_6) as server:
        assert detect._owners(server.getsockname()[1]) == {os.getuid()}


@pytest.mark.parametrize(
    ("uids", "is_offered"),
    [(set(), True), ({0}, True), ({997}, True), ({os.getuid()}, True), ({60_001}, False), ({0, 60_001}, False)],
)
def test_another_users_server_is_left_alone(uids: set[int], is_offered: bool) -> None:
    with serving(SERVERS["ollama"]) as port:
        found = detect.find(kinds=all_at(port), owners=lambda _port: uids)
    assert detect.offers(found) == ([f"default=127.0.0.1:{port}"] if is_offered else [])
    (line,) = detect.in_words(found)
    assert ("leaves it alone: it is another user's (uid 60001)" in line) is not is_offered
    assert f"127.0.0.1:{port}" in line
    assert is_offered or line.endswith(f"--backend 127.0.0.1:{port}")


def test_who_is_left_alone_does_not_take_the_default() -> None:
    found = [detect.Found(kind, kind, HostPort("127.0.0.1", n), (60_001,) * (n == 1)) for n, kind in enumerate("abc", 1)]
    assert detect.offers(found) == ["default=127.0.0.1:2", "c=127.0.0.1:3"]
    assert ["leaves it alone" in line for line in detect.in_words(found)] == [False, False, True]


def test_several_have_names_of_their_own() -> None:
    found = [detect.Found(kind, title, HostPort("127.0.0.1", port)) for kind, title, port, _ in detect.KINDS]
    offers = detect.offers(found)
    assert offers[0] == "default=127.0.0.1:11434"
    backends = Settings(backends=offers).backends  # the settings take them
    assert [b.service for b in backends] == ["default", "localai", "llama.cpp", "vllm", "lm-studio"]
    first, *others = detect.in_words(found)
    assert "Ollama on 127.0.0.1:11434" in first
    assert "--no-detect" in first
    assert all(f"--listen {server.kind}=" in line for server, line in zip(found[1:], others, strict=True))


def test_the_usual_ports() -> None:
    assert {kind: port for kind, _, port, _ in detect.KINDS} == {
        "ollama": 11434, "localai": 8080, "llama.cpp": 8080, "vllm": 8000, "lm-studio": 1234,
    }  # fmt: skip
