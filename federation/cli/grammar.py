"""The command line's grammar: commands, options, help. It neither prints nor decides; main.py does.

argparse, and options as texts that config.py reads: typer imports pydantic for every command (0.3 s), and `--help` and
`status` answer at once. The option's destination is the name of its field in Settings; a test holds the two together.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from federation.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
Run one command on each machine, point any client at any machine: every
connection lands on the best GPU box that is really alive.

first machine:  federation join --backend 127.0.0.1:11434
next machines:  the command that the first one prints
"""

JOIN = """\
Run a node. With a token it joins that network and saves the token, so that a restart needs no options. Without one it
starts a new network, saves its token and prints the command for the next machine.
"""

JOIN_MORE = """\
Each option is also an environment variable (--open-timeout: FEDERATION_OPEN_TIMEOUT; commas between repeated values)
and a key of the settings file (open-timeout = "3s"). Option beats variable, variable beats file. Durations take ms, s,
m or h; sizes KiB, MiB, GiB (1024) or kB, MB, GB (1000).

example: federation join --backend 127.0.0.1:11434
"""

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

MODELS = """\
Show the models that the backends of all nodes have, as these nodes said last: where each is (with a star where it is in
memory, so that its first token does not wait for a load), how large it is, and what its nodes serve now.
"""

