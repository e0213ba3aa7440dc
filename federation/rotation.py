"""Rotation: a new token for the network, handed from member to member.

Any member may rotate. It tells the new token to each member that it is linked with, each of those tells theirs, and every
node keeps it before it says that it has it. While the grace lasts the former token admits too, so that nobody is cut off on
the way; then links whose peer is not known to have the new one are closed.

Rule 1: the new token goes only over a link, so only to a peer that proved its identity and a valid token, and only to who
was a member before the rotation and is not excepted (`keyring.members`).
Rule 2: it is taken only from a peer that has the present token itself, or that was a member at the last rotation and not
excepted: whom a rotation leaves out cannot answer with one of its own.

On a libp2p stream; each message is 4 bytes of length and msgpack:
    teller:  [token, grace left in ms, [peer ids that may be told]]
    told:    whether it has that token now
"""

from __future__ import annotations

import struct
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgpack
import structlog
import trio

from federation.errors import PeerUnavailable, ProtocolViolation, StateDirUnusable, TokenError
from federation.keyring import MAX_GRACE, MAX_MEMBERS, Keyring
from federation.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from federation.net.host import Host
    from federation.net.link import Link
    from federation.net.streams import TrioStream
    from federation.state import StateDir

log = structlog.get_logger(__name__)

TELL_TIMEOUT_S = 5.0
TELL_AGAIN_S = 5.0  # a member that did not answer
SETTLE_S = 10.0  # without a grace, linked members get this long to be told before their links are closed
MAX_MESSAGE_BYTES = 1024 * 1024  # MAX_MEMBERS ids of 60 bytes, and a token
MAX_ID = 128
_LENGTH = struct.Struct(">I")


