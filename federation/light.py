"""A daemon imports only what it reaches of its libraries. A program that runs one imports this module before all others.

py-libp2p imports all that it has: QUIC, TLS, WebSocket, relays, discovery, RSA. No node reaches these (net/host.py and
net/swarm.py are all that uses py-libp2p, and docs/architecture.md has its traps). Other libraries do the like on a smaller
scale. Without this module a start takes twice as long, and a node 30 MB more. absent.py says what the tables mean.

py-libp2p in other programs is whole (tests), or less so (net/discover/look.py). tests/test_light.py holds what a daemon may
import; scripts/footprint measures what that costs; scripts/unreached.txt has the packages that need not be installed.
"""

from __future__ import annotations

import gc

from federation import absent

BARE = frozenset(
    {
        "cryptography.x509",  # reactor/tls.py reads a certificate, if there is one; py-libp2p would, too
        "libp2p",
        "libp2p.peer",
        "libp2p.relay",
        "libp2p.relay.circuit_v2",
        "libp2p.security",
        "libp2p.transport",
    }
)
ABSENT = (
    "cryptography.hazmat.primitives.serialization.ssh",
    "h2",  # api/http_server.py speaks HTTP/1.1
    "hypercorn.protocol.h2",
    "hypercorn.protocol.ws_stream",
    "libp2p.bitswap",
    "libp2p.crypto.rsa",  # net/identity.py takes Ed25519 alone
    "libp2p.crypto.secp256k1",
    "libp2p.discovery",  # net/discover has our own
    "libp2p.kad_dht",
    "libp2p.rcmgr.manager",  # net/host.py has the limits
    "libp2p.security.pnet",
    "libp2p.security.tls",
    "libp2p.stream_muxer.yamux",  # the only muxer is net/link
    "libp2p.transport.quic",
    "libp2p.transport.websocket",
    "libp2p.utils.version",  # for identify, which is off
    "multiaddr.resolvers",  # net/dial resolves names
    "psutil",  # of py-libp2p's; mesh/gpu.py reads /proc itself, net/discover/interfaces.py has ifaddr
    "pydantic.plugin._loader",  # it would look through all packages that are installed
)
WITHOUT = {
    "libp2p.metrics.swarm": ("prometheus_client",),  # nobody asks for its metrics
    "libp2p.tools.anyio_service": ("anyio",),  # trio runs its services (background_trio_service)
    "structlog": ("asyncio", "rich"),  # no log of ours is written by asyncio, none has coloured tracebacks (logs.py)
}
GC_THRESHOLD = 200_000  # of objects, until the node sets its own: what a start makes stays

gc.set_threshold(GC_THRESHOLD)
absent.install(bare=BARE, absent=ABSENT, without=WITHOUT)
