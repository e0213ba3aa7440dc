"""What Linux says of connections on this machine."""

from __future__ import annotations

import select
import socket
import sys
import time

import pytest

from federation.reactor.tcp_info import CLOSE_WAIT, ESTABLISHED, tcp_info
from tests.support.links import socket_pair

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")


@linux
def test_a_connection_and_its_others_end() -> None:
    ours, theirs = socket_pair()
    with ours, theirs:
        known = tcp_info(ours)
        assert known is not None
        assert (known.state, known.retries, known.probes) == (ESTABLISHED, 0, 0)
        theirs.shutdown(socket.SHUT_WR)
        select.select([ours], [], [], 10)
        known = tcp_info(ours)
        assert known is not None
        assert known.state == CLOSE_WAIT


@linux
def test_a_full_reader_is_asked_in_vain() -> None:
    ours, theirs = socket_pair()
    with ours, theirs:
        deadline = time.monotonic() + 30
        while (known := tcp_info(ours)) is not None and not known.probes:
            assert time.monotonic() < deadline
            if select.select([], [ours], [], 0.05)[1]:
                ours.send(bytes(1 << 20))
        assert known is not None
        assert known.retries == 0


def test_sockets_of_which_nothing_is_known() -> None:
    ours, theirs = socket_pair()
    with theirs:
        ours.close()
        assert tcp_info(ours) is None
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert tcp_info(here) is None
