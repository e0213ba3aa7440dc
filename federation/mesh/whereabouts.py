"""Which node has made a thing that a client names by its id. Entries ask each other: only the one that has passed its making
on knows it (forward/http/ids.py).

    32 bytes: the hash of service and name   ->   message: the peer id of the node that made it; empty if not known here

A peer learns of no id by that: whoever knows one can have the thing. A node that does not know the protocol (an older one)
is left alone for DEAF_S. Callers pace the questions.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import FederationError, PeerUnavailable
from federation.net import wire
from federation.units import is_peer_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream

log = structlog.get_logger(__name__)

PROTOCOL = "/federation/made/1"
DIGEST_BYTES = 32
MAX_ANSWER_BYTES = 64
ASK_S = 1.0  # a client waits; peers answer in a round trip
ANSWER_S = 5.0
MAX_ASKED = 32
DEAF_S = 600.0


class Whereabouts:
    """Asks all linked peers, or MAX_ASKED of them by chance. `known`: what this node answers itself."""

    def __init__(self, host: Host, known: Callable[[bytes], str]) -> None:
        self._host = host
        self._known = known
        self._deaf: dict[str, float] = {}  # peer id: until
        host.handle_stream(PROTOCOL, self._answer)

    async def ask(self, digest: bytes) -> str:
        """The first answer that names a peer; empty if none does within ASK_S."""
        now = trio.current_time()
        self._deaf = {peer: until for peer, until in self._deaf.items() if until > now}
        peers = [peer for peer in self._host.links if peer not in self._deaf]
        found: list[str] = []
        with trio.move_on_after(ASK_S):
            async with trio.open_nursery() as nursery:

                async def one(peer_id: str) -> None:
                    if answer := await self._ask(peer_id, digest):
                        found.append(answer)
                        nursery.cancel_scope.cancel()

                for peer_id in random.sample(peers, min(len(peers), MAX_ASKED)):
                    nursery.start_soon(one, peer_id)
        return found[0] if found else ""

    async def _ask(self, peer_id: str, digest: bytes) -> str:
        try:
            stream = await self._host.open_stream(peer_id, PROTOCOL)
        except PeerUnavailable:
            self._deaf[peer_id] = trio.current_time() + DEAF_S
            return ""
        try:
            async with stream:
                await stream.send_all(digest)
                answer = (await wire.receive_bytes(stream, at_most=MAX_ANSWER_BYTES)).decode("ascii", "replace")
        except (FederationError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("a peer did not say where a thing is", peer=peer_id, why=str(error) or type(error).__name__)
            return ""
        return answer if is_peer_id(answer) else ""

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        async with stream:
            try:
                with trio.fail_after(ANSWER_S):
                    digest = await wire.read_exactly(stream.receive_some, DIGEST_BYTES)
                    await stream.send_all(wire.framed(self._known(digest).encode()))
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                log.debug("a question was not answered", peer=link.peer_id, why=type(error).__name__)
