"""The grammar of the commands for the program itself: service, update, uninstall, and the line that installs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.cli.grammar.common import add_state_dir, command
from federation.cli.grammar.join import add_join_options

if TYPE_CHECKING:
    import argparse

SERVICE_INSTALL = """\
Make the node a service of systemd or launchd, which starts with the machine, is started anew when it fails, and drains when
it stops: of this user (--user) or of the machine (--system, as root; it then runs as a user of its own). All options of
`join` can be given. The token goes to the state directory and into no unit; without one the service goes on with the state
that is there, or begins a new network. Installing again writes the unit anew and restarts it.
"""

UPDATE = """\
Get a newer version, check it, and restart the service with a drain. SOURCE is the address or folder where archives lie
beside their SHA256SUMS, or one archive; without it, where the last one came from. The version before stays for --rollback.

The list of hashes must be signed with the installed version's key, if that has one (share/release.pub); else it must come
by https or from this machine, or --sha256 pins the archive.
"""

UNINSTALL = """\
Stop and remove the service, and remove the program. Identity, token and settings stay, unless --state is given.
"""


def add(commands: Any, root: argparse.ArgumentParser) -> None:
    _add_service(commands, root)
    update = command(
        commands, "update", "get a newer version, or go back to the one before", UPDATE,
        epilog="example: federation update --from https://example.net/federation",
    )  # fmt: skip
    update.add_argument(
        "--from", dest="source", metavar="SOURCE", help="address, folder or archive [that of the last update]"
    )
    update.add_argument("--sha256", metavar="HASH", help="take only the archive that has this hash, and ask no list or key")
    update.add_argument("--check", action="store_true", help="only say whether there is a newer version; exit code 1 if not")
    update.add_argument("--rollback", action="store_true", help="go back to the version before")
    update.add_argument("--older", action="store_true", help="take a version that is older than the installed one, too")
    update.add_argument(
        "--wait", default="60s", metavar="TIME",
        help="how long the running service drains at most before it restarts; what is open then has --drain-timeout [60s]",
    )  # fmt: skip
    update.add_argument("--prefix", type=Path, metavar="DIR", help="install there [where this program is installed]")
    uninstall = command(
        commands,
        "uninstall",
        "remove the service and the program",
        UNINSTALL,
        epilog="example: federation uninstall --dry-run",
    )
    uninstall.add_argument("--dry-run", action="store_true", help="only say what it would remove")
    uninstall.add_argument("--state", action="store_true", help="identity, token, owner's key and settings file too")
    uninstall.add_argument("--yes", action="store_true", help="do not ask back")
    uninstall.add_argument("--json", action="store_true", help="every file, for programs; with --dry-run")
    add_state_dir(uninstall, "with --state: the state directory, if it is neither the service's nor the user's own")


def add_install_line(invite: argparse.ArgumentParser) -> None:
    invite.add_argument(
        "--install",
        action="store_true",
        help="print one line that installs this version on another machine, from this node, and joins; good once, for 1 h",
    )
    invite.add_argument("--archive", type=Path, metavar="FILE", help="with --install: hand over this archive")
    invite.add_argument(
        "--address", metavar="HOST[:PORT]", help="with --install: where the other machine reaches this node's control port"
    )


def _add_service(commands: Any, root: argparse.ArgumentParser) -> None:
    service = commands.add_parser(
        "service", help="run the node as a service that starts with the machine", prog="federation service",
        usage="federation service COMMAND",
    )  # fmt: skip
    service.set_defaults(parser=service)
    actions = service.add_subparsers(title="commands", metavar="COMMAND")
    install = _scoped(
        actions, "service install", "make the node a service and start it", SERVICE_INSTALL,
        "federation invite | ssh gpu2 federation service install --token-file -",
    )  # fmt: skip
    install.add_argument("--print", action="store_true", help="only print the unit")
    add_join_options(install)
    status = _scoped(actions, "service status", "show the service; exit code 1 if it does not run", "",
                     "federation service status")  # fmt: skip
    status.add_argument("--json", action="store_true", help="for programs")
    logs = _scoped(actions, "service logs", "show the service's log, as the service manager keeps it", "",
                   "federation service logs -f")  # fmt: skip
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes; Ctrl-C ends it")
    logs.add_argument("--last", default="50", metavar="N", help="begin with the newest N lines [50]")
    _scoped(actions, "service uninstall", "stop the service, with a drain, and remove it; its data stays", "",
            "federation service uninstall")  # fmt: skip


def _scoped(actions: Any, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    parser = command(actions, name, summary, description, epilog=f"example: {example}")
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--user", action="store_true", help="this user's service [the default, but for root]")
    scope.add_argument("--system", action="store_true", help="the machine's service")
    return parser
