"""Orders of the network's owner to one node: drain, undrain. Any member carries an order; only the owner's key makes one.

On a libp2p stream of the carrier's link to that node; each message is 4 bytes of length and msgpack:
    carrier:  the order's name
    node:     32 random bytes
    carrier:  the owner's signature, of: the network's names, the bytes, the node's peer id, the order's name
    node:     {"draining": bool, "in_flight": count, "clients": count}, or {"refused": why}
`look` is no order: the node answers it at once, to every member.

Rule 1: the bytes are good for one stream and MAX_WAIT_S, so no clock is compared, nothing is kept on disk, and a signature
is of no use to whoever saw it, nor at another node.
Rule 2: a name that a node does not know, or a network without an owner, is refused in words, and costs nobody a link. A node
of a version without such orders refuses the stream.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
import trio

from federation.errors import NotDone, PeerUnavailable, ProtocolViolation
from federation.mesh.owner import REMOTE_ORDER, SIGNATURE_BYTES, is_signed
from federation.net import wire
from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.mesh.tokens import Token
    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream

log = structlog.get_logger(__name__)

ORDERS = ("drain", "undrain")
LOOK = "look"
NONCE_BYTES = 32
MAX_WAIT_S = 60.0  # for a person's key to sign
ANSWER_S = 5.0
MAX_NAME_BYTES, MAX_ANSWER_BYTES = 64, 1024
HEARD_A_SECOND, HEARD_AT_ONCE, MAX_PEERS = 2.0, 16.0, 4096  # of one peer; `drain --node --wait` looks once a second
HEARD_OF_A_PEER = 4  # under way
UNKNOWN_THERE = (
    "that node does not take orders from here: its version of federation is older. Run `federation {order}` on that machine"
)


class Load(NamedTuple):
    """What a node says of itself behind an order."""

    draining: bool
    in_flight: int
    clients: int


@dataclass(slots=True)
class Prepared:
    """An order that waits for the owner's signature, with the stream on which the node waits for it."""

    peer_id: str
    order: str
    text: bytes
    owner: bytes
    stream: TrioStream = field(repr=False)


