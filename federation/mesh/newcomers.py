"""The door for newcomers at the node that made their invite: they prove its code (net/link/newcomer.py), wait for a person
if the invite says so, and get the network's present token, whatever token it was when the invite was made.

    newcomer:  hello NAME
    inviter:   wait NAME, every SAY_EVERY_S, until a person has said yes
    inviter:   go                  newcomer:  ready      so that nobody takes a use who has gone meanwhile
    inviter:   token TEXT          newcomer:  kept       when the token is on its disk
    inviter:   no REASON           at any moment, instead

Rule 1: a use is on this node's disk before a byte of the token leaves. Two that race for the last one meet in one step.
Rule 2: what a person sees of a newcomer is its proven peer id, its address, and a name that it chose itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import NotDone, NotFound, ProtocolViolation, StateDirUnusable
from federation.mesh.bans import find_peer
from federation.mesh.invite_codes import shown
from federation.mesh.invites import MAX_NAME_CHARS, MAX_REFUSED, Invite, Invites, Refusal
from federation.net.link.newcomer import MAX_HELLO_BYTES, Talk
from federation.ratelimit import Bucket
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from federation.net.host import Host
    from federation.net.link.handshake import SecureConn
    from federation.net.link.link import Link
    from federation.state import StateDir

log = structlog.get_logger(__name__)

ANSWER_S = 10.0  # for a newcomer's next message
KEPT_S = 30.0  # for it to write the token to its disk
SAY_EVERY_S = 10.0  # to one that waits
MAX_WAITING, MAX_WAITING_BY_ONE = 32, 8  # newcomers that wait for a person; of one invite
MAX_SERVED, MAX_SERVED_BY_ONE = 64, 16  # connections at once, those that wait among them; by one invite
NEWS_A_SECOND, NEWS_AT_ONCE = 0.2, 16.0  # a holder of a code may come again and again: lines in the log


@dataclass(eq=False, slots=True)
class Waiting:
    """A newcomer that waits for a person. `at`: trio's time when it came."""

    invite: Invite
    peer_id: str
    name: str
    address: str
    at: float
    news: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Newcomers:
    """`token()`: the text for a newcomer; `is_barred(peer_id)`: why a peer is kept out whatever invite it has, or None."""

    def __init__(
        self,
        *,
        host: Host,
        state: StateDir,
        network_id: str,
        name: Callable[[], str],
        token: Callable[[], str],
        is_barred: Callable[[str], Refusal | None],
        utc_now: Callable[[], datetime],
    ) -> None:
        self._host = host
        self._state = state
        self._network = network_id
        self._name = name
        self._token = token
        self._is_barred = is_barred
        self._utc_now = utc_now
        self._saving = trio.Lock()
        self._unsaved = trio.Event()
        self._handing: set[tuple[bytes, str]] = set()  # invite and peer, between the first and the last byte of a hand-over
        self._served: Counter[bytes] = Counter()  # connections, by invite
        self._said = Bucket(NEWS_A_SECOND, NEWS_AT_ONCE)
        self.waiting: dict[str, Waiting] = {}  # by peer id
        try:
            self.invites = Invites.from_saved(state.load_invites(network_id))
        except ValueError:
            log.warning("invites.json is damaged and ignored: codes that were made before are not taken; make new ones")
            self.invites = Invites()
        host.handle_newcomers(self._key_of, self._serve)

    @property
    def now_ms(self) -> int:
        return int(self._utc_now().timestamp() * 1000)

    def _key_of(self, invite_id: bytes) -> bytes | None:
        """Also of an invite that is over: its holders are told so."""
        invite = self.invites.get(invite_id)
        return None if invite is None else invite.key

    # For people

    async def make(self, invite: Invite) -> None:
        """Keep a new invite, on disk too. Raises NotDone or StateDirUnusable."""
        self.invites.add(invite, self.now_ms)
        try:
            await self._save()
        except StateDirUnusable:
            self.invites.drop(invite)
            raise

    async def revoke(self, text: str) -> list[Invite]:
        """End the open invites that `text` means. Raises NotFound, UsageError, NotDone or StateDirUnusable."""
        found = self.invites.find(text, self.now_ms)
        for invite in found:
            invite.revoked_ms = self.now_ms
        self._tell_waiting()
        await self._save()
        return found

    async def approve(self, peer: str) -> Waiting:
        """Say yes to a newcomer that waits. Raises NotFound, UsageError, NotDone or StateDirUnusable."""
        waiting = self._find(peer)
        waiting.invite.approved.append(waiting.peer_id)
        await self._decided(waiting)
        return waiting

    async def refuse(self, peer: str) -> Waiting:
        """Say no to a newcomer that waits, whenever it comes again by this invite. Raises as `approve`."""
        waiting = self._find(peer)
        waiting.invite.refused.append(waiting.peer_id)
        if len(waiting.invite.refused) >= MAX_REFUSED:
            waiting.invite.revoked_ms = self.now_ms
            log.warning("an invite was revoked: too many of its newcomers were refused", invite=shown(waiting.invite.id))
        await self._decided(waiting)
        return waiting

    async def _decided(self, waiting: Waiting) -> None:
        self._tell_waiting()
        await self._save()

    def _find(self, peer: str) -> Waiting:
        names = {peer_id: waiting.name for peer_id, waiting in self.waiting.items()}
        waiting = self.waiting.get(find_peer(peer, names, among="the newcomers that wait here"))
        if waiting is None:
            raise NotFound("this newcomer does not wait here; `federation approve` shows who does")
        if (problem := waiting.invite.problem(waiting.peer_id, self.now_ms)) is not None:
            raise NotDone(f"its invite no longer lets it in: {problem}")
        return waiting

    def _tell_waiting(self) -> None:
        for waiting in self.waiting.values():
            waiting.news.set()

    async def _save(self) -> None:
        async with self._saving:  # each file has one writer
            await trio.to_thread.run_sync(self._state.save_invites, self._network, self.invites.as_saved())

    async def run(self) -> None:
        """Save what is not urgent. Until cancelled."""
        while True:
            await self._unsaved.wait()
            self._unsaved = trio.Event()
            try:
                await self._save()
            except StateDirUnusable as error:
                log.error("a newcomer's confirmation cannot be saved", why=error.detail)

    def peer_up(self, link: Link) -> None:
        """A newcomer whose confirmation was lost on its way has the token: it is a member."""
        for invite in self.invites.unconfirmed(link.peer_id):
            self._confirm(invite, link.peer_id)

    def _confirm(self, invite: Invite, peer_id: str) -> None:
        invite.used[peer_id].confirmed = True
        self._unsaved.set()

    # A newcomer

    async def _serve(self, conn: SecureConn) -> None:
        peer_id, talk = str(conn.get_remote_peer()), Talk(conn)
        invite = self.invites.get(conn.invite)
        if invite is None:
            return  # forgotten since the proof
        if self._served.total() >= MAX_SERVED or self._served[invite.id] >= MAX_SERVED_BY_ONE:
            self._host.warn("too many newcomers at once; some are turned away for a while", shown(invite.id))
            return
        self._served[invite.id] += 1
        try:
            with trio.fail_after(ANSWER_S):
                name = await _hello(talk)
            if self._problem(invite, peer_id) is None and invite.needs_yes(peer_id):
                await self._wait(Waiting(invite, peer_id, name, _address(conn), trio.current_time()), talk)
            if (problem := self._problem(invite, peer_id)) is not None:
                await self._say_no(talk, invite, peer_id, problem)
            elif not invite.needs_yes(peer_id):
                await self._hand_over(talk, invite, peer_id, name)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("a newcomer went away", peer=peer_id, why=str(error) or type(error).__name__)
        except ProtocolViolation as error:
            self._host.warn("a newcomer does not speak as it should", peer_id, why=error.detail)
        finally:
            self._served -= Counter([invite.id])  # no invite stays at 0

    def _problem(self, invite: Invite, peer_id: str) -> Refusal | None:
        return self._is_barred(peer_id) or invite.problem(peer_id, self.now_ms)

    async def _say_no(self, talk: Talk, invite: Invite, peer_id: str, problem: Refusal) -> None:
        self._host.warn("a newcomer did not get the token", peer_id, why=problem, invite=shown(invite.id))
        with trio.fail_after(ANSWER_S):
            await talk.send("no", problem)

    async def _wait(self, waiting: Waiting, talk: Talk) -> None:
        """Return when a person has decided, or the invite has ended. Raises BrokenResourceError if the newcomer goes."""
        before = self.waiting.pop(waiting.peer_id, None)
        if before is not None:  # the same machine came again: its former connection is dead, or about to be
            before.scope.cancel()
        of_this = sum(other.invite is waiting.invite for other in self.waiting.values())
        if len(self.waiting) >= MAX_WAITING or of_this >= MAX_WAITING_BY_ONE:
            await self._say_no(talk, waiting.invite, waiting.peer_id, "busy")
            return
        self.waiting[waiting.peer_id] = waiting
        say = log.info if self._said.take(trio.current_time()) else log.debug
        say(
            "a newcomer waits for somebody's yes: federation approve",
            peer=waiting.peer_id, name=waiting.name, address=waiting.address, invite=shown(waiting.invite.id),
        )  # fmt: skip
        try:
            with waiting.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_at_end, talk, waiting.scope)
                    try:
                        await self._keep_waiting(waiting, talk)
                    except (trio.BrokenResourceError, trio.TooSlowError):
                        waiting.scope.cancel()
                    nursery.cancel_scope.cancel()
        finally:
            if self.waiting.get(waiting.peer_id) is waiting:
                del self.waiting[waiting.peer_id]
        if waiting.scope.cancel_called:
            raise trio.BrokenResourceError("it went away, or came again")

    async def _keep_waiting(self, waiting: Waiting, talk: Talk) -> None:
        invite, peer_id = waiting.invite, waiting.peer_id
        while self._problem(invite, peer_id) is None and invite.needs_yes(peer_id):
            waiting.news = trio.Event()
            with trio.fail_after(ANSWER_S):
                await talk.send("wait", self._name())
            left_s = (invite.expires_ms - self.now_ms) / 1000
            with trio.move_on_after(max(0.0, min(SAY_EVERY_S, left_s))):
                await waiting.news.wait()

    async def _hand_over(self, talk: Talk, invite: Invite, peer_id: str, name: str) -> None:
        with trio.fail_after(ANSWER_S):
            await talk.send("go")
            await _expect(talk, "ready")
        problem = self._problem(invite, peer_id)
        if problem is None and (invite.id, peer_id) in self._handing:
            problem = "busy"
        if problem is not None:
            await self._say_no(talk, invite, peer_id, problem)
            return
        self._handing.add((invite.id, peer_id))
        try:
            await self._hand_over_once(talk, invite, peer_id, name)
        finally:
            self._handing.discard((invite.id, peer_id))

    async def _hand_over_once(self, talk: Talk, invite: Invite, peer_id: str, name: str) -> None:
        is_new = self.invites.take(invite, peer_id, name, self.now_ms)
        try:
            await self._save()
        except StateDirUnusable as error:
            if is_new:
                del invite.used[peer_id]
            log.error("a newcomer cannot be let in: the use of its invite cannot be saved", why=error.detail)
            await self._say_no(talk, invite, peer_id, "disk")
            return
        if (problem := self._problem(invite, peer_id)) is not None:  # revoked or banned, while the disk wrote
            if is_new:
                del invite.used[peer_id]
                self._unsaved.set()
            await self._say_no(talk, invite, peer_id, problem)
            return
        with trio.fail_after(ANSWER_S):
            await talk.send("token", self._token())
        try:
            with trio.fail_after(KEPT_S):
                await _expect(talk, "kept")
        except (trio.BrokenResourceError, trio.TooSlowError):
            log.warning(
                "a newcomer was sent the token and did not confirm it; it may come again, and nobody else by this use",
                peer=peer_id, name=name, invite=shown(invite.id),
            )  # fmt: skip
            return
        self._confirm(invite, peer_id)
        log.info("a newcomer was given the network's token", peer=peer_id, name=name, invite=shown(invite.id))


async def _hello(talk: Talk) -> str:
    """The newcomer's name for itself, as people may see it."""
    kind, name, _ = await talk.receive(at_most=MAX_HELLO_BYTES)
    if kind != "hello":
        raise ProtocolViolation("a newcomer that does not say hello")
    return visible(name[:MAX_NAME_CHARS])


async def _expect(talk: Talk, wanted: str) -> None:
    """Pass over kinds that this version does not know; the connection's ration bounds them."""
    while (await talk.receive(at_most=MAX_HELLO_BYTES))[0] != wanted:
        pass


async def _cancel_at_end(talk: Talk, scope: trio.CancelScope) -> None:
    """Read while a newcomer waits: it has nothing to say, so what comes is its end."""
    try:
        while True:
            await talk.receive(at_most=MAX_HELLO_BYTES)
    except (trio.BrokenResourceError, ProtocolViolation):
        scope.cancel()


def _address(conn: SecureConn) -> str:
    address = conn.get_remote_address()
    return "" if address is None else f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
