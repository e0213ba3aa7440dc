"""`federation service`: the node as a service of systemd or launchd, with one command.

The token goes to the state directory, for the service's user only. It is in no unit, no command line and no environment.
"""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import federation
from federation.cli.terminal import Progress, complain, say
from federation.dirs import default_state_dir
from federation.errors import ControlUnreachable, FederationError, NotDone, UsageError
from federation.program import account, installation
from federation.program.commands import Commands
from federation.program.launchd import Launchd
from federation.program.service import MAX_PRIVILEGED_PORT, SYSTEM_STATE_DIR, Manager, Plan, write
from federation.program.systemd import Systemd
from federation.state import StateDir

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from federation.config import Settings
    from federation.mesh.invite_codes import InviteCode
    from federation.mesh.tokens import Token

OURS = ("help", "user", "system", "print", "command", "parser")  # options that are not of `join`
NOT_IN_UNIT = (*OURS, "token", "token_file", "invite", "state_dir")  # the secret is in the state directory
PATHS = ("tls_cert", "tls_key", "config")
HOMES = ("/home", "/root", "/run/user")  # a hardened service of the machine sees none of these


def install(args: Namespace) -> None:
    manager = _chosen(args)
    settings = _settings(args)
    plan = _plan(args, settings, is_system=manager.is_system)
    text = manager.render(plan)
    if args.print:
        say(text.rstrip("\n"))
        return
    problem = manager.problem()
    if problem is not None:
        raise NotDone(problem)
    if manager.is_system and os.geteuid():
        raise NotDone("a service of the machine takes root: sudo federation service install --system")
    user = None
    if manager.is_system and manager.kind == "systemd":
        _check_reachable(plan.program)
        user = account.make(SYSTEM_STATE_DIR, Commands(os.environ))
    token = _given(settings)
    state = StateDir(plan.state_dir)
    if token is None and manager.is_system:
        _refuse_another_network(state)
    was_there = manager.state_dir() is not None
    if was_there and token is not None and manager.state().running:
        manager.stop()  # the token is taken up by nobody else
    with _as_service(user, plan.state_dir):
        fresh = _prepare(state, token, settings, is_running=manager.state().running)
    try:
        write(manager.file, text)
    except OSError as error:
        raise NotDone(f"cannot write {manager.file}: {error.strerror}") from None
    with Progress() as progress:
        progress.show("starting, which waits until the node serves")
        manager.start()
    _say_installed(manager, plan, was_there=was_there, is_new_network=fresh)


def status(args: Namespace) -> int:
    manager = _installed(args)
    state = manager.state()
    directory = manager.state_dir()
    if args.json:
        answer = {
            "kind": manager.kind, "scope": _scope(manager), "file": str(manager.file), "running": state.running,
            "state": state.says, "pid": state.pid, "since": state.since, "enabled": state.enabled,
            "at_boot": state.at_boot, "state_dir": str(directory),
        }  # fmt: skip
        say(json.dumps(answer))
        return 0 if state.running else 1
    since = f" since {state.since}" if state.running and state.since else ""
    lines = [
        f"service  federation, of {_whose(manager)} ({manager.kind})",
        f"state    {state.says}{since}{f', process {state.pid}' if state.pid else ''}",
        f"starts   {_when(state.enabled, state.at_boot, state.advice)}",
        f"unit     {manager.file}",
        f"data     {directory}",
    ]
    if state.running and directory is not None:
        lines.append(f"node     {_node(directory)}")
    else:
        lines.append(f"logs     federation service logs{_flag(manager)}")
    say("\n".join(lines))
    return 0 if state.running else 1


def logs(args: Namespace) -> int:
    from federation.cli.ask import positive

    manager = _installed(args)
    words = manager.logs(positive(args.last, "--last"), args.follow)
    if shutil.which(words[0]) is None:
        raise NotDone(f"{words[0]} is not installed here; `federation logs` asks the node itself")
    code = subprocess.run(words, env=Commands(os.environ).environ, check=False).returncode
    if code:
        complain("the service manager shows no log here; `federation logs` asks the node itself")
    return 1 if code else 0


def uninstall(args: Namespace) -> None:
    manager = _installed(args)
    directory = manager.state_dir()
    remove(manager)
    said = f"stopped and removed: {manager.file}"
    if directory is not None:
        said += (
            f"\nidentity and token stay in {directory}; `federation join{_state_option(directory)}` goes on with them, "
            "`federation uninstall --state` removes them"
        )
    say(said)


# For update.py


