from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federation.config import Settings
from federation.forward.models import finding
from federation.forward.models.servers import KINDS, Kind
from federation.units import Endpoint, HostPort
from tests.support.model_servers import serving

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


FOUND_KINDS = [kind for kind in KINDS if kind.port]


def all_at(port: int) -> list[Kind]:
    """Every kind that has a port, asked for at that port."""
    return [replace(kind, port=port) for kind in FOUND_KINDS]


@pytest.mark.parametrize("kind", SERVERS)
async def test_each_server_is_known_for_what_it_is_and_nothing_else(kind: str) -> None:
    with serving(SERVERS[kind]) as port:
        for wanted in FOUND_KINDS:
            found = await finding.find(kinds=[replace(wanted, port=port)])
            assert [server.kind for server in found] == ([kind] if wanted.name == kind else [])
        (found_one,) = await finding.find(kinds=all_at(port))
        assert (found_one.kind, found_one.address) == (kind, HostPort("127.0.0.1", port))


async def test_a_llama_cpp_without_props_is_known_by_its_header() -> None:
    with serving({"/health": {"status": "ok"}}, {"Server": "llama.cpp"}) as port:
        assert [server.kind for server in await finding.find(kinds=all_at(port))] == ["llama.cpp"]


@pytest.mark.parametrize("name", OTHERS)
async def test_what_answers_in_another_way_is_left_alone(name: str) -> None:
    with serving(OTHERS[name]) as port:
        assert await finding.find(kinds=all_at(port)) == []


async def test_silence_and_nobody_take_no_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        assert await finding.find(kinds=all_at(silent.getsockname()[1])) == []
        assert time.monotonic() - begun < len(FOUND_KINDS) * (finding.TIMEOUT_S + 0.5)
        port = silent.getsockname()[1]
    assert await finding.find(kinds=all_at(port)) == []


async def test_own_ports_are_not_asked() -> None:
    with serving(SERVERS["ollama"]) as port:
        assert await finding.find(without=(port,), kinds=all_at(port)) == []


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
    assert finding.listeners(TCP, 11434) == {1001}
    assert finding.listeners(TCP, 8080) == {997}
    assert finding.listeners(TCP, 8000) == set()
    assert finding.listeners(TCP6, 8080) == {1004}
    assert finding.listeners(TCP6, 11434) == {1005}
    assert finding.listeners("", 1) == finding.listeners("nonsense\n" * 9, 1) == set()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_the_kernel_says_whose_socket_it_is(host: str) -> None:
    is_6 = ":" in host
    with socket.create_server((host, 0), family=socket.AF_INET6 if is_6 else socket.AF_INET, dualstack_ipv6=is_6) as server:
        assert finding._owners(server.getsockname()[1]) == {os.getuid()}


@pytest.mark.parametrize(
    ("uids", "is_offered"),
    [(set(), True), ({0}, True), ({997}, True), ({os.getuid()}, True), ({60_001}, False), ({0, 60_001}, False)],
)
async def test_another_users_server_is_left_alone(uids: set[int], is_offered: bool) -> None:
    with serving(SERVERS["ollama"]) as port:
        found = await finding.find(kinds=all_at(port), owners=lambda _port: uids)
    assert finding.offers(found) == ([Endpoint("default", HostPort("127.0.0.1", port))] if is_offered else [])


def test_who_is_left_alone_does_not_take_the_default() -> None:
    found = [finding.Found(kind, kind, HostPort("127.0.0.1", n), (60_001,) * (n == 1)) for n, kind in enumerate("abc", 1)]
    assert list(map(str, finding.offers(found))) == ["default=127.0.0.1:2", "c=127.0.0.1:3"]


def test_several_have_names_of_their_own() -> None:
    found = [finding.Found(kind.name, kind.title, HostPort("127.0.0.1", kind.port)) for kind in FOUND_KINDS]
    offers = finding.offers(found)
    assert str(offers[0]) == "default=127.0.0.1:11434"
    backends = Settings(backends=list(map(str, offers))).backends  # as a person may write them
    assert [b.service for b in backends] == ["default", "localai", "llama.cpp", "vllm", "lm-studio"]


def test_the_usual_ports() -> None:
    assert {kind.name: kind.port for kind in FOUND_KINDS} == {
        "ollama": 11434, "localai": 8080, "llama.cpp": 8080, "vllm": 8000, "lm-studio": 1234,
    }  # fmt: skip
