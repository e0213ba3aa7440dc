"""Finding the network's members through a public Kademlia DHT, for nodes that know nobody's address.

Members provide, and look for, a key that only the token gives and that changes with the hour: whoever watches the DHT can
neither find the network nor follow it. Each look is made under a new libp2p identity, by a host of its own that lives for
seconds and does not listen: nothing that a stranger sends can reach the node's own host, and a failure costs one look. What
is found are addresses, nothing more: who answers there has to prove the token like everybody. A DHT node that keeps our
record learns that these addresses belong together, and may add some of its own, which costs a dial each.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import structlog
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from federation.errors import FederationError
from federation.net.addresses import PeerAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from libp2p.peer.peerinfo import PeerInfo

log = structlog.get_logger(__name__)

ALONE_EVERY_S = 20.0  # while there is nobody
EVERY_S = 600.0  # for those who come later; below the hour that a key lives
LOOK_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
NEAR_S = 600.0  # clocks differ, and records last: so long before and after the hour both keys count
MAX_PROVIDERS = 32
PROVIDED_LOOKS, PROVIDED_PAUSE_S = 5, 0.5
MAX_ADDRESSES = 4  # of one of them


def hours(now: datetime) -> list[int]:
    """The hours whose keys count now, the current one first: hours since 1970, UTC."""
    hour = int(now.timestamp()) // 3600
    near = [int((now + timedelta(seconds=s)).timestamp()) // 3600 for s in (-NEAR_S, NEAR_S)]
    return list(dict.fromkeys((hour, *near)))


class Rendezvous:
    """`key(hour)`: a multihash. `addresses()`: where this node is dialled. `is_alone()`: no member is connected.
    `on_found(address)` is called for each address that was found, again at each look."""

    def __init__(
        self,
        bootstraps: Sequence[str],
        *,
        key: Callable[[int], bytes],
        addresses: Callable[[], Iterable[PeerAddress]],
        is_alone: Callable[[], bool],
        on_found: Callable[[PeerAddress], None],
    ) -> None:
        self._bootstraps = bootstraps
        self._key = key
        self._addresses = addresses
        self._is_alone = is_alone
        self._on_found = on_found
        self.problem = "no look was made yet"  # of the last look; empty if it went well

    async def run(self) -> None:
        while True:
            before = self.problem
            try:
                with trio.fail_after(LOOK_TIMEOUT_S):
                    await self._look(hours(datetime.now(timezone.utc)))
                self.problem = ""
            except trio.TooSlowError:
                self.problem = f"the DHT did not answer within {LOOK_TIMEOUT_S:g} s"
            except Exception as error:  # noqa: BLE001  # strangers' bytes meet all of py-libp2p here; the look is lost, no more
                self.problem = str(_innermost(error)) or type(_innermost(error)).__name__
            if self.problem and self.problem != before:
                log.warning("the DHT could not be asked", why=self.problem[:200])
            await trio.sleep(ALONE_EVERY_S if self.problem or self._is_alone() else EVERY_S)

    async def _look(self, counting: Sequence[int]) -> None:
        key_pair = create_new_key_pair(secrets.token_bytes(32))
        noise = NoiseTransport(key_pair, create_new_x25519_key_pair().private_key)
        ours = [Multiaddr(str(PeerAddress(a.host, a.port))) for a in self._addresses() if not a.is_loopback]
        host = new_host(key_pair=key_pair, sec_opt={NOISE_ID: noise}, announce_addrs=ours)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(host.run(listen_addrs=[]))
            stack.push_async_callback(host.close)
            dht = KadDHT(host, DHTMode.CLIENT, enable_values=True)
            await stack.enter_async_context(background_trio_service(dht))
            await self._connect(host.connect, dht)
            for number, hour in enumerate(counting):
                for provider in await dht.provider_store.find_providers(self._key(hour), MAX_PROVIDERS):
                    self._take(provider, host.get_id().to_base58())
                if ours and (number == 0 or hour > counting[0]):
                    await _provide(dht, self._key(hour))

    async def _connect(self, connect: Callable[[PeerInfo], object], dht: KadDHT) -> None:
        """To one bootstrap node at least. Raises FederationError."""
        problems = []
        for text in self._bootstraps:
            peer = info_from_p2p_addr(Multiaddr(text))
            try:
                with trio.fail_after(CONNECT_TIMEOUT_S):
                    await connect(peer)  # type: ignore[misc]
                await dht.add_peer(peer.peer_id, skip_server_mode_check=True)
            except Exception as error:  # noqa: BLE001  # as above; one that is down must not cost the others
                problems.append(str(error) or type(error).__name__)
        if len(problems) == len(self._bootstraps):
            raise FederationError(f"no bootstrap node answers ({problems[0][:80]})")

    def _take(self, provider: PeerInfo, own_id: str) -> None:
        if provider.peer_id.to_base58() == own_id:
            return
        for text in [str(address) for address in provider.addrs[:MAX_ADDRESSES]]:
            try:
                address = PeerAddress.parse(text.partition("/p2p/")[0])
            except FederationError as error:  # noqa: PERF203  # anybody's words
                log.debug("an address from the DHT cannot be dialled", why=error.detail)
            else:
                self._on_found(address)


async def _provide(dht: KadDHT, key: bytes) -> None:
    """Leave our address there. Nobody acknowledges that, and a message may be lost as the connection closes: so it is looked
    for, and this raises FederationError if it is not found."""
    store = dht.provider_store
    await store.provide(key)
    for _ in range(PROVIDED_LOOKS):
        store.providers.pop(key, None)  # else it finds what it noted down itself
        if any(found.peer_id == store.local_peer_id for found in await store.find_providers(key, MAX_PROVIDERS)):
            return
        await trio.sleep(PROVIDED_PAUSE_S)
    raise FederationError("it did not keep this node's address")


def _innermost(error: BaseException) -> BaseException:
    while inside := getattr(error, "exceptions", ()):  # a group of trio's
        error = inside[0]
    return error
