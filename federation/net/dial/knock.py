"""A newcomer's call at the node that made its invite, before it is a member: no host, no swarm, one connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.security.security_multistream import SecurityMultistream

from federation.errors import HandshakeFailed, InviteTooNew, PeerUnavailable
from federation.net.dial.tcp import close_now, ration, tcp_connection
from federation.net.link import newcomer

if TYPE_CHECKING:
    from federation.net.dial.address import PeerAddress
    from federation.net.link.handshake import SecureConn

CONNECT_S = 5.0
TOLD_BYTES = 4 * newcomer.MAX_MESSAGE_BYTES  # by the inviter, which proved the code: the token, and some 10 bytes each 10 s


async def knock(address: PeerAddress, *, seed: bytes, invite_id: bytes, key: bytes) -> SecureConn:
    """Connect, and prove the code to each other. The caller closes what this returns (`hang_up`).

    Raises PeerUnavailable where nobody answers, InviteTooNew at an older version, InviteUnknown, or HandshakeFailed.
    """
    noise = newcomer.CodeNoise(create_new_key_pair(seed), invite_id, key)
    security = SecurityMultistream({newcomer.PROTOCOL_ID: noise})  # type: ignore[dict-item]
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(address.host, address.port)
    except (OSError, trio.TooSlowError) as error:
        raise PeerUnavailable(str(error) or "no answer") from None
    raw = tcp_connection(stream, initiator=True)
    try:
        with trio.fail_after(2 * CONNECT_S):
            secured: SecureConn = await security.secure_outbound(raw, None)  # type: ignore[arg-type,assignment]
        ration(raw, TOLD_BYTES)
        return secured
    except MultiselectError:
        await close_now(raw)
        raise InviteTooNew from None
    except trio.TooSlowError:
        await close_now(raw)
        raise PeerUnavailable("it does not answer as a node does") from None
    except HandshakeFailed:
        await close_now(raw)
        raise
    except BaseException as error:
        await close_now(raw)
        if isinstance(error, Exception):  # as in Host._admit: what answers can raise anything in py-libp2p
            raise HandshakeFailed("what answers there is no node") from error
        raise


async def hang_up(conn: SecureConn) -> None:
    await close_now(conn.raw)
