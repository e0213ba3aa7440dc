"""No error of accept(2) closes a port for good: Linux reports pending network errors and firewalls' verdicts there."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
from harness import http_get, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet import Fleet
    from harness import Address, Daemon

# In the daemon's process, before any of its code: an accept at the port that $ACCEPT_ERROR names takes the connection,
# closes it and fails, as the kernel does, as often as the file says.
SITE = """
import os, socket

real = socket.socket._accept

def accept(listener):
    fd, address = real(listener)
    try:
        port, number, times = map(int, open(os.environ["ACCEPT_ERROR"]).read().split())
    except FileNotFoundError:
        return fd, address
    if listener.getsockname()[1] != port:
        return fd, address
    os.close(fd)
    if times > 1:
        open(os.environ["ACCEPT_ERROR"], "w").write(f"{port} {number} {times - 1}")
    else:
        os.unlink(os.environ["ACCEPT_ERROR"])
    raise OSError(number, os.strerror(number))

socket.socket._accept = accept
"""
ERRORS = ["EPERM", "EPROTO", "ENETDOWN", "ETIMEDOUT", "EHOSTUNREACH", "ECONNABORTED", "EIO", "ENOSR"]


def talks(address: Address) -> bool:
    """Whether a stranger at the p2p port is listened to: it gets an answer to multistream's hello."""
    hello = b"\x13/multistream/1.0.0\n"
    try:
        with socket.create_connection(address, timeout=5) as sock:
            sock.sendall(hello)
            return sock.recv(len(hello)) == hello
    except OSError:
        return False


def answers(address: Address, path: str) -> bool:
    try:
        return http_get(address, path, timeout=5).status == 200
    except OSError:
        return False


PORTS: dict[str, Callable[[Daemon], tuple[Address, Callable[[], bool]]]] = {
    "clients": lambda daemon: (daemon.entry(), lambda: answers(daemon.entry(), "/")),
    "peers": lambda daemon: (daemon.p2p, lambda: talks(daemon.p2p)),
    "control": lambda daemon: (daemon.control, lambda: answers(daemon.control, "/api/v1/status")),
}


@pytest.fixture(scope="module")
def node(fleet: Fleet) -> Daemon:
    site = fleet.directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    environment = {"PYTHONPATH": str(site), "ACCEPT_ERROR": str(fleet.directory / "accept-error")}
    return fleet.daemon("odd", backend=fleet.backend("http"), environment=environment)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("port", PORTS)
def test_it_costs_the_one_client_that_meets_it(fleet: Fleet, node: Daemon, port: str, name: str) -> None:
    address, serves = PORTS[port](node)
    wait_until(serves, within=5, what="it serves before")
    failing = fleet.directory / "accept-error"
    ready = fleet.directory / "accept-error.new"
    ready.write_text(f"{address[1]} {getattr(errno, name)} 3")
    ready.rename(failing)

    def all_met() -> bool:
        serves()
        return not failing.exists()

    wait_until(all_met, within=5, what="three clients met the error")
    wait_until(serves, within=5, what="it serves again")
    assert node.alive
