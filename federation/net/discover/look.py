"""The program of one look into a public DHT (dht.py), as a process: `python -m federation.net.discover.look`.

It dials by TCP, Noise and Yamux alone. All else that py-libp2p imports at its start is absent, as in a daemon (light.py).
"""

from __future__ import annotations

from federation import absent

ABSENT = (
    "cryptography.hazmat.primitives.serialization.ssh",
    "dns.quic",  # names of bootstrap nodes are asked for by UDP
    "libp2p.bitswap",
    "libp2p.crypto.ecc",
    "libp2p.crypto.rsa",  # dht.py reads RSA keys itself, within bounds
    "libp2p.discovery",
    "libp2p.security.pnet",
    "libp2p.security.secio",
    "libp2p.security.tls",
    "libp2p.transport.quic",
    "libp2p.transport.webrtc",
    "libp2p.transport.websocket",
)


def main() -> None:
    absent.install(absent=ABSENT)
    from federation.net.discover import dht

    dht.main()


if __name__ == "__main__":
    main()
