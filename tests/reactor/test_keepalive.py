from __future__ import annotations

import socket
import sys
import time
from contextlib import closing

import pytest

from federation.reactor import keepalive
from federation.reactor.keepalive import GONE_S, Sent


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        keepalive.keep_alive(listener)
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def test_a_silent_machine_is_gone_within_three_minutes() -> None:
    assert 120 <= keepalive.IDLE_S + keepalive.PROBES * keepalive.PROBE_EVERY_S <= 180
    assert 120 < GONE_S + keepalive.LOOK_EVERY_S <= 180


@pytest.mark.skipif(sys.platform != "linux", reason="whether it is inherited is not asked elsewhere")
def test_the_kernel_tests_what_a_listener_accepts() -> None:
    ours, accepted = connected()
    with ours, accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == keepalive.IDLE_S
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == keepalive.PROBE_EVERY_S
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == keepalive.PROBES
        assert not ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        keepalive.keep_alive(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize(
    ("sent", "is_lost"),
    [
        (Sent(0, 1e6), False),  # nothing is on its way: keepalive's matter
        (Sent(1, 1e6), False),  # one answer may be lost, to a reader that takes nothing
        (Sent(2, GONE_S - 1), False),
        (Sent(2, GONE_S + 1), True),
    ],
)
def test_lost_is_what_was_sent_again_and_never_heard_of(sent: Sent, is_lost: bool) -> None:
    assert sent.is_lost == is_lost


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")
def test_the_kernel_knows_who_spoke_last() -> None:
    ours, accepted = connected()
    with ours, accepted:
        ours.sendall(b"question")
        assert accepted.recv(8) == b"question"
        deadline = time.monotonic() + 20
        while (asked := keepalive.silence(accepted)) is not None and asked.received_s < 0.05:
            assert time.monotonic() < deadline
        accepted.sendall(b"answer")
        assert ours.recv(6) == b"answer"
        told, heard = keepalive.silence(accepted), keepalive.silence(ours)
        assert told is not None
        assert heard is not None
        assert told.sent_s < told.received_s
        assert heard.received_s < heard.sent_s
    assert keepalive.silence(accepted) is None  # closed
    for pair in [socket.socketpair()]:
        assert keepalive.silence(pair[0]) is None
        for end in pair:
            end.close()


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")
def test_a_reader_that_takes_nothing_is_here() -> None:
    ours, accepted = connected()
    with ours, accepted:
        ours.setblocking(False)
        try:
            while True:
                ours.send(bytes(65536))
        except BlockingIOError:
            pass
        known = keepalive.sent(ours)
        assert known is not None
        assert known.heard_s < 60
        assert not keepalive.has_vanished(ours)


def test_other_sockets_are_never_gone() -> None:
    a, b = socket.socketpair(socket.AF_UNIX)
    with closing(a), closing(b):
        assert not keepalive.has_vanished(a)
    ours, accepted = connected()
    ours.close()
    accepted.close()
    assert not keepalive.has_vanished(ours)
