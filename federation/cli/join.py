"""`federation join`: from the command line to a daemon that serves, and the text that a person reads then.

The one command that is slow to start. main.py imports this module, and this module libp2p, only when it comes to that.
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import SecretStr

from federation import light, logs, outlet  # noqa: F401  # light comes before all else: see there
from federation.cli import detect
from federation.cli.render import text as render
from federation.cli.terminal import colorful, complain, flush, is_terminal, read_secret, read_stdin
from federation.config import load
from federation.dirs import default_state_dir
from federation.errors import ConfigError, TokenMalformed
from federation.forward.models import finding
from federation.mesh import token_store
from federation.mesh.invite_codes import InviteCode, is_code
from federation.mesh.owner import OwnerKey
from federation.mesh.tokens import Token
from federation.reactor import fdlimit
from federation.state import StateDir
from federation.units import parse_webhook

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from federation.config import Settings
    from federation.ops.schemas import Status
    from federation.units import Endpoint

MAX_INVITED = 8  # addresses in the printed command: one for each interface, and still a line that people paste


def join(args: Namespace) -> int:
    """Run a node until it is told to stop."""
    fdlimit.raise_limit()
    flags = {field: value for field, value in vars(args).items() if field not in ("command", "parser", "config")}

    def read_settings() -> Settings:
        return _with_notify_url(load(flags, config_file=args.config))

    settings = read_settings()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = outlet.of(sys.stdout), outlet.of(sys.stderr, logs.say_dropped)
    try:
        return _join(settings, read_settings)
    finally:
        if outlet.drain(sys.stdout, sys.stderr):  # else nobody reads, and a last word must not wait either
            sys.stdout, sys.stderr = streams


def _join(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    logs.configure(settings.log_level, settings.log_format, stream=sys.stderr, colors=colorful(sys.stderr))
    given = given_token(settings)  # first: what is found must not be written behind the prompt
    detected = _detected(settings) if settings.detect and not settings.backends else ()
    settings = _offering(settings, detected)
    state = StateDir(settings.state_dir)
    state.lock()
    if isinstance(given, InviteCode):
        from federation.cli.invited import exchange  # imports libp2p, so only after logging is set up

        exchange(given, settings, state, take_up=take_up)
        given = None  # the token is saved
    return _serve(settings, state, given, lambda: _offering(read_settings(), detected))


def _offering(settings: Settings, detected: Sequence[Endpoint]) -> Settings:
    """The settings with the servers found at the start, unless the person names backends."""
    return settings if settings.backends else settings.model_copy(update={"backends": tuple(detected)})


def _detected(settings: Settings) -> Sequence[Endpoint]:
    """The inference servers that run on this machine."""
    own = (*(listen.address for listen in settings.listens), settings.p2p_listen, settings.control)
    found = detect.find(without=[address.port for address in own])
    for line in detect.in_words(found):
        complain(line)
    return finding.offers(found)


def _with_notify_url(settings: Settings) -> Settings:
    """The settings with the address for notices from its file, if it is in one."""
    if settings.notify_url_file is None:
        return settings
    if str(settings.notify_url_file) == "-":  # SIGHUP would wait for a person to type it again
        raise ConfigError("--notify-url-file '-': name a file; it is read again at SIGHUP")
    try:
        url = parse_webhook(read_secret(settings.notify_url_file, "address for notices"))
    except ValueError as error:
        raise ConfigError(f"in {settings.notify_url_file}: {error}") from None
    return settings.model_copy(update={"notify_url": SecretStr(url)})


def given_token(settings: Settings) -> Token | InviteCode | None:
    """The token or invite that came with this start, if any: text, file or standard input."""
    if settings.invite is not None or settings.token is not None:
        what = "token" if settings.invite is None else "invite"
        text = (settings.invite or settings.token).get_secret_value()  # type: ignore[union-attr]
        if text.strip() == "-":
            text = read_stdin(what)
    elif settings.token_file is not None:
        text = read_secret(settings.token_file, "token")
    else:
        return None
    if not text.strip():
        raise TokenMalformed("it is empty")  # an unset shell variable must not start a new network
    return InviteCode.decode(text) if is_code(text) else Token.decode(text)


def take_up(given: Token, state: StateDir) -> Token:
    """Save the token that came with this start, and say what becomes of others. Returns the one to use."""
    member = token_store.take_up(given, state)
    if member.outdated:
        complain(f"the token given here is from before it was rotated; the newer one in {state.path / 'token'} is used")
    if member.left_behind:
        previous = state.path / "token.previous"
        complain(f"this node moves to network {member.token.network_id}; the token saved here before is in {previous}")
    return member.token


def _serve(settings: Settings, state: StateDir, given: Token | None, read_settings: Callable[[], Settings]) -> int:
    from federation.daemon import serve  # imports libp2p, so only after logging is set up

    owner: OwnerKey | None = None  # of a network that begins here
    if given is not None:
        token = take_up(given, state)
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
        with suppress(OSError, ValueError):  # a closed output is no reason not to serve
            print(render.ready(answer, next_step, token_file=str(state.path / "token") if owner is not None else ""))
        flush()

    return serve(settings, state, token, on_ready=ready, read_settings=read_settings)
