"""Helpers for tests: a node that makes invites, on loopback, and machines that come by them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import trio

from federation.mesh.invite_codes import InviteCode
from federation.mesh.invites import Invite
from federation.mesh.newcomers import Newcomers
from federation.mesh.redeeming import redeem
from federation.mesh.tokens import Token
from federation.net.identity import peer_id_of
from federation.state import StateDir
from tests.support.hosts import new_peer, reactor_running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from federation.mesh.invites import Refusal
    from tests.support.hosts import Peer

TOKEN = Token(b"n" * 32, "testnet")


class Inviter:
    """`now` moves when a test says so."""

    def __init__(self, peer: Peer, state: StateDir) -> None:
        self.peer = peer
        self.state = state
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.token = TOKEN
        self.barred: dict[str, Refusal] = {}
        self.restart()

    def restart(self) -> None:
        """As far as its invites go."""
        self.door = Newcomers(
            host=self.peer.host, state=self.state, network_id=TOKEN.network_id, name=lambda: "ada",
            token=lambda: self.token.encode(), is_barred=self.barred.get, utc_now=lambda: self.now,
        )  # fmt: skip

    async def invite(self, *, uses: int = 1, approve: bool = False, lifetime_s: int = 3600) -> InviteCode:
        now_ms = self.door.now_ms
        code = InviteCode.new(now_ms // 1000 + lifetime_s, (self.peer.address,))
        await self.door.make(Invite(code.id, code.key, now_ms, now_ms + lifetime_s * 1000, uses, approve))
        return code

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def row(self, code: InviteCode) -> Invite:
        invite = self.door.invites.get(code.id)
        assert invite is not None
        return invite


@dataclass
class Newcomer:
    """A machine with an identity of its own. `token`: what it kept."""

    n: int
    token: Token | None = None
    error: Exception | None = None
    waited_for: list[str] = field(default_factory=list)
    breaks: int = 0
    over: trio.Event = field(default_factory=trio.Event)
    keep: Callable[[Token], None] = lambda _token: None

    @property
    def seed(self) -> bytes:
        return bytes([self.n]) * 32

    @property
    def id(self) -> str:
        return peer_id_of(self.seed)

    def _keep(self, token: Token) -> None:
        self.keep(token)
        self.token = token

    def _broke(self) -> None:
        self.breaks += 1

    async def come(self, code: InviteCode, *, now_s: float = 0.0) -> Newcomer:
        try:
            with trio.fail_after(60):
                await redeem(
                    code, seed=self.seed, name=f"machine{self.n}", keep=self._keep, now_s=lambda: now_s,
                    on_wait=self.waited_for.append, on_break=self._broke,
                )  # fmt: skip
        except Exception as error:  # noqa: BLE001  # the test looks at it
            self.error = error
        self.over.set()
        return self


@asynccontextmanager
async def inviting(directory: Path) -> AsyncIterator[Inviter]:
    state = StateDir(directory / "inviter")
    state.lock()
    async with reactor_running() as reactor:
        peer = await new_peer(1, reactor)
        inviter = Inviter(peer, state)
        async with peer.host.running(), trio.open_nursery() as nursery:
            nursery.start_soon(inviter.door.run)
            yield inviter
            nursery.cancel_scope.cancel()
