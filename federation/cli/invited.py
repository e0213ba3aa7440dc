"""`federation join` with an invite's code: the code becomes a saved token, and then the node starts as with any token.

A restart with the same code asks nobody: the state directory knows that it brought the token.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from federation.cli.terminal import Progress, complain
from federation.mesh import token_store
from federation.mesh.redeeming import redeem
from federation.net.identity import peer_id_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.config import Settings
    from federation.mesh.invite_codes import InviteCode
    from federation.mesh.tokens import Token
    from federation.state import StateDir

PATIENCE_S = 60  # that a service manager grants at a time, while a person has to say yes


def exchange(code: InviteCode, settings: Settings, state: StateDir, *, take_up: Callable[[Token, StateDir], object]) -> None:
    """Exchange the code for the network's token, and have `take_up` save that. Raises what `redeem` raises."""
    if state.was_invited_by(code.id.hex()) and token_store.saved_token(state) is not None:
        complain("this invite brought its token here before: the saved one is used")
        return
    with Progress() as progress:
        waiter = _Waiter(progress, peer_id_of(state.identity()))

        def keep(token: Token) -> None:
            progress.show("")
            take_up(token, state)
            state.note_invited(code.id.hex())

        progress.show("asking the node that made the invite")
        trio.run(
            lambda: redeem(
                code, seed=state.identity(), name=settings.name, keep=keep, now_s=time.time,
                on_wait=waiter.waits, on_break=waiter.broke,
            )
        )  # fmt: skip


class _Waiter:
    """Says what the newcomer waits for: a line at the start, and for people who watch how long already."""

    def __init__(self, progress: Progress, own_id: str) -> None:
        self._progress = progress
        self._own_id = own_id
        self._since: float | None = None
        self._broke = False

    def waits(self, inviter: str) -> None:
        from federation.daemon import notify  # imports libp2p, as the node will anyway

        now = time.monotonic()
        if self._since is None:
            self._since = now
            complain(
                f"waiting for somebody's yes on {inviter or 'the node that made the invite'}: `federation approve` there. "
                f"This machine is {self._own_id}"
            )
        elif self._broke:
            complain(f"{inviter or 'the node that made the invite'} is there again; still waiting for somebody's yes")
        self._broke = False
        self._progress.show(f"waiting for a yes on {inviter}, {int(now - self._since)} s")
        notify(f"STATUS=waiting for somebody's yes on {inviter}\nEXTEND_TIMEOUT_USEC={PATIENCE_S * 1_000_000}")

    def broke(self) -> None:
        if not self._broke:
            complain("the node that made the invite went away, or is busy; trying again until the invite expires")
        self._broke = True
