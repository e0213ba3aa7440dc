"""A newcomer's way from an invite's code to the network's token, before it has a node; newcomers.py has the other side.

While it waits for a person's yes it stays connected, and calls again when the line or the inviter breaks. It gives up where
the inviter says no, where nobody has answered at all, and when the code has expired.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from federation.errors import (
    HandshakeFailed,
    InviteRefused,
    InviterUnreachable,
    InviteTooNew,
    InviteUnknown,
    PeerUnavailable,
    ProtocolViolation,
)
from federation.mesh.tokens import Token
from federation.net.dial.knock import hang_up, knock
from federation.net.link.newcomer import MAX_MESSAGE_BYTES, Talk
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.mesh.invite_codes import InviteCode
    from federation.net.dial.address import PeerAddress
    from federation.net.link.handshake import SecureConn

STAGGER_S = 0.25  # between the first tries of two addresses
FIRST_TRIES, PAUSE_S = 3, 1.0  # of all addresses, before it has ever answered
AGAIN_S = 3.0  # when it had answered once
SILENT_S = 35.0  # the inviter speaks every 10 s
MAX_SAID = 64

REASONS = {
    "used": "this invite has been used as often as it may be; ask for a new one",
    "used here": "this machine has used this invite already; start without the code, or ask for a new one",
    "expired": "this invite has expired; ask for a new one",
    "revoked": "this invite was revoked; ask for a new one",
    "refused": "somebody there said no to this machine",
    "banned": "the node that made this invite has banned this machine: federation unban, there",
    "left out": "this machine was left out of the network's last rotation: it is not to have the new token",
    "copy": "this machine has the identity of the node that made the invite: one is a copy of the other. Delete the file "
    "`identity` in the state directory here, and try again",
    "disk": "the node that made this invite cannot write to its disk, so it lets nobody in; its log says more",
}
_AGAIN = "busy"  # a reason that passes
_TELLING = (InviteUnknown, InviteTooNew, HandshakeFailed, PeerUnavailable)  # of several failures the first of these is told


class _LineBroke(Exception):
    """The inviter had answered."""


async def redeem(
    code: InviteCode,
    *,
    seed: bytes,
    name: str,
    keep: Callable[[Token], None],
    now_s: Callable[[], float],
    on_wait: Callable[[str], None] = lambda _inviter: None,
    on_break: Callable[[], None] = lambda: None,
) -> None:
    """Exchange the code, and have `keep` save the token before it is confirmed.

    `now_s`: seconds since 1970. `on_wait(inviter)` is called again and again while a person there has to say yes, and
    `on_break()` when the inviter went away meanwhile. Raises InviteRefused, InviteUnknown, InviteTooNew or
    InviterUnreachable, and what `keep` raises.
    """
    has_answered, tries = False, 0
    while True:
        tries += 1
        try:
            conn = await _reach(code, seed)
        except (PeerUnavailable, HandshakeFailed) as error:
            if isinstance(error, InviteUnknown | InviteTooNew):
                raise
            if not has_answered and tries >= FIRST_TRIES:
                raise InviterUnreachable(_unreached(code, error, now_s())) from None
            if has_answered and now_s() >= code.expires_at:
                raise InviterUnreachable("it went away, and the invite has expired meanwhile; ask for a new one") from None
            await trio.sleep(AGAIN_S if has_answered else PAUSE_S)
            continue
        has_answered = True
        try:
            await _converse(conn, name, keep, on_wait)
            return
        except _LineBroke:
            on_break()
        finally:
            await hang_up(conn)
        await trio.sleep(AGAIN_S)


async def _converse(conn: SecureConn, name: str, keep: Callable[[Token], None], on_wait: Callable[[str], None]) -> None:
    """Raises _LineBroke or InviteRefused."""
    talk = Talk(conn)
    try:
        await talk.send("hello", name)
        while True:
            with trio.fail_after(SILENT_S):
                kind, text, _ = await talk.receive(at_most=MAX_MESSAGE_BYTES)
            if kind == "wait":
                on_wait(visible(text[:MAX_SAID]))
            elif kind == "go":
                await talk.send("ready")
            elif kind == "token":
                keep(Token.decode(text))
                break
            elif kind == "no":
                if text == _AGAIN:
                    raise _LineBroke
                said = REASONS.get(text, f"the node that made this invite says: {visible(text[:MAX_SAID])}")
                raise InviteRefused(said)
    except (trio.BrokenResourceError, trio.TooSlowError, ProtocolViolation):
        raise _LineBroke from None
    try:
        await talk.send("kept")
    except trio.BrokenResourceError:
        return  # it confirms itself as a member, by its first link
    # The inviter hangs up when it has read that; to hang up first could destroy it on its way.
    with trio.move_on_after(1.0):
        try:
            await talk.receive(at_most=MAX_MESSAGE_BYTES)
        except (trio.BrokenResourceError, ProtocolViolation):
            return


async def _reach(code: InviteCode, seed: bytes) -> SecureConn:
    """The first address that proves the code. Raises the error that says most."""
    if not code.addresses:
        raise PeerUnavailable("the code holds no address")
    found: list[SecureConn] = []
    problems: list[Exception] = []
    async with trio.open_nursery() as nursery:
        for address in code.addresses:
            over = trio.Event()
            nursery.start_soon(partial(_try, address, code, seed, found, problems, over, nursery.cancel_scope))
            with trio.move_on_after(STAGGER_S):
                await over.wait()
    for spare in found[1:]:
        await hang_up(spare)
    if found:
        return found[0]
    raise min(problems, key=_vagueness)


async def _try(
    address: PeerAddress, code: InviteCode, seed: bytes, found: list[SecureConn], problems: list[Exception],
    over: trio.Event, others: trio.CancelScope,
) -> None:  # fmt: skip
    try:
        found.append(await knock(address, seed=seed, invite_id=code.id, key=code.key))
        others.cancel()
    except (PeerUnavailable, HandshakeFailed) as error:
        problems.append(error)
    over.set()


def _vagueness(error: Exception) -> int:
    return next(n for n, kind in enumerate(_TELLING) if isinstance(error, kind))


def _unreached(code: InviteCode, error: Exception, now_s: float) -> str:
    tried = ", ".join(f"{a.host}:{a.port}" if ":" not in a.host else f"[{a.host}]:{a.port}" for a in code.addresses)
    said = f"tried {tried or 'nothing: the code holds no address'}"
    if isinstance(error, HandshakeFailed):
        said += f" ({error.detail or error}; after several wrong codes it answers nobody of that address for half a minute)"
    if now_s >= code.expires_at:
        return f"{said}; by this machine's clock the invite has expired anyway, so ask for a new one"
    return f"{said}. It has to run, and its p2p port has to be reachable from here; no other node can take its invite"
