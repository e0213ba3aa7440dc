"""Who does not hold the token gets nothing and harms nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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


def test_listener_is_unharmed_by_200_strangers_random_bytes_and_silence(home, fleet) -> None:
    """All at once: 200 connects that say nothing, 200 of random bytes, and 200 hosts each of three kinds.

    none: stock py-libp2p. other: our own handshake with another token. mute: it stops before the proof.
    """
    open_files = home.open_files()
    log_before = len(home.log().splitlines())
    with ExitStack() as stack:
        for _ in range(ATTEMPTS):
            stack.enter_context(socket.create_connection(home.p2p, timeout=5))
        pool = stack.enter_context(ThreadPoolExecutor())
        outcomes = [pool.submit(attempt, home, kind, ATTEMPTS) for kind in ("none", "other", "mute")]
        for number in range(ATTEMPTS):
            with socket.create_connection(home.p2p, timeout=5) as sock:
                sock.sendall(os.urandom(1 + number * 17))
        for outcome in outcomes:
            assert Counter(outcome.result()) == {"refused": ATTEMPTS}
        # The silent ones are still there as far as they are concerned.
        assert_unharmed(home, fleet, open_files)
    assert len(home.log().splitlines()) - log_before < ATTEMPTS, "a stranger can fill the log"
