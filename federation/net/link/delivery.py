"""Whether what was sent on a link's socket arrives: the kernel's word, and what it means.

A path may lose large packets and say nothing (a tunnel with a small MTU behind a firewall that drops ICMP). Then the first
large record never arrives, and nothing behind it is read, though the connection looks alive: the remote's PINGs still come.
The kernel sends the same bytes again and again, at growing intervals; nothing else looks like that. From FRAGMENT_RETRIES on
routers may split the packets (most of them can, and were not allowed to). From STUCK_RETRIES on the link is stuck: nobody is
sent there, and the host makes another link whose packets are small. After HOPELESS_RETRIES (6 s, where a round trip takes
less than 0.2 s) the link is closed.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from federation.reactor.tcp_info import CLOSE_WAIT, CLOSED, ESTABLISHED, tcp_info

if TYPE_CHECKING:
    import trio

FRAGMENT_RETRIES, STUCK_RETRIES, HOPELESS_RETRIES = 2, 3, 5
# The remote has its PING answered within 0.5 s or sends another one each second: see liveness.py.
HEARD_S = 2.0
SEE_EVERY_S, SEE_CLOSELY_EVERY_S = 1.0, 0.2  # a look is two system calls
# Packets of 576 bytes pass everywhere in IPv4, packets of 1280 in IPv6: less 40 and 60 for the headers.
SMALL_SEGMENT, SMALL_SEGMENT_6 = 536, 1220

_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0
_SIOCOUTQ = 0x5411
_INT = struct.Struct("=i")


class Delivery(NamedTuple):
    """Of a connection: bytes that the remote's kernel has not acknowledged, how often in a row the oldest of them was sent
    again, how long nothing came, and whether the remote has finished."""

    unacknowledged: int
    retries: int
    heard_s: float
    has_ended: bool

    @property
    def is_stuck(self) -> bool:
        """The remote lives, and our bytes do not get there."""
        return self.retries >= STUCK_RETRIES and self.heard_s < HEARD_S

    @property
    def is_certain(self) -> bool:
        """Whether the remote's process surely has none of the unacknowledged bytes. Its FIN acknowledges all that it got.
        Before that, acknowledgements that came lately lack what was sent again and again; silence says nothing."""
        return self.has_ended or self.is_stuck


def delivery(sock: socket.socket) -> Delivery | None:
    """None where the kernel does not say. Of a connection that was reset it says what it knew last, also of one whose FIN
    came before: that only its reader knows."""
    known = tcp_info(sock)
    if known is None or known.state not in (ESTABLISHED, CLOSED, CLOSE_WAIT):
        return None
    try:
        (unacknowledged,) = _INT.unpack(fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(_INT.size)))
    except OSError:  # closed meanwhile
        return None
    heard_s = min(known.data_received_ms, known.acknowledged_ms) / 1000
    return Delivery(unacknowledged, known.retries, heard_s, known.state == CLOSE_WAIT)


def let_routers_split(sock: socket.socket | trio.socket.SocketType) -> None:
    """Allow routers to split our packets, those that are sent again too. IPv6 has no such thing."""
    if sys.platform == "linux" and sock.family == socket.AF_INET:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
