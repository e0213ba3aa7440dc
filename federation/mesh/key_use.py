"""How much the client keys were used at other entries, asked when a person looks: each entry counts for itself, since it
started (forward/client_keys.py).

    nothing   ->   message: [[hash of the key, requests, when the last one came], ...], of keys that were used there

Times are milliseconds since 1970, UTC. The asker leaves a node that does not know the protocol (an older one) alone for
DEAF_S. It believes a member's figures: they are for people, and no right hangs on them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import structlog
import trio

from federation.errors import PeerUnavailable, ProtocolViolation
from federation.mesh.client_keys import MAX_ROWS
from federation.net import wire
from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream

log = structlog.get_logger(__name__)

PROTOCOL = "/federation/key-use/1"
HASH_BYTES = 32
MAX_ANSWER_BYTES = MAX_ROWS * 64  # a row has 53 at most
MAX_REQUESTS, MAX_MS = 2**48, 2**42  # the year 2109
MAX_ASKED, AT_ONCE = 256, 32
ASK_S = 1.0  # a person waits; peers answer in a round trip or two
ANSWER_S = 5.0
FRESH_S, FRESH_A_PEER_S = 2.0, 0.05  # several people look at the same time, and a dashboard every 5 s
DEAF_S = 60.0
HEARD_A_SECOND, HEARD_AT_ONCE, MAX_PEERS = 1.0, 8.0, 4096  # of one peer; an honest one asks each FRESH_S


class Use(NamedTuple):
    """Of one key. `last_ms`: 0 if it was never used."""

    key_id: bytes
    requests: int
    last_ms: int


class Heard(NamedTuple):
    """`uses`: of all nodes that answered, a sum for each key. `asked`: all linked peers."""

    uses: dict[bytes, Use]
    answered: int
    asked: int


NOBODY = Heard({}, 0, 0)


class KeyUse:
    """Asks linked peers, and answers them. `own`: what this entry counted."""

    def __init__(self, host: Host, own: Callable[[], Iterable[Use]]) -> None:
        self._host = host
        self._own = own
        self._deaf: dict[str, float] = {}  # peer id: until
        self._last: tuple[float, Heard] | None = None
        self._asking = trio.Lock()
        self._hearings: Buckets[str] = Buckets(HEARD_A_SECOND, HEARD_AT_ONCE, max_keys=MAX_PEERS)
        host.handle_stream(PROTOCOL, self._answer)

    async def ask(self) -> Heard:
        """Ask all linked peers, and add up their counts. A peer has ASK_S to answer."""
        async with self._asking:
            fresh_s = FRESH_S + FRESH_A_PEER_S * len(self._host.links)
            if self._last is None or trio.current_time() - self._last[0] > fresh_s:
                self._last = trio.current_time(), await self._ask_all()
            return self._last[1]

    async def _ask_all(self) -> Heard:
        now = trio.current_time()
        self._deaf = {peer: until for peer, until in self._deaf.items() if until > now}
        everyone = list(self._host.links)
        peers = [peer for peer in everyone if peer not in self._deaf]
        limit, answers = trio.CapacityLimiter(AT_ONCE), list[list[Use]]()

        async def one(peer_id: str) -> None:
            async with limit:
                if (answer := await self._ask(peer_id)) is not None:
                    answers.append(answer)

        with trio.move_on_after(ASK_S):
            async with trio.open_nursery() as nursery:
                for peer_id in random.sample(peers, min(len(peers), MAX_ASKED)):
                    nursery.start_soon(one, peer_id)
        return Heard(summed(answers), len(answers), len(everyone))

    async def _ask(self, peer_id: str) -> list[Use] | None:
        try:
            async with await self._host.open_stream(peer_id, PROTOCOL) as stream:
                rows = await wire.receive_rows(stream, at_most=MAX_ANSWER_BYTES, rows=MAX_ROWS, fields=3)
                return [_use(row) for row in rows]
        except PeerUnavailable:
            if peer_id in self._host.links:  # else it is just not there
                self._deaf[peer_id] = trio.current_time() + DEAF_S
        except ProtocolViolation as error:
            self._host.report_violation(peer_id, error.detail)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("a peer did not say how much client keys were used", peer=peer_id, why=str(error))
        return None

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        async with stream:
            if not self._hearings.of(link.peer_id).take(trio.current_time()):
                return
            try:
                with trio.fail_after(ANSWER_S):
                    await wire.send(stream, [tuple(use) for use in self._own()][:MAX_ROWS])
                    await stream.send_eof()
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                log.debug("a question was not answered", peer=link.peer_id, why=type(error).__name__)


def summed(answers: Sequence[Iterable[Use]]) -> dict[bytes, Use]:
    total: dict[bytes, Use] = {}
    for answer in answers:
        for key_id, requests, last_ms in answer:
            before = total.get(key_id, Use(key_id, 0, 0))
            total[key_id] = Use(key_id, before.requests + requests, max(before.last_ms, last_ms))
    return total


def _use(row: list[object]) -> Use:
    match row:
        case [bytes(key_id), int(requests), int(last_ms)] if (
            len(key_id) == HASH_BYTES and 0 <= requests <= MAX_REQUESTS and 0 <= last_ms <= MAX_MS
        ):
            return Use(key_id, requests, last_ms)
    raise ProtocolViolation("the use of a key that makes no sense")