class Remote:
    """Gives orders to other nodes, and takes theirs. `carry_out(order)` does it here; `load()` is this node's own."""

    def __init__(
        self, *, host: Host, token: Callable[[], Token], carry_out: Callable[[str], None], load: Callable[[], Load]
    ) -> None:
        self._host = host
        self._token = token
        self._carry_out = carry_out
        self._load = load
        self._hearings: Buckets[str] = Buckets(HEARD_A_SECOND, HEARD_AT_ONCE, max_keys=MAX_PEERS)
        self._hearing: Counter[str] = Counter()
        host.handle_stream(token().orders_protocol(), self._answer)

    # Giving. Raises NotDone, with the reason in words.

    async def look(self, peer_id: str) -> Load:
        stream = await self._open(peer_id, "status")
        try:
            with trio.fail_after(ANSWER_S):
                await wire.send(stream, LOOK)
                return _load(await wire.receive(stream, at_most=MAX_ANSWER_BYTES))
        except (trio.BrokenResourceError, trio.TooSlowError, ProtocolViolation) as error:
            raise NotDone(_no_answer(error)) from None
        finally:
            await _closed(stream)

    async def prepare(self, peer_id: str, order: str) -> Prepared:
        """Fetch what the owner has to sign. The caller must `carry_out` or `drop` it."""
        token = self._token()
        if not token.owner:
            raise NotDone(NO_OWNER)
        stream = await self._open(peer_id, order)
        try:
            with trio.fail_after(ANSWER_S):
                await wire.send(stream, order)
                nonce = await wire.receive(stream, at_most=MAX_ANSWER_BYTES)
            if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
                _load(nonce)  # raises what the node says instead
                raise ProtocolViolation("it answered before it was told")
        except (trio.BrokenResourceError, trio.TooSlowError, ProtocolViolation) as error:
            await _closed(stream)
            raise NotDone(_no_answer(error)) from None
        except BaseException:
            await _closed(stream)
            raise
        return Prepared(peer_id, order, order_bytes(token.names, nonce, peer_id, order), token.owner, stream)

    async def carry_out(self, prepared: Prepared, signature: bytes) -> Load:
        try:
            if not is_signed(prepared.owner, prepared.text, signature, REMOTE_ORDER):
                raise NotDone("this is not the signature of the network's owner; nothing has changed")
            with trio.fail_after(ANSWER_S):
                await wire.send(prepared.stream, signature)
                return _load(await wire.receive(prepared.stream, at_most=MAX_ANSWER_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ProtocolViolation) as error:
            raise NotDone(f"{_no_answer(error)}; look at `federation peers` before you run it again") from None
        finally:
            await _closed(prepared.stream)

    async def drop(self, prepared: Prepared) -> None:
        await _closed(prepared.stream)

    async def _open(self, peer_id: str, order: str) -> TrioStream:
        try:
            with trio.fail_after(ANSWER_S):
                return await self._host.open_stream(peer_id, self._token().orders_protocol())
        except PeerUnavailable as error:
            if peer_id in self._host.links:
                log.debug("a node takes no orders", peer=peer_id, why=error.detail)
                raise NotDone(UNKNOWN_THERE.format(order=order)) from None
            raise NotDone(f"this node has no connection to it: run `federation {order}` on that machine") from None
        except trio.TooSlowError as error:
            raise NotDone(_no_answer(error)) from None

    # Taking

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        peer_id = link.peer_id
        if self._hearing[peer_id] >= HEARD_OF_A_PEER or not self._hearings.of(peer_id).take(trio.current_time()):
            await stream.aclose()
            return
        self._hearing[peer_id] += 1
        try:
            async with stream:
                answer = await self._hear(link, stream)
                with trio.fail_after(ANSWER_S):
                    await wire.send(stream, answer)
                    await stream.send_eof()
        except ProtocolViolation as error:
            self._host.report_violation(peer_id, error.detail)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("an order did not come whole", peer=peer_id, why=str(error) or type(error).__name__)
        finally:
            self._hearing -= Counter([peer_id])  # no peer stays at 0

    async def _hear(self, link: Link, stream: TrioStream) -> dict[str, Any]:
        """Take an order, and return the answer. Raises ProtocolViolation for a forged one."""
        with trio.fail_after(ANSWER_S):
            order = await wire.receive(stream, at_most=MAX_NAME_BYTES)
        token = self._token()
        if order == LOOK:
            return self._load()._asdict()
        if not token.owner:
            return {"refused": NO_OWNER}
        if order not in ORDERS:
            return {"refused": "it does not know this order: its version of federation is older"}
        nonce = os.urandom(NONCE_BYTES)
        with trio.fail_after(MAX_WAIT_S):
            await wire.send(stream, nonce)
            signature = await wire.receive(stream, at_most=MAX_NAME_BYTES + SIGNATURE_BYTES)
        said = order_bytes(token.names, nonce, self._host.peer_id, order)
        if not isinstance(signature, bytes) or not is_signed(token.owner, said, signature, REMOTE_ORDER):
            raise ProtocolViolation("an order that the network's owner did not sign")
        if not self._host.knows(link):  # it was put out while it spoke
            raise trio.BrokenResourceError("the connection is closed")
        log.warning("the network's owner gives this node an order", order=order, by_way_of=link.peer_id)
        self._carry_out(order)
        return self._load()._asdict()


NO_OWNER = (
    "this network's token has no owner key, so no node takes orders from another one. Run the command on that machine itself"
)


def order_bytes(names: bytes, nonce: bytes, peer_id: str, order: str) -> bytes:
    """What the owner signs. The first two have a fixed length, and no peer id has a newline."""
    return names + nonce + f"{peer_id}\n{order}".encode()


def _load(answer: Any) -> Load:
    """Read a node's answer. Raises NotDone with its refusal, and ProtocolViolation for what is neither."""
    match answer:
        case {"draining": bool(draining), "in_flight": int(in_flight), "clients": int(clients)}:
            return Load(draining, max(0, in_flight), max(0, clients))
        case {"refused": str(why)}:
            raise NotDone(f"that node says no: {why[:300]}")
    raise ProtocolViolation("its answer makes no sense")


def _no_answer(error: Exception) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"that node did not answer within {ANSWER_S:g} s"
    return f"that node broke off ({error}); it may have waited too long, or be asked too often"


async def _closed(stream: TrioStream) -> None:
    with trio.CancelScope(shield=True):  # it only puts a frame into the link's buffer
        await stream.aclose()
