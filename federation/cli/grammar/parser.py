"""The command line's grammar: commands, options, help. It neither prints nor decides; main.py does.

argparse, and options as texts that config.py reads: typer imports pydantic for every command (0.3 s), and `--help` and
`status` answer at once. The option's destination is the name of its field in Settings; a test holds the two together.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.cli.grammar import access, join, program
from federation.cli.grammar.common import Parser, asking, command

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
Run one command on each machine, point any client at any machine: every
connection lands on the best GPU box that is really alive.

first machine:  federation join --backend 127.0.0.1:11434
next machines:  the command that the first one prints
"""

MODELS = """\
Show the models that the backends of all nodes have, as these nodes said last: where each is (with a star where it is in
memory, so that its first token does not wait for a load), how large it is, and what its nodes serve now.
"""

PLACE = """\
Show which node has room for a model, or for so much VRAM, the best one first, and why: one that has the model in memory,
then one that has it on disk; of these the least busy; of these the least recently used. Exits with 1 if none has room.
"""

USE = """\
Print a client's configuration, with this node's address and models in it: alone, to be pasted or run. With --write it goes
into the client's own file, whose other settings stay; what the file said is kept beside it. Without CLIENT: what there is.
"""

CLIENTS = (
    *("curl", "openai", "anthropic", "ollama", "open-webui", "continue", "cline", "aider", "codex", "claude-code"),
    *("langchain", "litellm", "n8n", "home-assistant"),
)  # as in use/clients.py

DASHBOARD = """\
Print the address of the running node's dashboard. The code behind the # lets one browser act for you, if it comes within
30 s. It may do so until its page is closed, it was away for a week, the node stops, or you run this with --revoke.
"""


def parse(argv: Sequence[str], version: str) -> argparse.Namespace:
    """The options, with `command` ("join", "token new", ... or None) and the `parser` that the person got to.

    Raises UsageError; --help and --version print and raise SystemExit, as argparse does.
    """
    args, unknown = create_parser(version).parse_known_args(argv)
    if unknown:
        args.parser.error(f"unknown: {' '.join(unknown)}")
    return args


