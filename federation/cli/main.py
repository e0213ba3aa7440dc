"""The command line: with its other modules (cli_*) the only one that prints, reads the environment or exits.

Rule: nothing slow at the top. `--help`, `token`, `status`, `peers`, `invite` and `version` answer at once, so pydantic,
structlog, trio and libp2p are imported by `join` alone, inside it.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from federation import __version__
from federation.cli.grammar import parse
from federation.cli.terminal import colorful, complain, is_terminal, read_secret, read_stdin
from federation.errors import FederationError, NotDone, TokenMalformed, UsageError
from federation.units import without_tokens

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Sequence

    from federation.config import Settings
    from federation.mesh.tokens import Token
    from federation.ops.schemas import Status
    from federation.state import StateDir
    from federation.units import Endpoint

MAX_INVITED = 8  # addresses in the printed command: one for each interface, and still a line that people paste
INTERRUPTED = 130  # as shells have it: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0, 1 when it failed, 2 when it was asked wrongly. A person never sees a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(parse(argv, __version__))
    except SystemExit as done:  # --help and --version
        code = int(done.code or 0)
    except BrokenPipeError:  # whoever read our output has enough of it: `status --watch | head`
        code = 0
    except BaseException as error:  # noqa: BLE001  the last line of defence
        code = _explain(error, argv)
    _flush()
    sys.exit(code)


def _run(args: Namespace) -> int:
    if args.command is None:
        print(args.parser.format_help(), end="")
        return 0
    return _COMMANDS[args.command](args) or 0


def join(args: Namespace) -> int:
    """Run a node until it is told to stop."""
    from federation import logs
    from federation.config import load
    from federation.reactor import fdlimit
    from federation.state import StateDir

    fdlimit.raise_limit()
    flags = {field: value for field, value in vars(args).items() if field not in ("command", "parser", "config")}

    def read_settings() -> Settings:
        return load(flags, config_file=args.config)

    settings = read_settings()
    logs.configure(settings.log_level, settings.log_format, stream=sys.stderr, colors=colorful(sys.stderr))
    detected = _detected(settings) if settings.detect and not settings.backends else ()
    settings = _offering(settings, detected)
    given = _given_token(settings)
    state = StateDir(settings.state_dir)
    state.lock()
    return _serve(settings, state, given, lambda: _offering(read_settings(), detected))


def token_inspect(args: Namespace) -> None:
    from federation.cli import client, render
    from federation.mesh import token_store
    from federation.mesh.tokens import Token
    from federation.state import StateDir

    text = args.token
    if text is None and args.state_dir is None:
        text = os.environ.get("FEDERATION_TOKEN") or None
    if text is not None:
        token: Token | None = Token.decode(read_stdin("token") if text == "-" else text)
    else:
        state = StateDir(args.state_dir) if args.state_dir else client.user_state_dir(os.environ)
        token = token_store.saved_token(state)
    if token is None:
        raise UsageError(f"no token is given, and none is saved in {state.path}")
    print(render.token(token))


def invite(args: Namespace) -> None:
    """The secret comes from the state directory, which only the daemon's own user can read: it does not travel by HTTP. What
    the daemon adds are addresses, of which a daemon that is none would make a way to itself: it has to prove what it is.
    """
    from federation.cli import client
    from federation.mesh import token_store

    daemon = client.find(args.control, args.state_dir, os.environ)
    status = json.loads(daemon.ask("/api/v1/status", owner=True))
    token = token_store.saved_token(daemon.state)
    if token is None or token.network_id != status["network"]["id"]:
        where = f"is not in {daemon.state.path}; run this on the daemon's machine, with its --state-dir"
        raise NotDone(f"the token of that daemon's network {where}")
    text = token.with_addresses(tuple(status["network"]["invite_addresses"])).encode()
    command = f"echo {text} | federation join --token-file -"  # as the API says it
    print(json.dumps({"token": text, "command": command}) if args.json else text)


def version(_args: Namespace) -> None:
    print(f"federation {__version__}")


def _from(module: str, name: str) -> Callable[[Namespace], int | None]:
    """The command in another module of ours, which is imported when somebody wants it."""

    def run(args: Namespace) -> int | None:
        function: Callable[[Namespace], int | None] = getattr(import_module(f"federation.{module}"), name)
        return function(args)

    return run


_COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    "join": join,
    "token inspect": token_inspect,
    "invite": invite,
    "version": version,
    **{name: _from("cli.access", name) for name in ("ban", "unban")},
    "completion": _from("cli.completion", "completion"),
    **{name: _from("cli.diagnose", name) for name in ("ping", "logs", "doctor")},
    "token new": _from("cli.owner", "token_new"),
    "token rotate": _from("cli.owner", "rotate"),
    "owner show": _from("cli.owner", "show"),
    "owner export": _from("cli.owner", "export"),
    "dashboard": _from("cli.dashboard", "dashboard"),
    **{name: _from("cli.ask", name) for name in ("status", "peers", "explain", "drain", "undrain", "leave")},
}


def _offering(settings: Settings, detected: Sequence[Endpoint]) -> Settings:
    """With what was found at the start, unless the person says what to offer."""
    return settings if settings.backends else settings.model_copy(update={"backends": tuple(detected)})


def _detected(settings: Settings) -> Sequence[Endpoint]:
    """What runs on this machine."""
    from federation.cli import detect
    from federation.units import Endpoint

    own = (*(listen.address for listen in settings.listens), settings.p2p_listen, settings.control)
    found = detect.find(without=[address.port for address in own])
    for line in detect.in_words(found):
        complain(line)
    return [Endpoint.parse(text) for text in detect.offers(found)]


def _serve(settings: Settings, state: StateDir, given: Token | None, read_settings: Callable[[], Settings]) -> int:
    from federation.cli import render
    from federation.daemon import serve  # imports libp2p, so only after logging is set up
    from federation.dirs import default_state_dir
    from federation.mesh import token_store
    from federation.mesh.owner import OwnerKey
    from federation.mesh.tokens import Token

    owner: OwnerKey | None = None  # of a network that begins here
    if given is not None:
        member = token_store.take_up(given, state)
        token = member.token
        if member.outdated:
            complain(f"the token given here is from before it was rotated; the newer one in {state.path / 'token'} is used")
        if member.left_behind:
            previous = state.path / "token.previous"
            complain(f"this node moves to network {token.network_id}; the token saved here before is in {previous}")
    else:
        saved = token_store.saved_token(state)
        if saved is None:
            owner = OwnerKey.new()
            saved = Token.new(owner=owner.public)
        token = saved

    def ready(answer: Status) -> None:
        if owner is not None:
            # The network begins here: a start that failed on the way leaves no token behind.
            state.save_owner_key(token.network_id, owner.encode())
            state.save_token(token.encode())
        if owner is not None and is_terminal(sys.stdout):  # a service's output is kept in a journal, which others read
            invited = token.with_addresses(answer["network"]["invite_addresses"][:MAX_INVITED])
            next_step = render.next_machine(invited.encode())
        else:
            is_default = state.path == default_state_dir(os.environ)
            next_step = render.next_invite("" if is_default else f" --state-dir {shlex.quote(str(state.path))}")
        with suppress(OSError):  # nobody reads our output: no reason not to serve
            print(render.ready(answer, next_step, token_file=str(state.path / "token") if owner is not None else ""))
        _flush()

    return serve(settings, state, token, on_ready=ready, read_settings=read_settings)


def _given_token(settings: Settings) -> Token | None:
    """The token that came with this start, if any: text, file or standard input."""
    from federation.mesh.tokens import Token

    if settings.token is not None:
        text = settings.token.get_secret_value()
        if text.strip() == "-":
            text = read_stdin("token")
    elif settings.token_file is not None:
        text = read_secret(settings.token_file, "token")
    else:
        return None
    if not text.strip():
        raise TokenMalformed("it is empty")  # an unset shell variable must not start a new network
    return Token.decode(text)


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
    """What to tell of an exception group: our own errors are written for people, so one of those if there is one."""
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


def _flush() -> None:
    """Flush standard output; a reader that went away (`peers | head`) is no error, now or at the interpreter's end."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
