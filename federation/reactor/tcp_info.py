"""The kernel's knowledge of a TCP connection: Linux alone tells."""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

ESTABLISHED, CLOSED, CLOSE_WAIT = 1, 7, 8

# The beginning of <linux/tcp.h>'s struct tcp_info: state, retransmits, probes; nine others, then last_data_sent,
# last_ack_sent, last_data_recv, last_ack_recv.
_STRUCT = struct.Struct("=BxBB4x 36x 4I")


class TcpInfo(NamedTuple):
    """Of bytes on their way: how often in a row the oldest were sent again (`retries`), or a full reader was asked in vain
    (`probes`). How long ago, in milliseconds, data left, data came, and an acknowledgement came."""

    state: int
    retries: int
    probes: int
    data_sent_ms: int
    data_received_ms: int
    acknowledged_ms: int


def tcp_info(sock: socket.SocketType) -> TcpInfo | None:
    """None where the kernel does not say, and for a socket that is closed or not TCP's."""
    if sys.platform != "linux" or sock.family == socket.AF_UNIX:
        return None
    try:
        told = _STRUCT.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _STRUCT.size))
    except (OSError, struct.error):
        return None
    state, retries, probes, data_sent_ms, _ack_sent_ms, data_received_ms, acknowledged_ms = told
    return TcpInfo(state, retries, probes, data_sent_ms, data_received_ms, acknowledged_ms)
