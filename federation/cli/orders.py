"""Orders to a node: this one, or with --node another one, as the network's owner.

The owner's key never leaves this process: with --owner-key the daemon prepares the order, it is signed here, and the daemon
carries it out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from federation.cli.render.text import plain
from federation.cli.terminal import read_secret
from federation.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from federation.cli.ask import Asker

TIMEOUT_S = 20.0  # the daemon waits 5 s for each of three answers of that node


def giver(asker: Asker, args: Namespace) -> Callable[[str], str]:
    """A function that gives an order ("drain", "undrain", "look") and returns the API's answer."""
    if args.node is None:
        if args.owner_key is not None:
            raise UsageError("--owner-key signs an order to another node: say which one with --node PEER")
        return asker.post
    if not args.node:  # a variable of the shell's that is not set
        raise UsageError("--node '': it is empty")
    if args.owner_key is None:
        return lambda order: asker.post("orders", {"peer": args.node, "order": order}, timeout_s=TIMEOUT_S)
    from federation.mesh.owner import OwnerKey  # imports cryptography

    key = OwnerKey.decode(read_secret(args.owner_key, "owner key"))

    def give(order: str) -> str:
        body = {"peer": args.node, "order": order}
        if order == "look":
            return asker.post("orders", body, timeout_s=TIMEOUT_S)
        return _signed_here(asker, body, key)

    return give


def _signed_here(asker: Asker, body: dict[str, str], key: Any) -> str:
    from federation.mesh.owner import REMOTE_ORDER

    prepared = json.loads(asker.post("orders/prepare", body, timeout_s=TIMEOUT_S))
    if prepared["owner"] != key.public.hex():
        raise UsageError(
            f"this is not the owner key of network {plain(prepared['network'])}: its public half is {key.public.hex()}, "
            f"the network's {plain(prepared['owner'])}"
        )
    if not bytes.fromhex(prepared["order"]).endswith(f"{prepared['peer_id']}\n{body['order']}".encode()):
        raise UsageError("the node asks to sign another order than the one that was given; nothing is signed")
    signature = key.sign(bytes.fromhex(prepared["order"]), REMOTE_ORDER).hex()
    return asker.post("orders/signed", {"signature": signature}, timeout_s=TIMEOUT_S)


def name(answer: str) -> str:
    """The node that an answer is about."""
    row = json.loads(answer)
    return plain(row["name"]) or plain(row["peer_id"])
