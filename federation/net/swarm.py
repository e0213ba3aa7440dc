"""py-libp2p's swarm without its ways to connect: it does not dial or listen, and takes links from the host alone.

The rest of it negotiates protocols on streams and tells pubsub which peers are there. py-libp2p itself dials from many
places: a stream to a peer without a connection, peer exchange in gossip, replacements, addresses out of identify. The host
would not count, ping, list or cut such a connection, so all of these ways raise, and there is no transport that could dial
(P).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.transport.upgrader import TransportUpgrader

from federation.net.link.link import MuxedConn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from libp2p.abc import IMuxedConn, INetConn
    from libp2p.crypto.keys import KeyPair
    from libp2p.network.connection.swarm_connection import SwarmConn

    from federation.net.link.handshake import SecureConn, TokenNoise
    from federation.net.link.link import Link


class HostSwarm(Swarm):
    """`muxers`: the ways to make a link, by protocol, preferred first.

    `knows(link)`: whether the host has the link; `preferred(peer)`: the link on which streams to a peer are opened."""

    def __init__(
        self,
        key_pair: KeyPair,
        security: Mapping[str, TokenNoise],
        muxers: Mapping[str, Callable[[SecureConn, ID], MuxedConn]],
        *,
        knows: Callable[[Link], bool],
        preferred: Callable[[str], Link | None],
    ) -> None:
        libp2p_id = ID.from_pubkey(key_pair.public_key)
        store = PeerStore()
        store.add_key_pair(libp2p_id, key_pair)
        upgrader = TransportUpgrader(
            secure_transports_by_protocol=security,  # type: ignore[arg-type]
            muxer_transports_by_protocol=muxers,  # type: ignore[arg-type]
        )
        limits = ConnectionConfig(
            max_connections=10**9, min_connections=0, low_watermark=0, high_watermark=1,
            max_connections_per_peer=10**9, grace_period=1e12, auto_connect_interval=1e9,
        )  # fmt: skip  # B, I: it wants half of the high watermark, nothing, and prunes what is older than the grace period
        super().__init__(libp2p_id, store, upgrader, [], connection_config=limits)
        # Theirs remembers each peer that ever went, for ever.
        self.auto_connector.record_disconnect = lambda peer_id: None  # type: ignore[method-assign]
        self._knows = knows
        self._preferred = preferred

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """Take a link; only `Host.upgrade` calls this. Raises SwarmException."""
        if not isinstance(muxed_conn, MuxedConn) or not self._knows(muxed_conn.link):
            await muxed_conn.close()
            raise SwarmException("a connection that the host did not make")
        return await super().add_conn(muxed_conn, direction)

    def _select_connection(self, connections: list[INetConn], peer_id: ID) -> INetConn:
        """Choose the connection for a new stream: the preferred link, not a duplicate that is about to end."""
        link = self._preferred(str(peer_id))
        muxed_conn = None if link is None else link.muxed_conn
        return next((conn for conn in connections if conn.muxed_conn is muxed_conn), None)  # type: ignore[return-value]  # none

    def links_of(self, peer_id: str) -> list[Link]:
        """All links with that peer that the swarm took and has not released."""
        try:
            conns = self.connections.get(ID.from_base58(peer_id), [])
        except ValueError:
            return []
        return [conn.muxed_conn.link for conn in conns if isinstance(conn.muxed_conn, MuxedConn)]


class StreamHost(BasicHost):
    """py-libp2p's host with no protocol but those that it is given: no identify, whose answers would be parsed and kept."""

    def __init__(self, swarm: HostSwarm) -> None:
        super().__init__(network=swarm)
        swarm.notifees.clear()  # tag store and automatic identify: nothing here reads them
        self.multiselect.handlers.clear()

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Do nothing: py-libp2p's method asks in a task whose failure would end the process."""


async def _raises(*_: object, **__: object) -> NoReturn:
    raise SwarmException("only the host makes connections")


for _name in (
    "dial_peer", "dial_addr", "dial_addr_as_responder", "dial_peer_replacement", "upgrade_outbound_raw_conn",
    "upgrade_inbound_raw_conn", "listen",
):  # fmt: skip
    assert callable(getattr(Swarm, _name))
    setattr(HostSwarm, _name, _raises)
