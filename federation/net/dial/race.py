"""One dial: all addresses of a peer raced with a stagger, and the relays that lead to it a little behind them.

The result of a dial to hearsay changes the time of no dial, to that address or the next. Else a peer could name a foreign
port between two addresses of its own, watch when these are dialled, and learn whether that port is open, closed or silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from federation.errors import AnotherPeer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from federation.net.dial.address import PeerAddress
    from federation.net.dial.book import Target
    from federation.net.link.link import Link

DIAL_TIMEOUT_S = 5.0  # one address, up to the admitted connection
STAGGER_S = 0.25  # before the next address starts; less if the one before has failed and is not hearsay
CIRCUIT_STAGGER_S = 0.5  # before the next relay starts; less if the one before has failed. Two handshakes take a tenth
CIRCUIT_AFTER_S = 0.5  # the lead of direct addresses over relays, unless no address answered last time


class Ourselves(Exception):
    """The address leads back to this node."""


async def _first_of(*events: trio.Event) -> None:
    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)


class Race:
    """Call `run`, then read `winner`: the link, and the address that led to it (None: a relay). It is None if none answered.

    `connect` and `connect_via_relay(relay, peer)` may raise any exception; `problems` collects them. The losers are
    cancelled. While addresses may still answer, `relays(peer)` is asked again when `news()` is set. `may(address)`: whether
    hearsay may be dialled now.

    `settled` is set when there is a winner, or when all known addresses and relays have failed and hearsay has been dialled;
    with hearsay alone, when a silent address would have timed out. Hearsay that answers later may still win.
    """

    def __init__(
        self,
        target: Target,
        relays: Callable[[str], Sequence[str]],
        *,
        news: Callable[[], trio.Event],
        connect: Callable[[PeerAddress], Awaitable[Link]],
        connect_via_relay: Callable[[str, str], Awaitable[Link]],
        may: Callable[[PeerAddress], bool] = lambda _address: True,
    ) -> None:
        self._target = target
        self._relays = relays
        self._news = news
        self._connect = connect
        self._connect_via_relay = connect_via_relay
        self._may = may
        self._all_failed = trio.Event()  # but for hearsay; relays wait for this
        self._won = trio.CancelScope()
        self.settled = trio.Event()
        self.winner: tuple[PeerAddress | None, Link] | None = None
        self.problems: list[Exception] = []
        self.ourselves: list[PeerAddress] = []
        self.missed: list[PeerAddress] = []  # no peer, or another one, answered there
        self.taken_over: list[PeerAddress] = []  # those of them where another peer answered

    async def run(self) -> None:
        with self._won:
            async with trio.open_nursery() as hearsay:
                async with trio.open_nursery() as nursery:
                    if self._target.peer_id is not None:
                        nursery.start_soon(self._try_relays, self._target.peer_id)
                    await self._try_addresses(hearsay)
                    self._all_failed.set()
                self.settled.set()
        self.settled.set()

    def give_up(self) -> None:
        """End the race, without a winner if there is none yet."""
        self._won.cancel()

    async def _try_addresses(self, hearsay: trio.Nursery) -> None:
        over_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for address in self._target.addresses:
                over = trio.Event()
                if address not in self._target.hearsay:
                    nursery.start_soon(self._try_address, address, over)
                elif self._may(address):
                    over_at = trio.current_time() + DIAL_TIMEOUT_S
                    hearsay.start_soon(self._try_hearsay, address, over_at)
                with trio.move_on_after(STAGGER_S):
                    await over.wait()
        if self._target.hearsay.issuperset(self._target.addresses):
            await trio.sleep_until(over_at)

    async def _try_hearsay(self, address: PeerAddress, over_at: float) -> None:
        """Dial hearsay. A failure shows in `missed` only when a silent address would have timed out."""
        problem = await self._attempt(address)
        await trio.sleep_until(over_at)
        self._note(address, problem)

    async def _try_address(self, address: PeerAddress, over: trio.Event) -> None:
        self._note(address, await self._attempt(address))
        over.set()

    async def _attempt(self, address: PeerAddress) -> Exception | None:
        try:
            self._win(address, await self._connect(address))
        except Exception as error:  # noqa: BLE001  # as in Host._admit: a remote's bytes can raise anything
            return error
        return None

    def _note(self, address: PeerAddress, problem: Exception | None) -> None:
        if isinstance(problem, Ourselves):
            self.ourselves.append(address)
        elif problem is not None:
            self.problems.append(problem)
            self.missed.append(address)
            if isinstance(problem, AnotherPeer):
                self.taken_over.append(address)

    async def _try_relays(self, peer: str) -> None:
        if not self._target.hopeless:
            with trio.move_on_after(CIRCUIT_AFTER_S):
                await self._all_failed.wait()
        tried: set[str] = set()
        while True:
            news = self._news()
            async with trio.open_nursery() as nursery:
                for relay in [relay for relay in self._relays(peer) if relay not in tried]:
                    tried.add(relay)
                    failed = trio.Event()
                    nursery.start_soon(self._try_relay, relay, peer, failed)
                    with trio.move_on_after(CIRCUIT_STAGGER_S):
                        await failed.wait()
            if self._all_failed.is_set():
                return
            await _first_of(news, self._all_failed)

    async def _try_relay(self, relay: str, peer: str, over: trio.Event) -> None:
        try:
            self._win(None, await self._connect_via_relay(relay, peer))
        except Exception as error:  # noqa: BLE001  # as above
            self.problems.append(error)
        finally:
            over.set()

    def _win(self, address: PeerAddress | None, link: Link) -> None:
        if self.winner is None:
            self.winner = address, link
        self._won.cancel()
