"""Who does not hold the token gets nothing and harms nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import http_get, wait_until

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

STRANGER = Path(__file__).with_name("stranger.py")
ATTEMPTS = 200
OPEN_FILES_SLACK = 10


@pytest.fixture(scope="module")
def home(fleet: Fleet) -> Daemon:
    home = fleet.daemon("home", backend=fleet.backend("http", "home"))
    wait_until(lambda: home.offers() == {"home"}, within=5, what="home is there")
    return home


def attempt(home: Daemon, kind: str, times: int) -> list[str]:
    """A py-libp2p host that dials `home` so often; what became of each try."""
    command = [sys.executable, str(STRANGER), kind, home.multiaddr, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=home.environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def assert_unharmed(home: Daemon, fleet: Fleet, open_files_before: int) -> None:
    """It knows nobody new, serves, lets go of every socket, and takes a real member in."""
    assert [row["name"] for row in home.peers() if not row["name"].startswith("member")] == ["home"]
    assert http_get(home.entry()).body == b"home"
    limit = open_files_before + OPEN_FILES_SLACK
    wait_until(lambda: home.open_files() <= limit, within=20, what=f"home has at most {limit} open files")
    name = f"member{len(fleet.processes)}"
    member = fleet.daemon(name, peer=home)
    wait_until(lambda: member.sees() == {"home", name} == home.sees(), within=2, what="a member joins")
    assert http_get(member.entry()).body == b"home"
    assert member.stop() == 0
    wait_until(lambda: home.sees() == {"home"}, within=5, what="the member has left")


def test_daemon_with_another_token(home, fleet) -> None:
    other_token = fleet.new_token("other-token", "other")
    backend = fleet.backend("http", "other")
    other = fleet.daemon("other", backend=backend, peer=home, token_file=other_token)
    wait_until(lambda: "belongs to another network" in other.log(), within=10, what="the stranger's log says why")
    wait_until(lambda: "with another token" in home.log(), within=10, what="home's log says why")
    for node in (home, other):
        assert [row["name"] for row in node.peers()] == [node.name]
        assert {http_get(node.entry()).body.decode() for _ in range(10)} == {node.name}
    assert home.peer_id not in str(other.status()["network"])
    assert other.stop() == 0


def test_host_without_a_token_gets_no_connection(home) -> None:
    assert attempt(home, "none", 3) == ["refused"] * 3
    wait_until(lambda: "not a member's was refused" in home.log(), within=5, what="home's log says so")


@pytest.mark.parametrize("kind", ["none", "other", "mute"])
def test_listener_is_unharmed_by_200_strangers(home, fleet, kind: str) -> None:
    """none: stock py-libp2p. other: our handshake with another token. mute: our handshake, then no proof at all."""
    open_files = home.open_files()
    log_before = len(home.log().splitlines())
    assert attempt(home, kind, ATTEMPTS) == ["refused"] * ATTEMPTS
    assert_unharmed(home, fleet, open_files)
    assert len(home.log().splitlines()) - log_before < ATTEMPTS, "a stranger can fill the log"


def test_listener_is_unharmed_by_random_bytes(home, fleet) -> None:
    open_files = home.open_files()
    for number in range(ATTEMPTS):
        with socket.create_connection(home.p2p, timeout=5) as sock:
            sock.sendall(os.urandom(1 + number * 17))
    assert_unharmed(home, fleet, open_files)


def test_listener_is_unharmed_by_connects_that_say_nothing(home, fleet) -> None:
    open_files = home.open_files()
    silent = [socket.create_connection(home.p2p, timeout=5) for _ in range(ATTEMPTS)]
    try:
        assert_unharmed(home, fleet, open_files)  # while they are all there
    finally:
        for sock in silent:
            sock.close()
