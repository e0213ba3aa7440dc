"""The invitation for another machine: the token with addresses of members, and the command that asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.net.dial.address import PeerAddress
    from federation.ops import schemas
    from federation.ops.parts import Parts

OWN_ADDRESSES = 6  # of this node; a token stays short enough to paste
OTHERS = 4  # members that let a newcomer in while this node is off
# This command asks for the token: a token typed into a command stays in the shell's history.
COMMAND = "federation join --token-file -"


def invite(node: Parts) -> schemas.Invite:
    return {"token": token(node), "command": COMMAND}


def token(node: Parts) -> str:
    """The network's present token with fresh addresses in it."""
    return node.token.with_addresses(tuple(addresses(node))).encode()


def addresses(node: Parts) -> list[str]:
    """The addresses in a newcomer's token: those of this node and of a few other members."""
    online = node.ledger.online(node.clock.utc_now())
    others = [record.peer_id for record in online if record.peer_id in node.host.links][:OTHERS]
    chosen = node.addresses[:OWN_ADDRESSES]
    chosen += [address for peer_id in others for address in _sure_addresses(node, peer_id)[:1]]
    return [str(address) for address in chosen]


def _sure_addresses(node: Parts, peer_id: str) -> list[PeerAddress]:
    """A linked peer's proven addresses, not its mere claims: a newcomer trusts a token's as if a person had given them."""
    at = node.host.links[peer_id].remote_address
    known = node.book.addresses(peer_id)
    return [a for a in known if node.book.has_answered(a) or (at is not None and a.host == at[0])]