def all_installed() -> list[Manager]:
    return [manager for manager in _managers() if manager.state_dir() is not None]


def remove(manager: Manager) -> None:
    """Stop a service, with a drain, and remove it. Raises NotDone."""
    if manager.is_system and os.geteuid():
        raise NotDone("the machine's service takes root: sudo federation service uninstall --system")
    with Progress() as progress:
        progress.show("stopping, which gives open connections --drain-timeout")
        manager.stop()
    try:
        manager.file.unlink(missing_ok=True)
    except OSError as error:
        raise NotDone(f"cannot remove {manager.file}: {error.strerror}") from None
    manager.forget()


def owner_of(manager: Manager) -> str:
    return _whose(manager)


# The manager


def _managers() -> list[Manager]:
    """The user's and the machine's, whether a service is installed there or not. Root's own is the machine's first."""
    commands, home = Commands(os.environ), Path.home()
    kinds: list[Manager]
    if sys.platform == "darwin":
        kinds = [Launchd(commands, home, is_system=is_system, uid=os.getuid()) for is_system in (False, True)]
    else:
        kinds = [Systemd(commands, home, is_system=is_system, user=_user()) for is_system in (False, True)]
    return kinds if os.geteuid() else kinds[::-1]


def _chosen(args: Namespace) -> Manager:
    """The one to install in: --user, --system, or as root the machine's and else the user's."""
    managers = _managers()
    if args.user or args.system:
        managers = [manager for manager in managers if manager.is_system == args.system]
    return managers[0]


def _installed(args: Namespace) -> Manager:
    managers = _managers()
    if args.user or args.system:
        managers = [manager for manager in managers if manager.is_system == args.system]
    for manager in managers:
        if manager.state_dir() is not None:
            return manager
    raise NotDone(f"no service is installed ({', '.join(str(manager.file) for manager in managers)}); `federation service "
                  "install` makes one")  # fmt: skip


# What it runs


def _settings(args: Namespace) -> Settings:
    """The settings that the service will have. Raises ConfigError."""
    from federation.config import load

    flags = {name: value for name, value in vars(args).items() if name not in (*OURS, "config")}
    foreign = sorted(name for name in os.environ if name.startswith("FEDERATION_") and name not in _FOR_THE_COMMAND)
    if foreign:
        complain(f"the service does not get this shell's variables ({', '.join(foreign)}); give them as options")
    return load(flags, config_file=args.config)


_FOR_THE_COMMAND = ("FEDERATION_TOKEN", "FEDERATION_TOKEN_FILE", "FEDERATION_CONTROL_KEY")


def _plan(args: Namespace, settings: Settings, *, is_system: bool) -> Plan:
    if args.state_dir:
        state_dir = Path(args.state_dir).expanduser().absolute()
    else:
        state_dir = Path(SYSTEM_STATE_DIR) if is_system else default_state_dir(os.environ)
    ports = [getattr(at.address, "port", 0) for at in settings.listens]
    ports += [settings.p2p_listen.port, settings.control.port]
    needs_low_port = any(0 < port <= MAX_PRIVILEGED_PORT for port in ports)
    return Plan(_program(), _words(args), state_dir, settings.drain_timeout_s, needs_low_port)


def _words(args: Namespace) -> tuple[str, ...]:
    """The options of `join` as a person gave them, but for the secret and the state directory."""
    words: list[str] = []
    for action in args.parser._actions:
        given = None if action.dest in NOT_IN_UNIT else getattr(args, action.dest)
        flag = action.option_strings[-1] if given is False else action.option_strings[0]  # --mdns and --no-mdns
        if isinstance(given, bool):
            words.append(flag)
            continue
        for value in given if isinstance(given, list) else [given] if given is not None else []:
            text = str(Path(value).expanduser().absolute()) if action.dest in PATHS else value
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return tuple(words)


def _program() -> tuple[str, ...]:
    """The words that start this program, also after an update."""
    found = installation.find(federation.__file__)
    if found is not None:
        place, folder = found
        return (str(place.link if place.is_packaged or place.is_link_ours() else folder / "federation"),)
    own = Path(sys.argv[0])
    if own.name == "federation" and own.is_file() and os.access(own, os.X_OK):
        return (str(own.absolute()),)
    return (sys.executable, "-m", "federation")


def _check_reachable(program: tuple[str, ...]) -> None:
    """The service runs as a user of its own, who has to reach the program. Raises NotDone."""
    path = Path(program[0]).resolve()
    closed = next((folder for folder in path.parents if not folder.stat().st_mode & 0o001), None)
    if closed is not None or str(path).startswith(tuple(f"{home}/" for home in HOMES)):
        raise NotDone(
            f"the service's user cannot reach {path} (in {closed or 'a home'}); install for the machine first "
            "(install.sh --system), or take your own service: federation service install --user"
        )