class Rotation:
    """`keyring` is what admits now; `on_change()` is called when its token is another one."""

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
        self._has_it: set[str] = set()  # peers that have the present token: it told them, or they it
        self._telling: set[str] = set()
        self._told_at: dict[str, float] = {}  # trio time of the last try
        self._settled_at = 0.0  # trio time up to which links may stay whose peer is still to be told
        self._wake = trio.Event()
        self._answered = trio.Event()  # by somebody
        self._nursery: trio.Nursery | None = None
        self._protocol = keyring.token.rotation_protocol()
        host.handle_stream(self._protocol, self._answer)

    # What the handshake asks

    def valid_keys(self) -> list[bytes]:
        return self.keyring.valid_keys(self._utc_now())

    def retired_keys(self) -> list[bytes]:
        return self.keyring.retired_keys(self._utc_now())

    # What people ask

    async def rotate(self, *, grace: timedelta, members: Iterable[str], wait_s: float = TELL_TIMEOUT_S) -> list[str]:
        """A new token for the network; `members` (peer ids) may be told. Returns who of the linked was not told in `wait_s`.

        Raises StateDirUnusable, and nothing has changed.
        """
        if self.keyring.grace_end(self._utc_now()) is not None:  # whom the last rotation left out stays out
            left_in = self.keyring.members | (self._host.links.keys() - set(self._without_it()))
            members = left_in.intersection(members)
        self._take(self.keyring.token.rotated(), grace, members)
        log.warning("this node rotated the network's token", rotations=self.keyring.token.rotations, grace=str(grace))
        with trio.move_on_after(wait_s):
            while self.untold():
                self._answered = trio.Event()
                await self._answered.wait()
        return self.untold()

    def untold(self) -> list[str]:
        """Peers with a link that may be told and do not have the present token yet, as far as this node knows."""
        return [peer for peer in self._without_it() if peer in self.keyring.members]

    def left_out(self) -> list[str]:
        """Peers with a link that hold a former token and are not told the present one."""
        return [peer for peer in self._without_it() if peer not in self.keyring.members]

    # Running

    def peer_up(self, link: Link) -> None:
        if link.peer in self.left_out():
            log.warning("a peer came with the former token and is not told the new one", peer=link.peer)
        self._told_at.pop(link.peer, None)
        self._wake.set()

    async def run(self) -> None:
        """Tell, and cut off who is left out when the time has come. Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                self._wake = trio.Event()
                self._cut()
                next_try = self._tell_untold()
                with trio.CancelScope(deadline=min(next_try, self._next_cut())):
                    await self._wake.wait()

    def _cut(self) -> None:
        """Close the links by which nobody may stay."""
        valid = self.valid_keys()
        if len(valid) == 1:  # no grace, or no longer
            for peer in self.left_out():
                self._host.cut(peer, "its token is no longer valid")
            if trio.current_time() >= self._settled_at:
                for peer in self.untold():
                    self._host.cut(peer, "its token is no longer valid, and it did not take the new one")

    def _next_cut(self) -> float:
        """trio time."""
        now = trio.current_time()
        end = self.keyring.next_end(self._utc_now())
        if end is not None:
            return now + max((end - self._utc_now()).total_seconds(), 0.0)
        return self._settled_at if self._settled_at > now else float("inf")

    def _tell_untold(self) -> float:
        """Returns when to look again, trio time."""
        assert self._nursery is not None
        now = trio.current_time()
        next_try = float("inf")
        for peer in self.untold():
            if peer in self._telling:
                continue
            again_at = self._told_at.get(peer, -TELL_AGAIN_S) + TELL_AGAIN_S
            if again_at <= now:
                self._telling.add(peer)
                self._nursery.start_soon(self._tell, peer)
            else:
                next_try = min(next_try, again_at)
        return next_try

    async def _tell(self, peer: str) -> None:
        keyring = self.keyring
        end = keyring.grace_end(self._utc_now())
        grace = timedelta(0) if end is None else end - self._utc_now()
        message = [keyring.token.encode(), grace // timedelta(milliseconds=1), sorted(keyring.members)]
        try:
            with trio.fail_after(TELL_TIMEOUT_S):
                async with await self._host.open_stream(peer, self._protocol) as stream:
                    await _send(stream, message)
                    has_it = await _receive(stream) is True
            if has_it and keyring is self.keyring:
                self._has_it.add(peer)
        except (PeerUnavailable, ProtocolViolation, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("a member was not told the new token yet", peer=peer, why=str(error) or type(error).__name__)
        finally:
            self._telling.discard(peer)
            self._told_at[peer] = trio.current_time()
            self._answered.set()
            self._wake.set()

    # Told

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        peer = link.peer
        try:
            with trio.fail_after(TELL_TIMEOUT_S):
                async with stream:
                    await _send(stream, self._hear(peer, await _receive(stream)))
                    await stream.send_eof()
        except (ProtocolViolation, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("a peer did not hand on a token as it should", peer=peer, why=str(error) or type(error).__name__)

    def _hear(self, peer: str, message: object) -> bool:
        """Whether this node has that token now. Raises ProtocolViolation."""
        token, grace, members = _read(message)
        present = self.keyring.token
        if not token.names_the_network_of(present):
            raise ProtocolViolation("a token of another network")
        if token.secret == present.secret:
            self._knows(peer)
            return True
        if not token.supersedes(present):
            return False  # it will hear ours
        if peer in self._without_it() and peer not in self.keyring.members:
            log.warning("a peer that is left out of a rotation offered a token; it is not taken", peer=peer)
            return False
        try:
            self._take(token.with_addresses(present.addresses), grace, members)
        except StateDirUnusable as error:
            log.error("the network's token was rotated, and this node cannot keep the new one", why=error.detail)
            return False
        log.warning("the network's token was rotated", by_way_of=peer, rotations=token.rotations, grace=str(grace))
        self._knows(peer)
        return True

    def _knows(self, peer: str) -> None:
        self._has_it.add(peer)
        self._answered.set()

    # Both

    def _take(self, token: Token, grace: timedelta, members: Iterable[str]) -> None:
        """Kept first: a node that forgot it in a restart would be out. Raises StateDirUnusable."""
        keyring = self.keyring.take(token, grace=grace, members=members, now=self._utc_now())
        self._state.save_rotation(keyring.as_saved())
        self._state.save_token(token.encode())
        self.keyring = keyring
        self._has_it.clear()
        self._told_at.clear()
        self._settled_at = trio.current_time() + SETTLE_S
        self._on_change()
        self._wake.set()

    def _without_it(self) -> list[str]:
        own = self.keyring.token.admission_key()
        return [peer for peer, link in self._host.links.items() if link.admission_key != own and peer not in self._has_it]


def _read(message: object) -> tuple[Token, timedelta, frozenset[str]]:
    match message:
        case [str(text), int(grace_ms), list(members)] if 0 <= grace_ms <= MAX_GRACE // timedelta(milliseconds=1):
            pass
        case _:
            raise ProtocolViolation("a rotation is a token, a grace and a list of members")
    if len(members) > MAX_MEMBERS or not all(isinstance(m, str) and 0 < len(m) <= MAX_ID for m in members):
        raise ProtocolViolation("members are a list of peer ids")
    try:
        return Token.decode(text), timedelta(milliseconds=grace_ms), frozenset(members)
    except TokenError:
        raise ProtocolViolation("what is handed on is no token") from None


async def _send(stream: TrioStream, message: object) -> None:
    data = msgpack.packb(message)
    await stream.send_all(_LENGTH.pack(len(data)) + data)


async def _receive(stream: TrioStream) -> Any:
    """Raises ProtocolViolation."""
    (length,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolViolation(f"a message of {length} bytes")
    try:
        return msgpack.unpackb(await _exactly(stream, length))
    except ValueError:
        raise ProtocolViolation("a message that is not msgpack") from None


async def _exactly(stream: TrioStream, n: int) -> bytes:
    data = b""
    while len(data) < n:
        chunk = await stream.receive_some(n - len(data))
        if not chunk:
            raise ProtocolViolation("it ended early")
        data += chunk
    return data
