"""Rotation: a new token for the network, by order of its owner, handed from member to member.

The owner's key signs the order (owner.py), at one member. That member hands order and secret to each member that it is
linked with, and these to theirs. Every node saves both before it acknowledges them. During the grace the former token admits
too, so that no member is cut off on the way; afterwards a node closes links to peers that may still lack the new token.

Rule 1: the new secret goes only over a link, so only to a peer that proved its identity and a valid token, and only if the
order names that peer and the order before it, while its former token admits, did not leave that peer out.
Rule 2: a node takes the secret only with the owner's signature, and only over a live link: the teller decides nothing.
Rule 3: without an owner a node hands on and takes nothing. It refuses rotations from members of earlier versions.

On a libp2p stream:
    teller:  the secret (32 bytes), the signature (64), the order as a message of net/wire.py
    told:    1 if it has that token now, else 0 (1 byte)
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import NotDone, PeerUnavailable, ProtocolViolation, StateDirUnusable, TokenError
from federation.mesh.owner import (
    MAX_MEMBERS,
    MAX_ORDER_BYTES,
    SIGNATURE_BYTES,
    Order,
    SignedOrder,
    hash_of,
    number_of,
    order_of,
)
from federation.mesh.tokens import SECRET_BYTES
from federation.net import wire
from federation.net.admission.warnings import REMIND_EVERY_S
from federation.ratelimit import Bucket, Buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from federation.mesh.keyring import Keyring
    from federation.mesh.tokens import Token
    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream
    from federation.state import StateDir

log = structlog.get_logger(__name__)

TELL_TIMEOUT_S = 5.0
TELL_AGAIN_S = 5.0  # a member that did not answer
UNTOLD_STAY_S = 10.0  # without a grace, linked members get this long to be told before their links are closed
# A node saves each rotation and begins a multicast session. An owner may correct a rotation at once; other nodes take one
# more, because a late messenger brings two rotations closer together than they were signed.
ROTATIONS_A_SECOND, ROTATED_AT_ONCE, TAKEN_AT_ONCE = 1 / 60, 2, 3
HEARINGS_A_SECOND, HEARINGS_AT_ONCE = 1.0, 8.0  # of one peer: an honest one has one every TELL_AGAIN_S
MAX_AHEAD = 10_000  # rotations that a node may have missed; one a minute makes so many in a week
LOOK_AGAIN_S = 30.0  # for the end of a grace
PREPARED_S = 60.0  # for a person's owner key to sign the order
_YES, _NO = b"\x01", b"\x00"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rotation that waits for the owner's signature. `at`: trio's time."""

    token: Token
    order: Order
    at: float


@dataclass(frozen=True, slots=True)
class _Told:
    """A rotation as a peer handed it over, unchecked."""

    secret: bytes = field(repr=False)
    signature: bytes
    order: bytes


