"""What the kernel says of a connection's bytes, and what it means. A path that loses large packets is in scripts/faults."""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from federation.net.link.delivery import (
    FRAGMENT_RETRIES,
    HEARD_S,
    HOPELESS_RETRIES,
    STUCK_RETRIES,
    Delivery,
    delivery,
    let_routers_split,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux says so")


@pytest.mark.parametrize(
    ("known", "is_stuck", "is_certain"),
    [
        (Delivery(0, 0, 0.0, has_ended=False), False, False),
        (Delivery(10**6, STUCK_RETRIES - 1, 0.1, has_ended=False), False, False),
        (Delivery(10**6, STUCK_RETRIES, 0.1, has_ended=False), True, True),
        (Delivery(10**6, STUCK_RETRIES, HEARD_S, has_ended=False), False, False),  # silence says nothing
        (Delivery(10**6, 0, 60.0, has_ended=True), False, True),  # its FIN acknowledged all that it got
    ],
)
def test_what_it_means(known: Delivery, is_stuck: bool, is_certain: bool) -> None:
    assert (known.is_stuck, known.is_certain) == (is_stuck, is_certain)


def test_routers_may_split_before_the_link_is_given_up() -> None:
    assert FRAGMENT_RETRIES < STUCK_RETRIES < HOPELESS_RETRIES


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    here.setblocking(False)
    with here, there:
        yield here, there


@linux
def test_bytes_that_a_full_remote_has_not_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    known = delivery(here)
    assert known is not None
    assert (known.unacknowledged, known.retries, known.has_ended) == (0, 0, False)
    sent = 0
    try:
        while True:
            sent += here.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    known = delivery(here)
    assert known is not None
    assert 0 < known.unacknowledged <= sent
    assert not known.is_certain
    there.shutdown(socket.SHUT_WR)
    assert here.recv(1) == b""
    known = delivery(here)
    assert known is not None
    assert known.has_ended
    assert known.is_certain


@linux
def test_a_connection_that_was_reset_is_no_proof(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    here.send(b"unread")
    there.recv(1, socket.MSG_PEEK)
    there.close()  # with a byte unread: RST
    assert select.select([here], [], [], 10)[0]
    with pytest.raises(ConnectionResetError):
        here.recv(1)
    known = delivery(here)
    assert known is None or not known.is_certain
    here.close()
    assert delivery(here) is None


@linux
def test_what_a_fin_said_is_still_known_behind_the_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    """The remote closed; what was on its way to it then is answered by RST."""
    here, there = pair
    here.send(b"arrived")
    assert there.recv(100) == b"arrived"
    there.close()
    assert select.select([here], [], [], 10)[0]
    here.send(b"too late")
    deadline = time.monotonic() + 10
    while (known := delivery(here)) is not None and known.has_ended:  # until the RST is here
        assert time.monotonic() < deadline
    assert known is not None
    assert known.unacknowledged == len(b"too late")
    assert not known.is_certain  # the carrier has read the EOF, and says so


def test_what_is_no_tcp_says_nothing() -> None:
    one, two = socket.socketpair()
    with one, two:
        assert delivery(one) is None
        let_routers_split(one)


@linux
def test_packets_may_be_split(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    let_routers_split(here)
    assert here.getsockopt(socket.IPPROTO_IP, 10) == 0  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