PLACE = """\
Show which node has room for a model, or for so much VRAM, the best one first, and why: one that has the model in memory,
then one that has it on disk; of these the least busy; of these the least recently used. Exits with 1 if none has room.
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
USE = """\
Print a client's configuration, with this node's address and models in it: alone, to be pasted or run. With --write it goes
into the client's own file, whose other settings stay; what the file said is kept beside it. Without CLIENT: what there is.
"""

CLIENTS = (
    *("curl", "openai", "anthropic", "ollama", "open-webui", "continue", "cline", "aider", "codex", "claude-code"),
    *("langchain", "litellm", "n8n", "home-assistant"),
)  # as in use/clients.py

BAN = """\
Keep a peer away from this node: its connection is cut, no other one is made, and it serves nobody here. The other nodes
keep it; to put it out of the network, rotate the token. Without PEER, show who is banned.
"""

DASHBOARD = """\
Print the address of the running node's dashboard. The code behind the # lets one browser act for you, if it comes within
30 s. It may do so until its page is closed, it was away for a week, the node stops, or you run this with --revoke.
"""

# Field of Settings, flag, its value, help. The defaults in brackets are those of Settings.
JOIN_OPTIONS = (
    (
        "token",
        "--token",
        "TOKEN",
        "the network's token, or - to read it from standard input. On the command line it shows in the process list: "
        "prefer -, --token-file or the variable FEDERATION_TOKEN",
    ),
    ("token_file", "--token-file", "FILE", "read the token from FILE; - is standard input, which asks at a terminal"),
    (
        "invite",
        "--invite",
        "CODE",
        "an invite's code (federation invite --expires 1h), or - to read it from standard input; --token and --token-file "
        "take one too. It is exchanged once for the token, which is saved",
    ),
    ("p2p_listen", "--p2p-listen", "HOST:PORT", "where peers connect [0.0.0.0:4484]"),
    ("name", "--name", "NAME", "shown to people [the host name]"),
    ("vram_bytes", "--vram", "SIZE", "announce this much free VRAM (24GiB, 8000000000) instead of asking the GPU"),
    (
        "gpus",
        "--gpus",
        "LIST",
        "the GPUs that count, as nvidia-smi -L has them: 0,2, UUIDs or their beginnings; or none. Without it "
        "CUDA_VISIBLE_DEVICES says it, or all count",
    ),
    (
        "capacity",
        "--capacity",
        "N",
        "connections that this node's backends take at once; auto: as many as they have slots, where all of them say so "
        "(llama.cpp, LM Studio); 0: no limit [0]",
    ),
    ("policy", "--policy", "POLICY", "least-loaded, least-requests or random [least-loaded]"),
    ("affinity", "--affinity", "SWITCH", "on: an HTTP request goes where its conversation is cached; or off [on]"),
    ("target", "--target", "PEER", "send every connection to this peer (id or name)"),
    ("hold_s", "--hold", "SECONDS", "how long a client waits when there is no peer for it [10]"),
    ("open_timeout_s", "--open-timeout", "SECONDS", "how long a peer may take before the next one is tried [3]"),
    (
        "replay",
        "--replay",
        "UNTIL",
        "how far a client or an HTTP request may be retried: opened (its backend has seen nothing), first-byte (its backend "
        "has answered nothing), never, or auto: first-byte for requests that name a model, opened for the rest [auto]",
    ),
    ("replay_buffer_bytes", "--replay-buffer", "SIZE", "how much of a client is kept for a retry [64KiB]"),
    (
        "http_buffer_bytes",
        "--http-buffer",
        "SIZE",
        "how much of an HTTP request's body is kept to find its model, and for a retry; all bodies together may have four "
        "times as much [64MiB]",
    ),
    ("drain_timeout_s", "--drain-timeout", "SECONDS", "how long open connections get when the node stops [30]"),
    ("health_interval_s", "--health-interval", "SECONDS", "how often backends are checked [2]"),
    ("health_path", "--health-path", "PATH", "check backends by HTTP GET of PATH instead of by a TCP connect"),
    ("announce_interval_s", "--announce-interval", "SECONDS", "how often this node tells the others how it is [5]"),
    ("max_connections", "--max-connections", "N", "clients at this node at once [16384]"),
    (
        "max_connections_per_peer",
        "--max-connections-per-peer",
        "N",
        "connections that this node's backends take from one other node at once [4096]",
    ),
    ("state_dir", "--state-dir", "DIR", "where identity and token are kept [the user's state directory]"),
    ("control", "--control", "HOST:PORT", "the control API and dashboard [127.0.0.1:8485]"),
    (
        "path_penalty_s",
        "--path-penalty",
        "SECONDS",
        "among equally busy peers, one whose path is slower than the nearest by more than this comes last; 0: never [0.1]",
    ),
    ("relay_reservations", "--relay-reservations", "N", "members that this node relays for at once [128]"),
    (
        "relay_circuits",
        "--relay-circuits",
        "N",
        "connections that it relays at once, a quarter of them for one member [512]",
    ),
    ("relay_rate_bytes", "--relay-rate", "SIZE", "bytes per second of one relayed connection; 0: no limit [100MiB]"),
    (
        "tls_cert",
        "--tls-cert",
        "FILE",
        "certificate, in PEM form, with which the ports of --listen and --control that other machines reach speak TLS "
        "(tcp:// ones do not); read again at SIGHUP",
    ),
    ("tls_key", "--tls-key", "FILE", "its private key, in PEM form"),
    (
        "notify_url",
        "--notify-url",
        "URL",
        "tell this address when a machine dies or returns: an ntfy topic, a Slack or Discord webhook, or what takes JSON; "
        "ntfy+https:// says that a host speaks ntfy. On the command line it shows in the process list: prefer the file",
    ),
    ("notify_url_file", "--notify-url-file", "FILE", "read that address from FILE, at SIGHUP again"),
    ("notify_after_s", "--notify-after", "SECONDS", "how long a machine is silent, or back, before that is told [30]"),
    ("log_level", "--log-level", "LEVEL", "debug, info, warning or error [info]"),
    ("log_format", "--log-format", "FORMAT", "console or json [console]"),
)
JOIN_REPEATABLE = (
    (
        "backends",
        "--backend",
        "[NAME=]HOST:PORT",
        'a local TCP server to offer; without NAME its service is "default". http://HOST:PORT is asked for its models, '
        "tcp://HOST:PORT never; unix:/PATH is a Unix socket",
    ),
    (
        "listens",
        "--listen",
        "[NAME=]HOST:PORT",
        "local port for clients of a service [127.0.0.1:8484]. If the service is HTTP, each request goes by its model; "
        "http://HOST:PORT says so outright, tcp://HOST:PORT never; https://HOST:PORT speaks TLS too, also on loopback; "
        "unix:/PATH is a Unix socket",
    ),
    (
        "allow_origins",
        "--allow-origin",
        "ORIGIN",
        "web pages of this origin (https://chat.example) may use the ports of --listen, and their host is a name of this "
        "machine; * is every page",
    ),
    ("announce", "--announce", "HOST:PORT", "address to announce instead of this machine's own"),
    ("bootstraps", "--bootstrap", "MULTIADDR", "a node of the DHT that --dht asks, with its peer id"),
    ("peers", "--peer", "MULTIADDR", "a peer to dial, besides those in the token; HOST:PORT will do"),
    ("control_hosts", "--control-host", "NAME", "a name under which browsers may ask for the control API"),
)


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing, and takes no abbreviated options: a new version would change their meaning."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own words list all commands there are."""
        if action.choices is not None and value not in action.choices:
            from difflib import get_close_matches  # imported only after a typing error

            known = [str(choice) for choice in action.choices]
            near = get_close_matches(str(value), known, 1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(known)}" if len(known) < 4 else ""
            self.error(f"there is no {str(action.metavar).lower()} {value!r}" + (f"; {hint}" if hint else ""))


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
    root = _Parser(prog="federation", usage="federation COMMAND [OPTIONS]", description=DESCRIPTION)
    root.formatter_class = argparse.RawDescriptionHelpFormatter
    root.add_argument("--version", action="version", version=f"federation {version}", help="print the version")
    root.set_defaults(command=None, parser=root)
    commands = root.add_subparsers(title="commands", metavar="COMMAND")
    from federation.cli import grammar_program  # which has this module's parts

    _add_join(commands)
    _add_token(commands)
    _add_owner(commands)
    _add_keys(commands)
    _add_invites(commands)
    dashboard = _asking(
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
    _add_access(commands)
    grammar_program.add(commands, root)
    completion = _command(
        commands,
        "completion",
        "print a script that completes commands and options in your shell",
        operands="SHELL ",
        epilog='example: eval "$(federation completion bash)"',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    _command(commands, "version", "print the version", epilog="example: federation version")
    return root


def _add_asking(commands: Any) -> None:
    """Commands for a node that runs; all know --json."""
    status = _asking(commands, "status", "show the running node", "federation status --watch", json=True)
    status.add_argument("--watch", action="store_true", help="go on, and refresh once a second; Ctrl-C ends it")
    _asking(commands, "peers", "show all nodes of the network", "federation peers", json=True)
    _asking(
        commands,
        "models",
        "show the models of all nodes, and where they are in memory",
        "federation models",
        MODELS,
        json=True,
    )
    place = _asking(
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
    explain = _asking(
        commands, "explain", "show why recent connections went where they went", "federation explain --last 1", json=True
    )
    which = explain.add_mutually_exclusive_group()
    which.add_argument("--last", default="5", metavar="N", help="the newest N connections [5]")
    which.add_argument("--id", metavar="N", help="the connection of this number; `federation logs` has it")
    drain = _asking(
        commands,
        "drain",
        "send no new connections to this node; open ones finish",
        "federation drain --wait && sudo reboot",
        json=True,
    )
    _add_node(drain)
    drain.add_argument("--wait", action="store_true", help="until nothing is open here and a reboot disturbs nobody")
    drain.add_argument("--timeout", metavar="SECONDS", help="wait so long at most, then fail [for ever]")
    ping = _asking(
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
    _asking(
        commands,
        "netcheck",
        "show how other machines can reach this one: NAT, router, relays, IPv6",
        "federation netcheck",
        json=True,
    )
    _asking(
        commands,
        "doctor",
        "look for what is wrong, and say what to do about it",
        "federation doctor || federation logs --last 200",
        "Look for what is wrong with this node, and say what to do about it. Exits with 1 if something is wrong.",
        json=True,
    )
    logs = _asking(
        commands, "logs", "show the running node's newest log lines, a line a connection", "federation logs -f", json=True
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes; Ctrl-C ends it")
    logs.add_argument("--last", default="50", metavar="N", help="begin with the newest N lines [50]")
    _add_node(_asking(commands, "undrain", "take connections again", "federation undrain", json=True))
    _asking(
        commands,
        "notify",
        "send a test message to the address of --notify-url",
        "federation notify",
        "Send a test message to the address that the running node tells of machines that die (join --notify-url).",
        json=True,
    )
    leave = _asking(
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


def _add_rotate(actions: Any) -> None:
    rotate = _asking(
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


def _add_owner(commands: Any) -> None:
    owner = commands.add_parser(
        "owner", help="show or back up the key that may rotate the token", prog="federation owner",
        usage="federation owner COMMAND",
    )  # fmt: skip
    owner.set_defaults(parser=owner)
    actions = owner.add_subparsers(title="commands", metavar="COMMAND")
    _asking(
        actions,
        "owner show",
        "show the public half of the owner's key, and where the key is",
        "federation owner show",
        json=True,
    )
    export = _command(
        actions, "owner export", "print the owner's key for a backup", OWNER_EXPORT,
        epilog="example: federation owner export --to /media/backup/owner.key",
    )  # fmt: skip
    export.add_argument("--to", type=Path, metavar="FILE", help="write it to FILE, which must be new, for its owner only")
    _add_state_dir(export, "of the node that uses this state directory")


def _add_keys(commands: Any) -> None:
    key = commands.add_parser(
        "key", help="make, list or revoke the keys that clients show", prog="federation key",
        usage="federation key COMMAND",
    )  # fmt: skip
    key.set_defaults(parser=key)
    actions = key.add_subparsers(title="commands", metavar="COMMAND")
    add = _asking(
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
    _asking(
        actions,
        "key list",
        "show the keys of the network, never the keys themselves, and their use at this node",
        "federation key list",
        json=True,
    )
    revoke = _asking(
        actions,
        "key revoke",
        "revoke a key: all nodes refuse it within a second",
        "federation key revoke phone",
        json=True,
        operands="NAME ",
    )
    revoke.add_argument("name", metavar="NAME", help="its name, as `key list` shows it")


def _add_use(commands: Any) -> None:
    use = _asking(
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


def _add_access(commands: Any) -> None:
    ban = _asking(
        commands,
        "ban",
        "keep a peer away from this node; without PEER: show who is",
        "federation ban bergen",
        BAN,
        json=True,
        operands="[PEER] ",
    )
    ban.add_argument("peer", nargs="?", metavar="PEER", help="its id, name, or the end of its id that `peers` shows")
    unban = _asking(commands, "unban", "let a banned peer in again", "federation unban bergen", json=True, operands="PEER ")
    unban.add_argument("peer", metavar="PEER", help="its id, name, or the end of its id")


def _add_invites(commands: Any) -> None:
    from federation.cli.grammar_program import add_install_line  # which has this module's parts

    invite = _asking(
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
    approve = _asking(
        commands,
        "approve",
        "let a newcomer in that waits; without PEER: show who waits",
        "federation approve bergen",
        APPROVE,
        json=True,
        operands="[PEER] ",
    )
    approve.add_argument("peer", nargs="?", metavar="PEER", help="its id, name, or the end of its id")
    refuse = _asking(
        commands, "refuse", "turn away a newcomer that waits", "federation refuse bergen", json=True, operands="PEER "
    )
    refuse.add_argument(
        "peer", metavar="PEER", help="its id, name, or the end of its id, as `federation approve` shows them"
    )


def _add_join(commands: Any) -> None:
    add_join_options(_command(commands, "join", "run a node: join a network, or start one", JOIN, epilog=JOIN_MORE))


def add_join_options(join: argparse.ArgumentParser) -> None:
    for field, flag, metavar, text in JOIN_REPEATABLE:
        join.add_argument(flag, dest=field, action="append", metavar=metavar, help=f"{text}; repeatable")
    for field, flag, metavar, text in JOIN_OPTIONS:
        join.add_argument(flag, dest=field, metavar=metavar, help=text)
    join.add_argument(
        "--detect",
        action=argparse.BooleanOptionalAction,
        help="without --backend, look for Ollama, LocalAI, llama.cpp, vLLM and LM Studio on this machine, and offer what "
        "is there [yes]",
    )
    join.add_argument(
        "--browser-check",
        action=argparse.BooleanOptionalAction,
        help="turn away web pages of other sites that ask at the ports of --listen [yes]",
    )
    join.add_argument(
        "--require-key",
        action=argparse.BooleanOptionalAction,
        help="ask every client for a key (federation key add) at the ports of --listen that are not tcp:// [off loopback, "
        "once there is a key]",
    )
    join.add_argument("--mdns", action=argparse.BooleanOptionalAction, help="look for peers on the local network [yes]")
    join.add_argument(
        "--port-mapping",
        action=argparse.BooleanOptionalAction,
        help="ask the router to forward the p2p port to this machine, by NAT-PMP or UPnP [no]",
    )
    join.add_argument(
        "--dht",
        action=argparse.BooleanOptionalAction,
        help="look for members in a public DHT, under a key that only the token gives; needs --bootstrap [no]",
    )
    join.add_argument(
        "--relay",
        action=argparse.BooleanOptionalAction,
        help="relay for members whom others cannot dial, if they can dial us [yes]",
    )
    join.add_argument(
        "--config", type=Path, metavar="FILE", help="settings file, TOML [config.toml in the user's config directory]"
    )


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token", help="make a token, or look into one", prog="federation token", usage="federation token COMMAND"
    )
    token.set_defaults(parser=token)
    actions = token.add_subparsers(title="commands", metavar="COMMAND")
    new = _command(
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
    inspect = _command(
        actions,
        "token inspect",
        "show network id, name and addresses; never the secret",
        operands="[TOKEN] ",
        epilog="example: federation token inspect - < token.txt",
    )
    inspect.add_argument(
        "token", nargs="?", metavar="TOKEN", help="- is standard input [FEDERATION_TOKEN, else the saved one]"
    )
    _add_state_dir(inspect, "the token saved in this state directory")
    _add_rotate(actions)


def _asking(
    commands: Any, name: str, summary: str, example: str, description: str = "", *, json: bool = False, operands: str = ""
) -> argparse.ArgumentParser:
    parser = _command(commands, name, summary, description, operands=operands, epilog=f"example: {example}")
    if json:
        parser.add_argument("--json", action="store_true", help="print exactly what the control API returns")
    parser.add_argument(
        "--control",
        metavar="HOST:PORT",
        help="ask the node there (https://HOST:PORT: by TLS); it has to prove that it has the key in "
        "FEDERATION_CONTROL_KEY, or in the state directory",
    )
    _add_state_dir(parser, "ask the daemon that uses this state directory [your own daemon's]")
    return parser


def _add_state_dir(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --state-dir, see client.state_dir. The option of `join` is a setting."""
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help=text)


def _command(
    commands: Any, name: str, summary: str, description: str = "", *, operands: str = "", **kwargs: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name.split()[-1],
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        prog=f"federation {name}",
        usage=f"federation {name} {operands}[OPTIONS]",
        **kwargs,
    )
    parser.set_defaults(command=name, parser=parser)
    return parser


class _Formatter(argparse.HelpFormatter):
    """Keeps paragraphs apart."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))
