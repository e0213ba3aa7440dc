"""Client keys from member to member: a node that made or revoked one tells all members that it is linked with; these tell a
few more, for links that are missing. On each new link, and every EXCHANGE_EVERY_S with a peer chosen at random, both sides
compare their tables, so that a node that was away learns all.

On a libp2p stream; each message is 4 bytes of length and msgpack:
    dialler:   [[summary of its table]]; then its newest changes, [[signed], ...]
    listener:  [[summary]], after it took these in. Both end if the summaries are equal. Else:
    listener:  its digest, [[hash, mark], ...]
    dialler:   the rows that the listener lacks, in pages [[signed], ...] and an empty page; then the hashes that it lacks
    listener:  these rows, in pages and an empty page

A node that does not know the protocol (an older version) refuses the stream; after RETRIES it is left alone for DEAF_S.
Each row is checked before it is kept (client_keys.py); a forged one is the end of the link.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import PeerUnavailable, ProtocolViolation, StateDirUnusable
from federation.mesh.client_keys import MAX_ROWS, MAX_SIGNED_BYTES, KeyTable, Statement
from federation.net import wire
from federation.net.admission.warnings import REMIND_EVERY_S
from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from federation.mesh.tokens import Token
    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream
    from federation.state import StateDir

log = structlog.get_logger(__name__)

EXCHANGE_EVERY_S = 30.0
EXCHANGE_TIMEOUT_S = 5.0
RETRIES, RETRY_S = 3, 0.5  # where an exchange fails; each pause is twice the last one
DEAF_S = 60.0
AGAIN_S = 0.1  # changes that come faster travel together
FORWARDED = 3  # peers that a node tells what another one told it
AT_ONCE = 32  # exchanges that this node dials
NEWS = 32  # changes that travel without being asked for
PAGE = 64
MAX_PAGES = MAX_ROWS // PAGE + 1
MAX_PAGE_BYTES = PAGE * (MAX_SIGNED_BYTES + 8)
HEARD_A_SECOND, HEARD_AT_ONCE = 12.0, 64.0  # exchanges that one peer asks for; an honest one has one every AGAIN_S at most
HEARD_OF_A_PEER = 2  # under way
ROWS_A_SECOND, ROWS_AT_ONCE = 50.0, 2.0 * MAX_ROWS  # handed over by one peer: a signature takes 0.1 ms to check
_HASH, _MARK = 32, 8


class KeyExchange:
    """Holds the network's `table`, on disk too. `on_change` hears of every change. Raises StateDirUnusable where the saved
    table cannot be read: a node without it would let in whom the network keeps out."""

    def __init__(
        self,
        *,
        host: Host,
        token: Token,
        state: StateDir,
        utc_now: Callable[[], datetime],
        on_change: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
    ) -> None:
        self.table = KeyTable(token.names)
        self._host = host
        self._state = state
        self._network = token.network_id
        self._utc_now = utc_now
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._news: deque[bytes] = deque(maxlen=NEWS)
        self._untold: dict[str, None] = {}  # peers, in the order in which they are to be told
        self._talking: set[str] = set()
        self._failures: dict[str, int] = {}  # in a row
        self._quiet_until: dict[str, float] = {}  # trio time
        self._hearings: Buckets[str] = Buckets(HEARD_A_SECOND, HEARD_AT_ONCE, max_keys=MAX_ROWS)
        self._hearing: Counter[str] = Counter()
        self._rows: Buckets[str] = Buckets(ROWS_A_SECOND, ROWS_AT_ONCE, max_keys=MAX_ROWS)
        self._wake, self._unsaved = trio.Event(), trio.Event()
        self._saving = trio.Lock()
        self._protocol = token.keys_protocol()
        try:
            self.table.load(state.load_client_keys(self._network))
        except ProtocolViolation as error:
            raise StateDirUnusable(f"client-keys.json is damaged ({error.detail}); delete it to get it anew") from None
        host.handle_stream(self._protocol, self._answer)

    @property
    def now_ms(self) -> int:
        return int(self._utc_now().timestamp() * 1000)

    # For people

    async def add(self, text: str, statement: Statement) -> None:
        """Keep a new key, on disk too, and tell the others. Raises NotDone or StateDirUnusable."""
        row = self.table.add(self._state.identity(), text, statement, self.now_ms)
        try:
            await self._save()
        except StateDirUnusable:
            self.table.drop(row)
            raise
        self._changed([row.signed])
        self._tell(self._host.links)

    async def revoke(self, name: str) -> int:
        """Revoke the keys of that name, and tell the others. Returns how many. Raises NotFound or StateDirUnusable."""
        rows = self.table.revoke(self._state.identity(), name, self.now_ms)
        self._changed([row.signed for row in rows])
        self._tell(self._host.links)
        await self._save()
        return len(rows)

    def _changed(self, rows: list[bytes]) -> None:
        self._news += rows
        self._on_change()

    async def _save(self) -> None:
        async with self._saving:  # each file has one writer
            await trio.to_thread.run_sync(self._state.save_client_keys, self._network, self.table.dump())

    # Running

    def peer_up(self, link: Link) -> None:
        self._quiet_until.pop(link.peer_id, None)
        self._failures.pop(link.peer_id, None)
        if link.is_initiator:
            self._tell([link.peer_id])

    def _tell(self, peers: Iterable[str]) -> None:
        self._untold |= dict.fromkeys(peers)
        self._wake.set()

    async def run(self) -> None:
        """Tell the others, and save what they tell. Until cancelled."""
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._save_forever)
            nursery.start_soon(self._look_around_forever)
            while True:
                self._wake = trio.Event()
                for peer_id in [peer for peer in self._untold if peer not in self._talking]:
                    del self._untold[peer_id]
                    if self._quiet_until.get(peer_id, 0) <= trio.current_time():
                        self._talking.add(peer_id)
                        nursery.start_soon(self._talk, peer_id, limit)
                await self._wake.wait()

    async def _look_around_forever(self) -> None:
        while True:
            await trio.sleep(EXCHANGE_EVERY_S)
            links = self._host.links
            self._quiet_until = {peer: at for peer, at in self._quiet_until.items() if peer in links}
            self._failures = {peer: count for peer, count in self._failures.items() if peer in links}
            if links:
                self._tell([self._rng.choice(list(links))])

    async def _save_forever(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved = trio.Event()
            try:
                await self._save()
            except StateDirUnusable as error:
                log.error("client keys of other nodes cannot be saved; after a restart they come anew", why=error.detail)

    # An exchange

    async def _talk(self, peer_id: str, limit: trio.CapacityLimiter) -> None:
        try:
            async with limit:
                with trio.fail_after(EXCHANGE_TIMEOUT_S):
                    async with await self._host.open_stream(peer_id, self._protocol) as stream:
                        await self._ask(stream, peer_id)
            self._failures.pop(peer_id, None)
            await trio.sleep(AGAIN_S)
        except ProtocolViolation as error:
            self._host.report_violation(peer_id, error.detail)
        except (PeerUnavailable, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("client keys were not exchanged", peer=peer_id, why=str(error) or type(error).__name__)
            await self._pause_after_failure(peer_id)
        finally:
            self._talking.discard(peer_id)
            self._wake.set()

    async def _pause_after_failure(self, peer_id: str) -> None:
        """Its link may be slow, or the node of an older version, whose budget for vain streams is small."""
        failures = self._failures[peer_id] = self._failures.get(peer_id, 0) + 1
        if peer_id not in self._host.links:
            return
        if failures > RETRIES:
            self._quiet_until[peer_id] = trio.current_time() + DEAF_S
        else:
            await trio.sleep(RETRY_S * 2 ** (failures - 1))
            self._tell([peer_id])

    async def _ask(self, stream: TrioStream, peer_id: str) -> None:
        await wire.send(stream, [[self.table.summary]])
        await wire.send(stream, [[signed] for signed in self._news if self.table.knows(signed)])
        if await _summary(stream) == self.table.summary:
            await stream.send_eof()
            return
        theirs = await _digest(stream)
        await self._hand_over(stream, self.table.missing(theirs))
        await wire.send(stream, [[key_id] for key_id in self.table.wanted(theirs)])
        await self._take_pages(stream, peer_id)
        await stream.send_eof()

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        peer_id = link.peer_id
        if self._hearing[peer_id] >= HEARD_OF_A_PEER or not self._hearings.of(peer_id).take(trio.current_time()):
            self._host.warn("a peer exchanges client keys again and again; it has to wait", peer_id)
            await stream.aclose()
            return
        self._hearing[peer_id] += 1
        try:
            with trio.fail_after(EXCHANGE_TIMEOUT_S):
                async with stream:
                    await self._reply(stream, peer_id)
                    await stream.send_eof()
        except ProtocolViolation as error:
            self._host.report_violation(peer_id, error.detail)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("client keys were not exchanged", peer=peer_id, why=str(error) or type(error).__name__)
        finally:
            self._hearing -= Counter([peer_id])  # no peer stays at 0

    async def _reply(self, stream: TrioStream, peer_id: str) -> None:
        theirs = await _summary(stream)
        news = await wire.receive_rows(stream, at_most=MAX_PAGE_BYTES, rows=PAGE, fields=1)
        await self._take(news, peer_id)
        await wire.send(stream, [[self.table.summary]])
        if self.table.summary == theirs:
            return
        await wire.send(stream, self.table.digest())
        await self._take_pages(stream, peer_id)
        rows = await wire.receive_rows(stream, at_most=MAX_ROWS * (_HASH + 8), rows=MAX_ROWS, fields=1)
        wanted = [_bytes(row[0], _HASH) for row in rows]
        await self._hand_over(stream, self.table.rows_of(wanted))

    async def _hand_over(self, stream: TrioStream, rows: list[bytes]) -> None:
        for at in range(0, len(rows), PAGE):
            await wire.send(stream, [[signed] for signed in rows[at : at + PAGE]])
        await wire.send(stream, [])

    async def _take_pages(self, stream: TrioStream, peer_id: str) -> None:
        for _ in range(MAX_PAGES):
            page = await wire.receive_rows(stream, at_most=MAX_PAGE_BYTES, rows=PAGE, fields=1)
            if not page:
                return
            await self._take(page, peer_id)
        raise ProtocolViolation("client keys without end")

    async def _take(self, rows: list[list[object]], peer_id: str) -> None:
        new: list[bytes] = []
        try:
            for (signed,) in rows:
                if not isinstance(signed, bytes):
                    raise ProtocolViolation("a client key's row is bytes")
                if self.table.knows(signed):
                    continue
                if not self._rows.of(peer_id).take(trio.current_time()):
                    self._host.warn("a peer hands over client keys without end; it has to wait", peer_id)
                    raise trio.BrokenResourceError("client keys without end")
                await trio.lowlevel.checkpoint()  # a signature takes 0.1 ms
                row = self.table.read(signed)
                if row is None:
                    continue
                if self.table.merge(row, self.now_ms):
                    new.append(signed)
                elif row.statement.id not in self.table and row.statement.is_live(self.now_ms):
                    self._host.warn("there are too many client keys: newer ones are left out", "keys", REMIND_EVERY_S)
        finally:
            if new:
                self._changed_there(new, peer_id)

    def _changed_there(self, new: list[bytes], peer_id: str) -> None:
        self._changed(new)
        self._unsaved.set()
        others = [peer for peer in self._host.links if peer != peer_id]
        self._tell(self._rng.sample(others, min(FORWARDED, len(others))))


async def _summary(stream: TrioStream) -> bytes:
    rows = await wire.receive_rows(stream, at_most=64, rows=1, fields=1)
    if not rows:
        raise ProtocolViolation("client keys without a summary")
    return _bytes(rows[0][0], _HASH)


async def _digest(stream: TrioStream) -> dict[bytes, bytes]:
    rows = await wire.receive_rows(stream, at_most=MAX_ROWS * (_HASH + _MARK + 8), rows=MAX_ROWS, fields=2)
    return {_bytes(key_id, _HASH): _bytes(mark, _MARK) for key_id, mark in rows}


def _bytes(value: object, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ProtocolViolation("a hash that is none")
    return value