class Rotation:
    """Spreads rotations. `keyring` has the keys that admit now; this calls `on_change()` when its token changed."""

    def __init__(
        self,
        *,
        host: Host,
        keyring: Keyring,
        state: StateDir,
        utc_now: Callable[[], datetime],
        on_change: Callable[[], None],
    ) -> None:
        self.keyring = keyring
        self._host = host
        self._state = state
        self._utc_now = utc_now
        self._on_change = on_change
        self._message = _message(keyring)
        self._confirmed: set[str] = set()  # peers that have the present token: this node told them, or they told this node
        self._telling: set[str] = set()
        self._hearing: set[str] = set()
        self._last_try_at: dict[str, float] = {}  # trio time of the last try
        self._cut_untold_at = 0.0  # trio time until which links to untold peers may stay
        self._made = Bucket(ROTATIONS_A_SECOND, ROTATED_AT_ONCE)
        self._taken = Bucket(ROTATIONS_A_SECOND, TAKEN_AT_ONCE)
        self._hearings: Buckets[str] = Buckets(HEARINGS_A_SECOND, HEARINGS_AT_ONCE, max_keys=MAX_MEMBERS)
        self._writing = trio.Lock()
        self._wake = trio.Event()
        self._answered = trio.Event()  # by some peer
        self._nursery: trio.Nursery | None = None
        self._protocol = keyring.token.rotation_protocol()
        host.handle_stream(self._protocol, self._answer if keyring.token.owner else self._refuse)

    # For the handshake

    def valid_keys(self) -> list[bytes]:
        return self.keyring.valid_keys(self._utc_now())

    def retired_keys(self) -> list[bytes]:
        return self.keyring.retired_keys(self._utc_now())

    # For people

    def prepare(self, *, grace: timedelta, members: Iterable[str]) -> Prepared:
        """Make a new token and an unsigned order that lets `members` (peer ids) receive the token.

        This changes nothing yet. Raises NotDone if the network has no owner, or was rotated as often as can be.
        """
        present = self.keyring.token
        if not present.owner:
            raise NotDone(NO_OWNER)
        if self.keyring.grace_end(self._utc_now()) is not None:  # peers that the last rotation left out stay out
            members = (self.keyring.insiders | self._holders()).intersection(members)
        try:
            token = present.rotated()
        except TokenError:
            raise NotDone("this token was rotated as often as can be; begin a new network: `federation token new`") from None
        issued_ms = int(self._utc_now().timestamp() * 1000)
        everybody = {*members, self._host.peer_id}
        order = order_of(token.names, token.rotations, token.secret, issued_ms=issued_ms, grace=grace, members=everybody)
        return Prepared(token, order, trio.current_time())

    async def carry_out(self, prepared: Prepared, signature: bytes, *, wait_s: float = TELL_TIMEOUT_S) -> list[str]:
        """Carry out a prepared rotation that the owner signed. Returns the linked members not told within `wait_s`.

        Raises NotDone or StateDirUnusable; then nothing has changed.
        """
        now = trio.current_time()
        try:
            signed = SignedOrder.check(prepared.token.owner, prepared.order.encode(), signature)
        except ProtocolViolation:
            raise NotDone("this is not the signature of the network's owner; nothing has changed") from None
        if now - prepared.at > PREPARED_S:
            raise NotDone(f"the rotation was prepared more than {PREPARED_S:g} s ago; run it again")
        if (left := self._made.left(now)) < 1:
            wait = (1 - left) / ROTATIONS_A_SECOND
            raise NotDone(f"the token was rotated {ROTATED_AT_ONCE} times in a minute; run it again in {wait:.0f} s")
        if not await self._adopt(prepared.token, signed):
            raise NotDone("the token was rotated meanwhile, by another node; run it again if one more is wanted")
        self._made.take(now)
        log.warning("this node rotated the network's token", rotations=signed.order.number, grace=_grace(signed))
        with trio.move_on_after(wait_s):
            while self.untold():
                self._answered = trio.Event()
                await self._answered.wait()
        return self.untold()

    def untold(self) -> list[str]:
        """Linked peers that may receive the present token and, as far as this node knows, do not have it yet."""
        return [peer for peer in self._without_it() if self._may_be_told(peer)]

    def left_out(self) -> list[str]:
        """Linked peers that hold a former token and may not receive the present one."""
        return [peer for peer in self._without_it() if not self._may_be_told(peer)]

    # Running

    def peer_up(self, link: Link) -> None:
        if link.peer_id in self.left_out():
            log.warning("a peer came with the former token and is not told the new one", peer=link.peer_id)
        self._last_try_at.pop(link.peer_id, None)
        self._wake.set()

    async def run(self) -> None:
        """Hand the token on, and close the links of left-out peers when the time has come. Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                self._wake = trio.Event()
                self._cut()
                next_try = self._tell_untold()
                with trio.CancelScope(deadline=min(next_try, self._next_cut())):
                    await self._wake.wait()

    def _cut(self) -> None:
        """Close the links whose key or peer is no longer admitted."""
        valid = self.valid_keys()
        if len(valid) == 1:  # no grace, or no longer
            for peer in self.left_out():
                self._host.cut(peer, "its token is no longer valid")
            if trio.current_time() >= self._cut_untold_at:
                for peer in self.untold():
                    self._host.cut(peer, "its token is no longer valid, and it did not take the new one")

    def _next_cut(self) -> float:
        """The time of the next `_cut`, trio time."""
        now = trio.current_time()
        end = self.keyring.next_end(self._utc_now())
        if end is not None:
            # Trio's clock stands still while the machine sleeps, the grace does not.
            return now + min(max((end - self._utc_now()).total_seconds(), 0.0), LOOK_AGAIN_S)
        return self._cut_untold_at if self._cut_untold_at > now else float("inf")

    def _tell_untold(self) -> float:
        """Hand the token to members that lack it. Returns when to look again, trio time."""
        assert self._nursery is not None
        now = trio.current_time()
        next_try = float("inf")
        for peer in self.untold():
            if peer in self._telling:
                continue
            again_at = self._last_try_at.get(peer, -TELL_AGAIN_S) + TELL_AGAIN_S
            if again_at <= now:
                self._telling.add(peer)
                self._nursery.start_soon(self._tell, peer)
            else:
                next_try = min(next_try, again_at)
        return next_try

    async def _tell(self, peer_id: str) -> None:
        keyring = self.keyring
        try:
            with trio.fail_after(TELL_TIMEOUT_S):
                async with await self._host.open_stream(peer_id, self._protocol) as stream:
                    if keyring is not self.keyring or not keyring.may_be_told(
                        stream.link.peer_id, stream.link.admission_key
                    ):
                        return  # the link or the token changed while the stream opened
                    await stream.send_all(self._message)
                    has_it = await stream.receive_some(1) == _YES
            if has_it and keyring is self.keyring:
                self._confirmed.add(peer_id)
        except (PeerUnavailable, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("a member was not told the new token yet", peer=peer_id, why=str(error) or type(error).__name__)
        finally:
            self._telling.discard(peer_id)
            self._last_try_at[peer_id] = trio.current_time()
            self._answered.set()
            self._wake.set()

    # Told

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        # One at a time and bounded: each order may have MAX_ORDER_BYTES, and its signature is checked between connections.
        if link.peer_id in self._hearing or not self._hearings.of(link.peer_id).take(trio.current_time()):
            await stream.aclose()
            return
        self._hearing.add(link.peer_id)
        try:
            with trio.fail_after(TELL_TIMEOUT_S):
                async with stream:
                    has_it = await self._hear(link, await _receive(stream))
                    await stream.send_all(_YES if has_it else _NO)
                    await stream.send_eof()
        except ProtocolViolation as error:
            self._host.report_violation(link.peer_id, error.detail)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("a peer did not hand on a rotation as it should", peer=link.peer_id, why=type(error).__name__)
        finally:
            self._hearing.discard(link.peer_id)

    async def _hear(self, link: Link, told: _Told) -> bool:
        """Check and take a token. Returns whether this node has it now. Raises ProtocolViolation for a forged one."""
        present = self.keyring.token
        if not self._host.knows(link):
            return False  # the peer hung up after its message
        if hmac.compare_digest(told.secret, present.secret):
            self._note_holder(link.peer_id)
            return True
        if (number_of(told.order), told.secret) <= (present.rotations, present.secret):
            return False  # an old rotation, whatever its signature
        order = SignedOrder.check(present.owner, told.order, told.signature).order
        if order.names != present.names or order.secret_hash != hash_of(told.secret):
            raise ProtocolViolation("a rotation with a secret that its owner did not sign, or of another network")
        token = present.rotated(told.secret, order.number)
        if self._host.peer_id not in order.members:
            return False  # a node that the owner leaves out takes the token from no other member
        if order.number - present.rotations > MAX_AHEAD or not self._taken.take(trio.current_time()):
            self._host.warn("a rotation of the network's token is not taken: too many, or too far ahead", link.peer_id)
            return False
        try:
            taken = await self._adopt(token, SignedOrder(order, told.signature))
        except StateDirUnusable as error:
            log.error("the network's token was rotated, and this node cannot keep the new one", why=error.detail)
            return False
        if taken:
            log.warning("the network's token was rotated", by_way_of=link.peer_id, rotations=order.number)
            self._note_holder(link.peer_id)
        return taken

    async def _refuse(self, link: Link, stream: TrioStream) -> None:
        """Refuse, unread, a rotation of an earlier version: any member could have made it."""
        async with stream:
            self._host.warn(
                "a member rotated the network's token; not taken, since it has no owner", link.peer_id, REMIND_EVERY_S
            )

    def _note_holder(self, peer_id: str) -> None:
        self._confirmed.add(peer_id)
        self._answered.set()

    # Both

    async def _adopt(self, token: Token, signed: SignedOrder) -> bool:
        """Save the token, then use it: a node that forgot it in a restart would be out. False if a newer one came meanwhile.

        Raises StateDirUnusable.
        """
        async with self._writing:
            if not token.supersedes(self.keyring.token):
                return False
            keyring = self.keyring.take(token, signed, now=self._utc_now(), holders=self._holders())
            message = _message(keyring)
            await trio.to_thread.run_sync(self._keep, keyring)
            self.keyring, self._message = keyring, message
        self._confirmed.clear()
        self._last_try_at.clear()
        self._cut_untold_at = trio.current_time() + UNTOLD_STAY_S
        self._on_change()
        self._wake.set()
        return True

    def _keep(self, keyring: Keyring) -> None:
        """Save the keyring. Runs on a thread, because it waits for the disk."""
        self._state.save_rotation(keyring.as_saved())
        self._state.save_token(keyring.token.encode(), replaces=keyring.token.is_same_network)

    def _without_it(self) -> list[str]:
        own = self.keyring.token.admission_key()
        return [peer for peer, link in self._host.links.items() if link.admission_key != own and peer not in self._confirmed]

    def _holders(self) -> set[str]:
        """Peers with a link that have the present token, as far as this node knows."""
        return self._host.links.keys() - set(self._without_it())

    def _may_be_told(self, peer_id: str) -> bool:
        return self.keyring.may_be_told(peer_id, self._host.links[peer_id].admission_key)


NO_OWNER = (
    "this network's token has no owner key, so it cannot be rotated. Make a new network: `federation token new > FILE` "
    "(after `umask 077`), then on each machine that stays, `federation join --token-file FILE`"
)


def _message(keyring: Keyring) -> bytes:
    """The message to members; empty if there is none to tell. Made once, because it sorts up to MAX_MEMBERS ids."""
    if keyring.order is None:
        return b""
    return keyring.token.secret + keyring.order.signature + wire.framed(keyring.order.order.encode())


def _grace(signed: SignedOrder) -> str:
    return str(timedelta(milliseconds=signed.order.grace_ms))


async def _receive(stream: TrioStream) -> _Told:
    """Read a rotation. Raises ProtocolViolation, and BrokenResourceError if the stream ends early: a peer may go."""
    head = await wire.read_exactly(stream.receive_some, SECRET_BYTES + SIGNATURE_BYTES)
    order = await wire.receive_bytes(stream, at_most=MAX_ORDER_BYTES)
    return _Told(head[:SECRET_BYTES], head[SECRET_BYTES:], order)
