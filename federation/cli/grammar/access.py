"""The grammar of who may come in, and who has to go: tokens, invites, the owner, clients' keys, bans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from federation.cli.grammar.common import add_state_dir, asking, command
from federation.cli.grammar.program import add_install_line

ROTATE = """\
Make a new token for the network and hand it to all members that are online, over their connections. Until --grace is over
the former one admits too; then only the new one, and who was off all that time needs it by hand (federation invite).

The network's owner key decides it. It is on the node that made the network; elsewhere give it by --owner-key. Who is banned
here is left out. A token from before there were owners cannot be rotated: make a new network and join it on each machine.
"""

TOKEN_NEW = """\
Print a new network's token, alone: for networks whose first node shall not make it up. The network's owner key, which alone
can rotate the token later, goes to a file of its own.
"""

OWNER_EXPORT = """\
Print the network's owner key, for a backup. Whoever has it decides who is a member.
"""

KEY_ADD = """\
Make a key for a client and print it, this once. Clients send it as their API key (Authorization: Bearer, or x-api-key), and
all nodes of the network take it within a second. As soon as there is a key, HTTP ports off loopback ask for one. Keys
outlive the rotation of the token.
"""

INVITE = """\
Print the network's token with this node's addresses in it: whoever has it is a member, for good. Or, with --expires, --uses
or --approve, a code for one machine (or --uses N), which the newcomer exchanges at this node for the token. Only this node
knows what became of its codes, so it has to run, and to be reachable from the newcomer.