# Its state


def _given(settings: Settings) -> Token | InviteCode | None:
    from federation.cli.join import given_token

    return given_token(settings)


@contextmanager
def _as_service(user: pwd.struct_passwd | None, directory: Path) -> Iterator[None]:
    """Have the rights of the service's user, in a state directory that is its own."""
    if user is not None and not directory.exists():
        try:
            directory.mkdir(mode=0o700, parents=True)
            os.chown(directory, user.pw_uid, user.pw_gid)
        except OSError as error:
            raise NotDone(f"cannot make {directory}: {error.strerror}") from None
    with account.acting_as(user):
        yield


def _prepare(state: StateDir, given: Token | InviteCode | None, settings: Settings, *, is_running: bool) -> bool:
    """Save the token, which an invite's code is exchanged for, with no daemon there. Returns whether the service will begin
    a new network."""
    from federation.mesh import token_store
    from federation.mesh.invite_codes import InviteCode

    if is_running:
        return False
    state.lock()  # another daemon there would keep the service from starting
    try:
        if isinstance(given, InviteCode):
            from federation.cli.invited import exchange
            from federation.cli.join import take_up

            exchange(given, settings, state, take_up=take_up)
            return False
        if given is not None:
            member = token_store.take_up(given, state)
            if member.left_behind:
                complain(
                    f"this node moves to network {given.network_id}; its former token is in {state.path}/token.previous"
                )
            return False
        return token_store.saved_token(state) is None
    finally:
        state.unlock()


def _refuse_another_network(state: StateDir) -> None:
    """The machine's service would begin a new network in silence, beside the one of this person. Raises UsageError."""
    from federation.mesh import token_store

    if token_store.saved_token(state) is not None:
        return
    person = account.find(os.environ.get("SUDO_USER", ""))
    theirs = (Path(person.pw_dir) if person is not None else Path.home()) / ".local/state/federation/token"
    if theirs.parent != state.path and theirs.exists():
        raise UsageError(
            f"{theirs.parent} has a network's token, and the machine's service would begin another network; to take it "
            f"along add --token-file {theirs}"
        )


# Words


def _say_installed(manager: Manager, plan: Plan, *, was_there: bool, is_new_network: bool) -> None:
    state = manager.state()
    option = _state_option(plan.state_dir)
    sudo = "sudo " if manager.is_system else ""
    lines = [
        f"the service of {_whose(manager)} is {'written anew' if was_there else 'installed'}, and runs"
        f"{f' as process {state.pid}' if state.pid else ''}",
        f"  unit    {manager.file}",
        f"  data    {plan.state_dir}  (identity and token, for the service's user only)",
        f"  runs    {' '.join(map(shlex.quote, plan.words))}",
        f"  starts  {_when(state.enabled, state.at_boot, state.advice)}",
        f"  next    federation service status | logs -f | uninstall; {sudo}federation status{option}",
    ]
    if is_new_network:
        lines.append(f"  network a new one; `{sudo}federation invite{option}` prints its token for the next machine")
    say("\n".join(lines))


def _when(enabled: bool, at_boot: bool, advice: str) -> str:
    if not enabled:
        return "never by itself: it is disabled; `federation service install` enables it"
    return "with the machine" if at_boot else f"at login: {advice}"


def _node(directory: Path) -> str:
    from federation.cli.client import Daemon

    try:
        answer: dict[str, Any] = json.loads(Daemon(StateDir(directory)).ask("/api/v1/status", owner=True))
    except FederationError as error:
        hint = "" if isinstance(error, ControlUnreachable) else f"; sudo federation status{_state_option(directory)}"
        return f"{error}{hint}"
    network = answer["network"]
    return (
        f"federation {answer['node']['version']}, {network['peers_online']} of {network['peers_known']} nodes online; "
        f"federation status{_state_option(directory)}"
    )


def _state_option(directory: Path) -> str:
    is_default = directory == default_state_dir(os.environ)
    return "" if is_default else f" --state-dir {shlex.quote(str(directory))}"


def _scope(manager: Manager) -> str:
    return "system" if manager.is_system else "user"


def _whose(manager: Manager) -> str:
    return "the machine" if manager.is_system else f"the user {_user()}"


def _flag(manager: Manager) -> str:
    return f" --{_scope(manager)}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return getpass.getuser()
