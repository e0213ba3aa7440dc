"""Sources of members' addresses besides gossip: the token's addresses and --peer, those saved last time, multicast on
the local network, a public DHT. All addresses go into the address book; the host decides which of them it dials.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import FederationError
from federation.net.dial.address import PeerAddress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from types import ModuleType

    from trio_typing import TaskStatus

    from federation.config import Settings
    from federation.mesh.ledger import Ledger
    from federation.mesh.tokens import Token
    from federation.net.dial.book import Source
    from federation.net.host import Host
    from federation.state import StateDir

log = structlog.get_logger(__name__)

MAX_REMEMBERED = 512
SAVE_AFTER_S = 0.25  # several join at a time; one write for all of them
SAVE_EVERY_S = 1.0  # at most: members may invent news without end


class Discovery:
    """Fills the address book. The callables `token` and `addresses` return this node's own, which may change.

    `remembered`: peer -> addresses, as saved. `mdns_seen`: the peers that multicast announced.
    """

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        settings: Settings,
        state: StateDir,
        *,
        token: Callable[[], Token],
        addresses: Callable[[], list[PeerAddress]],
    ) -> None:
        self._host = host
        self._ledger = ledger
        self._settings = settings
        self._state = state
        self._token = token
        self._addresses = addresses
        self.mdns_seen: set[str] = set()
        self.remembered = state.load_peers()
        self._is_news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._mdns_scopes: list[trio.CancelScope] = []  # of the present token's session, and of the one before
        self._saving = trio.Lock()
        for address in parsed(token().addresses, whose="the token's"):
            host.book.add(address, source="token")
        for text in settings.peers:
            host.book.add(PeerAddress.parse(text), source="peer")
        for texts in self.remembered.values():
            for address in parsed(texts, whose="remembered"):
                host.book.add(address, source="saved")

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Search until cancelled. Counts as started once other nodes can find this one."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._save_forever)
            if self._settings.dht:
                nursery.start_soon(self._rendezvous())
            if self._settings.mdns:
                self._mdns_scopes.append(trio.CancelScope())
                await nursery.start(self._run_mdns, self._mdns_scopes[-1])
            task_status.started()

    # Saved

    def learnt(self) -> None:
        """Save soon: a node that is killed must find the network again too."""
        self._is_news.set()

    async def save(self) -> None:
        """Save members' addresses, so that a restart finds the network without the token. Offline members stay saved."""
        records = [record for record in self._ledger.records() if record.peer_id != self._host.peer_id]
        records.sort(key=lambda record: record.peer_id in self._host.links)  # linked peers are real: last in, last out
        for record in records:
            self.remembered.pop(record.peer_id, None)  # and in again, behind peers that gossip does not know
            addresses = [str(address) for address in self._host.book.worth_saving(record.peer_id)]
            if addresses and not record.left:
                self.remembered[record.peer_id] = addresses
        for peer_id in list(self.remembered)[:-MAX_REMEMBERED]:
            del self.remembered[peer_id]
        async with self._saving:  # on a thread: it waits for the disk, which no connection shall
            await trio.to_thread.run_sync(self._state.save_peers, dict(self.remembered))

    async def _save_forever(self) -> None:
        while True:
            await self._is_news.wait()
            await trio.sleep(SAVE_AFTER_S)
            self._is_news = trio.Event()
            await self.save()
            await trio.sleep(SAVE_EVERY_S)

    # Multicast

    def token_changed(self, grace_s: float) -> None:
        """Search the local network by the new token from now on, and by the former one while it is valid.

        Sessions of earlier tokens end: each costs sockets and threads.
        """
        if self._settings.mdns and self._nursery is not None:
            for scope in self._mdns_scopes[:-1]:
                scope.cancel()
            del self._mdns_scopes[:-1]
            for scope in self._mdns_scopes:
                scope.deadline = trio.current_time() + grace_s
            self._mdns_scopes.append(trio.CancelScope())
            self._nursery.start_soon(self._run_mdns, self._mdns_scopes[-1])

    async def _run_mdns(self, scope: trio.CancelScope, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            mdns = await multicast()
            await mdns.Mdns(
                rendezvous=self._token().rendezvous(), peer_id=self._host.peer_id, addresses=self._addresses,
                on_found=self._seen,
            ).run(task_status=task_status)  # fmt: skip

    def _seen(self, address: PeerAddress) -> None:
        if address.peer_id is None or address.peer_id == self._host.peer_id:
            return
        if len(self.mdns_seen) < MAX_REMEMBERED:
            self.mdns_seen.add(address.peer_id)
        self._add(address, "mdns")

    # DHT

    def _rendezvous(self) -> Callable[[], Awaitable[None]]:
        from federation.net.discover.rendezvous import (
            Rendezvous,  # a Kademlia with all that it imports: only with --dht
        )

        return Rendezvous(
            self._settings.bootstraps, key=lambda hour: self._token().dht_key(hour), addresses=self._addresses,
            is_alone=lambda: not self._host.links, on_found=lambda address: self._add(address, "dht"),
        ).run  # fmt: skip

    def _add(self, address: PeerAddress, source: Source) -> None:
        if self._host.book.add(address, source=source):
            self._host.look_at_book()


async def multicast() -> ModuleType:
    """net/discover/mdns.py. zeroconf and asyncio come in with it: where they are used, on a thread, and behind the start."""
    return await trio.to_thread.run_sync(import_module, "federation.net.discover.mdns")


def parsed(texts: Iterable[str], *, whose: str) -> Iterator[PeerAddress]:
    """The addresses among `texts`: other nodes and old files may contain anything."""
    for text in texts:
        try:
            yield PeerAddress.parse(text)
        except FederationError as error:  # noqa: PERF203  # one bad one must not cost the others
            log.info("an address that this version cannot dial is left out", whose=whose, why=error.detail)
