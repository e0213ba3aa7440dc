"""Connections on which nothing seems to be under way: those that clients keep for their next request (keep-alive).

On layer 4 such a connection counts like any other, and holds up a drain. A person who waits for the drain is to hear that
the connection is idle. The kernel knows when the last bytes went each way: it is idle if they were an answer's, IDLE_S ago.
Such a connection may also be a stream that pauses, so nobody ends it for that.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from federation.forward.l4 import L4Client
from federation.reactor import keepalive
from federation.reactor.sockets import SocketDuplex

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.forward.backends import Backends
    from federation.forward.l7 import HttpClient

IDLE_S = 5.0
MOST = 1000  # connections that are looked at: some milliseconds


def at_backends(backends: Backends) -> int:
    """Of the connections that count as in flight here."""
    targets = [backend.target[1] for backend in backends.all if backend.target is not None]
    return sum(
        _has_been_answered(keepalive.silence(end.sock), by_other_side=True)
        for end in islice(backends.reactor.sockets, MOST)
        if end.received and not backends.kept.has(end) and _peer_of(end) in targets
    )


def of_clients(clients: Iterable[L4Client | HttpClient]) -> int:
    """Of the clients of this node's ports, those between two HTTP requests aside, which count nowhere."""
    return sum(
        _has_been_answered(keepalive.silence(client.socket.sock), by_other_side=False)
        for client in islice(clients, MOST)
        if isinstance(client, L4Client) and isinstance(client.socket, SocketDuplex) and client.socket.delivered
    )


def _has_been_answered(silence: keepalive.Silence | None, *, by_other_side: bool) -> bool:
    if silence is None:
        return False
    answer_s, question_s = silence.sent_s, silence.received_s
    if by_other_side:
        answer_s, question_s = question_s, answer_s
    return IDLE_S <= answer_s <= question_s  # equal: both came in one tick of the kernel


def _peer_of(end: SocketDuplex) -> object:
    try:
        return end.sock.getpeername()
    except OSError:  # it is ending
        return None