def create_parser(version: str) -> argparse.ArgumentParser:
    """The whole grammar; completion and docs/cli.md are made from it."""
    root = Parser(prog="federation", usage="federation COMMAND [OPTIONS]", description=DESCRIPTION)
    root.formatter_class = argparse.RawDescriptionHelpFormatter
    root.add_argument("--version", action="version", version=f"federation {version}", help="print the version")
    root.set_defaults(command=None, parser=root)
    commands = root.add_subparsers(title="commands", metavar="COMMAND")
    join.add(commands)
    access.add_token(commands)
    access.add_owner(commands)
    access.add_keys(commands)
    access.add_invites(commands)
    dashboard = asking(
        commands,
        "dashboard",
        "print the address of the running node's dashboard, good for one browser within 30 s",
        "federation dashboard --open",
        DASHBOARD,
    )
    dashboard.add_argument("--open", action="store_true", help="open it in the browser too")
    dashboard.add_argument("--revoke", action="store_true", help="end what browsers may do with addresses printed before")
    _add_asking(commands)
    _add_use(commands)
    access.add_bans(commands)
    program.add(commands, root)
    completion = command(
        commands,
        "completion",
        "print a script that completes commands and options in your shell",
        operands="SHELL ",
        epilog='example: eval "$(federation completion bash)"',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    command(commands, "version", "print the version", epilog="example: federation version")
    return root


def _add_asking(commands: Any) -> None:
    """Commands for a node that runs; all know --json."""
    status = asking(commands, "status", "show the running node", "federation status --watch", json=True)
    status.add_argument("--watch", action="store_true", help="go on, and refresh once a second; Ctrl-C ends it")
    asking(commands, "peers", "show all nodes of the network", "federation peers", json=True)
    asking(
        commands,
        "models",
        "show the models of all nodes, and where they are in memory",
        "federation models",
        MODELS,
        json=True,
    )
    place = asking(
        commands,
        "place",
        "show which node has room for a model, or for so much VRAM, and why",
        "federation place --vram 20GiB --among athens,bergen",
        PLACE,
        json=True,
    )
    place.add_argument("--vram", metavar="SIZE", help="VRAM that has to be free (20GiB, 8000000000) [the model's size]")
    place.add_argument("--model", metavar="NAME", help="a model; nodes that have it come first")
    place.add_argument("--among", metavar="PEERS", help="only these nodes, by name or id, with commas [all]")
    explain = asking(
        commands, "explain", "show why recent connections went where they went", "federation explain --last 1", json=True
    )
    which = explain.add_mutually_exclusive_group()
    which.add_argument("--last", default="5", metavar="N", help="the newest N connections [5]")
    which.add_argument("--id", metavar="N", help="the connection of this number; `federation logs` has it")
    drain = asking(
        commands,
        "drain",
        "send no new connections to this node; open ones finish",
        "federation drain --wait && sudo reboot",
        json=True,
    )
    _add_node(drain)
    drain.add_argument("--wait", action="store_true", help="until nothing is open here and a reboot disturbs nobody")
    drain.add_argument("--timeout", metavar="SECONDS", help="wait so long at most, then fail [for ever]")
    ping = asking(
        commands,
        "ping",
        "round trips to a peer, past all backends",
        "federation ping bergen --bulk",
        json=True,
        operands="PEER ",
    )
    ping.add_argument("peer", metavar="PEER", help="its name, its id, or the end of its id that `federation peers` shows")
    ping.add_argument("--count", default="4", metavar="N", help="round trips [4]")
    ping.add_argument(
        "--bulk",
        nargs="?",
        const="64MiB",
        metavar="SIZE",
        help="move so much up and down too, 10 s each at most [64MiB]",
    )
    asking(
        commands,
        "netcheck",
        "show how other machines can reach this one: NAT, router, relays, IPv6",
        "federation netcheck",
        json=True,
    )
    asking(
        commands,
        "doctor",
        "look for what is wrong, and say what to do about it",
        "federation doctor || federation logs --last 200",
        "Look for what is wrong with this node, and say what to do about it. Exits with 1 if something is wrong.",
        json=True,
    )
    logs = asking(
        commands, "logs", "show the running node's newest log lines, a line a connection", "federation logs -f", json=True
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes; Ctrl-C ends it")
    logs.add_argument("--last", default="50", metavar="N", help="begin with the newest N lines [50]")
    _add_node(asking(commands, "undrain", "take connections again", "federation undrain", json=True))
    asking(
        commands,
        "notify",
        "send a test message to the address of --notify-url",
        "federation notify",
        "Send a test message to the address that the running node tells of machines that die (join --notify-url).",
        json=True,
    )
    leave = asking(
        commands, "leave", "drain, say good-bye, forget the network's token, and end", "federation leave", json=True
    )
    leave.add_argument("--yes", action="store_true", help="do not ask back")


def _add_node(parser: argparse.ArgumentParser) -> None:
    """Add the options of an order to another node."""
    parser.add_argument(
        "--node", metavar="PEER", help="have that node do it (name or id), by order of the network's owner [this one]"
    )
    parser.add_argument(
        "--owner-key",
        type=Path,
        metavar="FILE",
        help="sign that with the owner key in FILE [this node's]; - is standard input",
    )


def _add_use(commands: Any) -> None:
    use = asking(
        commands,
        "use",
        "print or write the configuration of a client: Open WebUI, Codex, ...",
        "federation use codex --write --new-key laptop",
        USE,
        operands="[CLIENT] ",
    )
    use.add_argument("client", nargs="?", choices=CLIENTS, metavar="CLIENT", help="one of those that --list shows")
    use.add_argument("--list", action="store_true", help="show the clients, and the file of each")
    use.add_argument("--json", action="store_true", help="print it as JSON")
    use.add_argument("--write", action="store_true", help="put it into the client's file")
    use.add_argument("--undo", action="store_true", help="put back what the file said before --write")
    use.add_argument("--to", metavar="FILE", help="another file than the client's usual one")
    use.add_argument("--model", metavar="NAME", help="the model to begin with [one that is in memory]")
    use.add_argument("--service", default="default", metavar="NAME", help="the service to ask for [default]")
    use.add_argument("--host", metavar="NAME", help="this machine's name or address, as the client's machine knows it")
    use.add_argument("--new-key", metavar="NAME", help="make a client's key of that name, and use it")
    use.add_argument("--key-file", metavar="FILE", help="use the key in FILE; - is standard input, which asks at a terminal")
    use.add_argument("--key-variable", metavar="NAME", help="use the key in that environment variable")
