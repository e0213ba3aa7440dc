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

if TYPE_CHECKING:
    import trio

FRAGMENT_RETRIES, STUCK_RETRIES, HOPELESS_RETRIES = 2, 3, 5
# The remote has its PING answered within 0.5 s or sends another one each second: see liveness.py.
HEARD_S = 2.0
SEE_EVERY_S, SEE_CLOSELY_EVERY_S = 1.0, 0.2  # a look is two system calls
# Packets of 576 bytes pass everywhere in IPv4, packets of 1280 in IPv6: less 40 and 60 for the headers.
SMALL_SEGMENT, SMALL_SEGMENT_6 = 536, 1220

_ESTABLISHED, _CLOSED, _CLOSE_WAIT = 1, 7, 8
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0
_SIOCOUTQ = 0x5411
_INT = struct.Struct("=i")
_TCP_INFO = struct.Struct("=BxB 5x 12I I")  # of <linux/tcp.h>: state, retransmits; last_data_recv and last_ack_recv in ms


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
    if sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        (unacknowledged,) = _INT.unpack(fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(_INT.size)))
        state, retries, *_, data_ms, ack_ms = _TCP_INFO.unpack(info)
    except (OSError, struct.error):  # closed meanwhile; not TCP
        return None
    if state not in (_ESTABLISHED, _CLOSED, _CLOSE_WAIT):
        return None
    return Delivery(unacknowledged, retries, min(data_ms, ack_ms) / 1000, state == _CLOSE_WAIT)


def let_routers_split(sock: socket.socket | trio.socket.SocketType) -> None:
    """Allow routers to split our packets, those that are sent again too. IPv6 has no such thing."""
    if sys.platform == "linux" and sock.family == socket.AF_INET:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