On the next machine: federation join --token-file -, which asks for the token or the code.
"""

APPROVE = """\
Let in a newcomer that came by an invite with --approve and waits at this node. Its name is its own choice: compare the id
with the one that the newcomer shows. Without PEER, show who waits.
"""

BAN = """\
Keep a peer away from this node: its connection is cut, no other one is made, and it serves nobody here. The other nodes
keep it; to put it out of the network, rotate the token. Without PEER, show who is banned.
"""


def _add_rotate(actions: Any) -> None:
    rotate = asking(
        actions,
        "token rotate",
        "make a new token and hand it to the members",
        "federation token rotate --except bergen --grace 0",
        ROTATE,
        json=True,
    )
    rotate.add_argument("--grace", default="1h", metavar="TIME", help="how long the former token admits too [1h]")
    rotate.add_argument(
        "--except",
        dest="excepted",
        action="append",
        default=[],
        metavar="PEER",
        help="not told, and out when the grace ends; id or name; repeatable",
    )
    rotate.add_argument("--keep-banned", action="store_true", help="tell those too whom this node has banned")
    rotate.add_argument(
        "--owner-key", type=Path, metavar="FILE", help="sign with the owner key in FILE [this node's]; - is standard input"
    )


def add_owner(commands: Any) -> None:
    owner = commands.add_parser(
        "owner", help="show or back up the key that may rotate the token", prog="federation owner",
        usage="federation owner COMMAND",
    )  # fmt: skip
    owner.set_defaults(parser=owner)
    actions = owner.add_subparsers(title="commands", metavar="COMMAND")
    asking(
        actions,
        "owner show",
        "show the public half of the owner's key, and where the key is",
        "federation owner show",
        json=True,
    )
    export = command(
        actions, "owner export", "print the owner's key for a backup", OWNER_EXPORT,
        epilog="example: federation owner export --to /media/backup/owner.key",
    )  # fmt: skip
    export.add_argument("--to", type=Path, metavar="FILE", help="write it to FILE, which must be new, for its owner only")
    add_state_dir(export, "of the node that uses this state directory")


def add_keys(commands: Any) -> None:
    key = commands.add_parser(
        "key", help="make, list or revoke the keys that clients show", prog="federation key",
        usage="federation key COMMAND",
    )  # fmt: skip
    key.set_defaults(parser=key)
    actions = key.add_subparsers(title="commands", metavar="COMMAND")
    add = asking(
        actions,
        "key add",
        "make a client's key and print it, this once",
        "federation key add phone --models llama3.2,qwen3:8b --expires 30d --rate 60/m",
        KEY_ADD,
        json=True,
        operands="NAME ",
    )
    add.add_argument("name", metavar="NAME", help="what logs, metrics and people call it")
    add.add_argument("--models", metavar="MODELS", help="only for these models, with commas [all]")
    add.add_argument("--expires", metavar="TIME", help="good for so long: 12h, 30d, 52w [for ever]")
    add.add_argument("--rate", metavar="N/TIME", help="so many requests at each entry: 5/s, 60/m, 1000/h, 1000/d [any]")
    asking(
        actions,
        "key list",
        "show the keys of the network, never the keys themselves, and their use at all nodes",
        "federation key list",
        json=True,
    )
    revoke = asking(
        actions,
        "key revoke",
        "revoke a key: all nodes refuse it within a second",
        "federation key revoke phone",
        json=True,
        operands="NAME ",
    )
    revoke.add_argument("name", metavar="NAME", help="its name, as `key list` shows it")


def add_bans(commands: Any) -> None:
    ban = asking(
        commands,
        "ban",
        "keep a peer away from this node; without PEER: show who is",
        "federation ban bergen",
        BAN,
        json=True,
        operands="[PEER] ",
    )
    ban.add_argument("peer", nargs="?", metavar="PEER", help="its id, name, or the end of its id that `peers` shows")
    unban = asking(commands, "unban", "let a banned peer in again", "federation unban bergen", json=True, operands="PEER ")
    unban.add_argument("peer", metavar="PEER", help="its id, name, or the end of its id")


def add_invites(commands: Any) -> None:
    invite = asking(
        commands,
        "invite",
        "print the running node's token with its addresses in it, or an invite's code",
        "federation invite --expires 1h --uses 1 --qr",
        INVITE,
        json=True,
    )
    invite.add_argument("--expires", metavar="TIME", help="a code that is good for so long: 30m, 12h, 7d; 30d at most [1h]")
    invite.add_argument("--uses", metavar="N", help="a code for so many machines [1]")
    invite.add_argument("--approve", action="store_true", help="a code whose newcomers wait for `federation approve`")
    invite.add_argument("--qr", action="store_true", help="show it as a QR code too")
    invite.add_argument("--list", action="store_true", help="show the invites that this node made, never their codes")
    invite.add_argument("--revoke", metavar="ID", help="end an invite, by its id, or all that are open: all")
    add_install_line(invite)
    approve = asking(
        commands,
        "approve",
        "let a newcomer in that waits; without PEER: show who waits",
        "federation approve bergen",
        APPROVE,
        json=True,
        operands="[PEER] ",
    )
    approve.add_argument("peer", nargs="?", metavar="PEER", help="its id, name, or the end of its id")
    refuse = asking(
        commands, "refuse", "turn away a newcomer that waits", "federation refuse bergen", json=True, operands="PEER "
    )
    refuse.add_argument(
        "peer", metavar="PEER", help="its id, name, or the end of its id, as `federation approve` shows them"
    )


def add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token", help="make a token, or look into one", prog="federation token", usage="federation token COMMAND"
    )
    token.set_defaults(parser=token)
    actions = token.add_subparsers(title="commands", metavar="COMMAND")
    new = command(
        actions,
        "token new",
        "print a new network's token, alone",
        TOKEN_NEW,
        epilog="example: (umask 077; federation token new > token.txt) && federation join --token-file token.txt",
    )
    new.add_argument(
        "--owner-key", type=Path, metavar="FILE",
        help="where to put the owner key; FILE must be new [owner-NETWORK.key in the user's state directory]",
    )  # fmt: skip
    new.add_argument("--name", default="", metavar="NETWORK", help="the network's name, for people")
    new.add_argument(
        "--peer", action="append", default=[], metavar="MULTIADDR", help="a peer to dial; HOST:PORT will do; repeatable"
    )
    inspect = command(
        actions,
        "token inspect",
        "show network id, name and addresses; never the secret",
        operands="[TOKEN] ",
        epilog="example: federation token inspect - < token.txt",
    )
    inspect.add_argument(
        "token", nargs="?", metavar="TOKEN", help="- is standard input [FEDERATION_TOKEN, else the saved one]"
    )
    add_state_dir(inspect, "the token saved in this state directory")
    _add_rotate(actions)
