"""The dial loop: takes targets that are due from the address book, dials a few at a time, and notes each result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from federation.errors import (
    AnotherPeer,
    BannedByPeer,
    HandshakeFailed,
    IdentityCopied,
    PeerBanned,
    PeerCopied,
    TokenRefused,
    TokenRetired,
)
from federation.net.admission.warnings import REMIND_EVERY_S
from federation.net.dial.hearsay import Pace
from federation.net.dial.race import DIAL_TIMEOUT_S, Race
from federation.ratelimit import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.net.dial.address import PeerAddress
    from federation.net.dial.book import AddressBook, Target
    from federation.net.link.link import Link

log = structlog.get_logger(__name__)

MAX_DIALS = 16
MAX_HEARSAY_DIALS = 64  # each failure takes as long as silence would, so 12 a second can fail
# Unverified peers may be fake and numerous, so they have their own limit and never delay dials to known peers.
HEARSAY_A_SECOND, HEARSAY_AT_ONCE = 20.0, 500.0
HEARSAY_PAUSE_S = 0.25
NO_ADDRESS = "none of its addresses can be dialled from here now"

_FOR_GOOD = (TokenRefused, PeerBanned, BannedByPeer, IdentityCopied, PeerCopied)  # an early retry is of no use


class Dialler(Protocol):
    """The host, as the dial loop uses it."""

    peer_id: str
    book: AddressBook
    links: dict[str, Link]

    def is_to_dial(self, peer_id: str) -> bool: ...
    async def connect(self, address: PeerAddress) -> Link: ...
    async def connect_via_relay(self, relay_id: str, peer_id: str) -> Link: ...
    def warn(self, event: str, where: str, every_s: float | None = None, **details: object) -> None: ...
    def report_token_retired(self, error: TokenRetired) -> None: ...
    def report_copied(self) -> None: ...


class DialLoop:
    """Call `look` when the book may have news, `routes_changed` when there may be a new relay to a peer being dialled."""

    def __init__(self, host: Dialler) -> None:
        self._host = host
        self.not_reached: dict[str, str] = {}  # peer or address whose last dial failed -> reason
        self.routes: Callable[[str], Sequence[str]] = lambda _peer: ()  # peer -> its relays
        self._routes_changed = trio.Event()
        self._dials = trio.CapacityLimiter(MAX_DIALS)
        self._hearsay_dials = trio.CapacityLimiter(MAX_HEARSAY_DIALS)
        self.pace = Pace()
        self._hearsay = Bucket(HEARSAY_A_SECOND, HEARSAY_AT_ONCE)
        self._races: set[Race] = set()
        self._look = trio.Event()

    def look(self) -> None:
        self._look.set()

    def routes_changed(self) -> None:
        self._routes_changed.set()
        self._routes_changed = trio.Event()

    def start_over(self) -> None:
        """This machine has moved: give up the dials that began at its former addresses, and dial anew."""
        for race in self._races:
            race.give_up()

    async def run(self) -> None:
        host, book = self._host, self._host.book
        async with trio.open_nursery() as nursery:
            while True:
                self._look = trio.Event()
                now = trio.current_time()
                look_again = float("inf")
                for target in book.due(now, connected=_NotToDial(host), self_id=host.peer_id):
                    if not target.proven and not self._hearsay.take(now):
                        look_again = now + HEARSAY_PAUSE_S
                        break
                    book.started(target)
                    nursery.start_soon(self._dial, target)
                next_due = book.next_due(now)
                with trio.CancelScope(deadline=look_again if next_due is None else min(next_due, look_again)):
                    await self._look.wait()

    async def _dial(self, target: Target) -> None:
        host = self._host
        race = Race(
            target, self.routes, news=lambda: self._routes_changed, connect=host.connect,
            connect_via_relay=host.connect_via_relay, may=self._may_dial,
        )  # fmt: skip
        self._races.add(race)
        lines = self._hearsay_dials if _is_in_doubt(target) else self._dials
        async with trio.open_nursery() as nursery, lines:
            if target.peer_id not in host.links:  # the peer may have connected while this dial waited for its turn
                nursery.start_soon(race.run)
                await race.settled.wait()
            self._came_of_it(target, race)
            is_over = race.winner is not None
        self._races.discard(race)
        if race.winner is not None and not is_over:  # hearsay led to the peer, later than the other addresses failed
            self._came_of_it(target, race)
        for address in race.missed:
            host.book.missed(address, trio.current_time())
        for address in race.ourselves:
            host.book.ourselves(address)

    def _may_dial(self, address: PeerAddress) -> bool:
        """Whether the pace allows a dial to hearsay now. If so, the next one waits until silence would have timed out."""
        now = trio.current_time()
        if not self.pace.take(address.host, now):
            return False
        self._host.book.leave_alone(address, now + DIAL_TIMEOUT_S)
        return True

    def _came_of_it(self, target: Target, race: Race) -> None:
        host, book = self._host, self._host.book
        now = trio.current_time()
        for address in race.ourselves:
            book.ourselves(address)
        for address in race.missed:
            book.missed(address, now)
        self.not_reached.pop(_where(target), None)
        if race.winner is None and target.peer_id in host.links:
            book.reached(target, now)
        elif race.winner is None:
            no = next((p for p in race.problems if isinstance(p, _FOR_GOOD)), None)
            book.failed(target, now, permanent=no is not None)
            for address in race.taken_over:
                book.taken_over(address)
            self._warn(target, no, race.problems)
        elif race.winner[0] is None:
            for address in target.addresses:  # also those that have not answered yet
                book.missed(address, now)
            book.reached(target, now)
        else:
            if race.winner[0] in target.hearsay:
                self.pace.found(race.winner[0].host, now)
            book.succeeded(race.winner[0], race.winner[1].peer_id, now)
        self.look()

    def _warn(self, target: Target, no: HandshakeFailed | None, problems: list[Exception]) -> None:
        where = _where(target)
        if isinstance(no, TokenRetired):
            self._host.report_token_retired(no)
        elif isinstance(no, IdentityCopied):
            self._host.report_copied()
        elif isinstance(no, TokenRefused):
            self._host.warn("the peer belongs to another network: it refused our token, or we its", where)
        elif isinstance(no, PeerBanned | BannedByPeer | PeerCopied):
            self._host.warn(str(no), where, REMIND_EVERY_S)
        elif any(isinstance(problem, AnotherPeer) for problem in problems):
            self._host.warn("another peer answers at the address of this one", where, REMIND_EVERY_S)
        elif any(isinstance(problem, HandshakeFailed) for problem in problems):
            self._host.warn("what answers there is not a member of a federation", where)
        else:
            whys = list(dict.fromkeys(map(_in_words, problems))) or [NO_ADDRESS]
            self.not_reached[where] = "; ".join(whys)
            log.debug("peer not reached", peer=where, why=whys)


def _is_in_doubt(target: Target) -> bool:
    """Whether the target may be made up: by a record, or by a member that announces many on the local network."""
    return not target.proven or (bool(target.addresses) and target.hearsay.issuperset(target.addresses))


def _where(target: Target) -> str:
    return target.peer_id or str(target.addresses[0])


class _NotToDial:
    """The peers that this node does not dial, as a set for the book."""

    def __init__(self, host: Dialler) -> None:
        self._host = host

    def __contains__(self, peer: object) -> bool:
        return not self._host.is_to_dial(str(peer))


def _in_words(problem: Exception) -> str:
    if isinstance(problem, trio.TooSlowError):
        return f"no answer within {DIAL_TIMEOUT_S:g} s"
    cause = problem.__cause__ if isinstance(problem, OSError) and not problem.errno else problem  # trio's, of all addresses
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(problem) or type(problem).__name__
