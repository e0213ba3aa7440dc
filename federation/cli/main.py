"""The command line's way in: finds the command's function, and turns an exception into one line and an exit code.

Only cli/ prints, reads the environment or exits. Nothing slow is imported here or by a command that people wait for
(`--help`, `token`, `status`, `peers`, `invite`, `version`): pydantic, structlog, trio and libp2p are for `join` alone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from federation import __version__
from federation.cli.grammar.parser import parse
from federation.cli.terminal import complain, flush, show_anything
from federation.errors import FederationError
from federation.units import without_tokens

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Sequence

INTERRUPTED, TERMINATED = 130, 143  # as shells have it: 128 + SIGINT, 128 + SIGTERM


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0, 1 when it failed, 2 when it was asked wrongly. A person never sees a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    show_anything()
    if os.getpid() == 1:  # of a container: there the kernel ends nobody who does not ask for it, and a start takes seconds
        signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    try:
        code = _run(parse(argv, __version__))
    except SystemExit as done:  # --help and --version
        code = int(done.code or 0)
    except BrokenPipeError:  # the reader of our output has enough: `status --watch | head`
        code = 0
    except BaseException as error:  # noqa: BLE001  the last line of defence
        code = _explain(error, argv)
    flush()
    sys.exit(code)


def _run(args: Namespace) -> int:
    if args.command is None:
        print(args.parser.format_help(), end="")
        return 0
    return _COMMANDS[args.command](args) or 0


def version(_args: Namespace) -> None:
    print(f"federation {__version__}")


def _from(module: str, name: str) -> Callable[[Namespace], int | None]:
    """The command in another module of ours, which is imported when it runs."""

    def run(args: Namespace) -> int | None:
        function: Callable[[Namespace], int | None] = getattr(import_module(f"federation.{module}"), name)
        return function(args)

    return run


_COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    "version": version,
    "join": _from("cli.join", "join"),
    **{name: _from("cli.access", name) for name in ("ban", "unban")},
    "completion": _from("cli.completion", "completion"),
    **{name: _from("cli.diagnose", name) for name in ("ping", "logs", "doctor", "netcheck", "notify")},
    "token new": _from("cli.owner", "token_new"),
    "token inspect": _from("cli.owner", "token_inspect"),
    "token rotate": _from("cli.owner", "rotate"),
    "owner show": _from("cli.owner", "show"),
    "owner export": _from("cli.owner", "export"),
    "key add": _from("cli.keys", "add"),
    "key list": _from("cli.keys", "list_keys"),
    "key revoke": _from("cli.keys", "revoke"),
    **{name: _from("cli.invites", name) for name in ("invite", "approve", "refuse")},
    "use": _from("cli.use", "use"),
    "dashboard": _from("cli.dashboard", "dashboard"),
    **{f"service {name}": _from("cli.service", name) for name in ("install", "status", "logs", "uninstall")},
    **{name: _from("cli.update", name) for name in ("update", "uninstall")},
    **{
        name: _from("cli.ask", name)
        for name in ("status", "peers", "models", "place", "explain", "drain", "undrain", "leave")
    },
}


def _explain(error: BaseException, args: Sequence[str]) -> int:
    """Say in one line on stderr why it ended; returns the exit code."""
    cause = _cause(error)
    if isinstance(cause, KeyboardInterrupt | EOFError):
        return INTERRUPTED
    if isinstance(cause, FederationError):
        complain(str(cause))
        return cause.exit_code
    complain(f"internal error: {type(cause).__name__}: {cause}; run with --log-level debug for details")
    if _wants_details(args):
        import traceback

        print(without_tokens("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    return FederationError.exit_code


def _cause(error: BaseException) -> BaseException:
    """The one error of an exception group to show: one of our own, which are written for people, if there is one."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if isinstance(leaf, FederationError)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    # By attribute: Python 3.10 has no exception groups, trio brings them.
    members = getattr(error, "exceptions", None)
    if not members:
        yield error
    for member in members or ():
        yield from _leaves(member)


def _wants_details(args: Sequence[str]) -> bool:
    asked = (*args, os.environ.get("FEDERATION_LOG_LEVEL", ""))
    return any(text.lower() in ("debug", "--log-level=debug") for text in asked) or logging.root.level == logging.DEBUG
