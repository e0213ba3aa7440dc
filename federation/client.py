"""Asks the running node's control API. Standard library only: the command line answers at once."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.errors import ConfigError, ControlUnreachable, KeyNeeded, refusal
from federation.places import default_state_dir, find_config_file, read_config_file
from federation.state import StateDir
from federation.values import HostPort

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_CONTROL = HostPort("127.0.0.1", 8485)
TIMEOUT_S = 10.0  # the node answers in milliseconds; a machine under full load gets its time
MAX_ANSWER_BYTES = 32 * 1024 * 1024  # 4,096 peers with every field in use are 8 MB


def find_control(control: str | None, state_dir: Path | None, environ: Mapping[str, str]) -> HostPort:
    """Where the node listens: what the person says, else what the daemon wrote into its state directory, else 8485.

    Raises ControlUnreachable where a state directory was asked for in which no daemon runs.
    """
    if control is not None:
        return _control("--control", control)
    if state_dir is not None:
        running = _of_daemon(StateDir(state_dir.expanduser()))
        if running is None:
            raise ControlUnreachable(f"none runs with the state directory {state_dir}")
        return running
    if environ.get("FEDERATION_CONTROL"):
        address = _control("FEDERATION_CONTROL", environ["FEDERATION_CONTROL"])
        if address.port:
            return address
    settings = _file_settings(environ)
    running = _of_daemon(user_state_dir(environ, settings))
    if running is not None:
        return running
    address = _control("control", str(settings.get("control", DEFAULT_CONTROL)))
    return address if address.port else DEFAULT_CONTROL


def user_state_dir(environ: Mapping[str, str], settings: Mapping[str, Any] | None = None) -> StateDir:
    """The state directory that `join` without --state-dir uses; `settings` are the file's, if read already."""
    if settings is None:
        settings = _file_settings(environ)
    chosen = environ.get("FEDERATION_STATE_DIR") or settings.get("state_dir")
    return StateDir(Path(str(chosen)).expanduser() if chosen else default_state_dir(environ))


def find_key(address: HostPort, state_dir: Path | None, environ: Mapping[str, str]) -> str:
    """The control key of the node at `address`: from FEDERATION_CONTROL_KEY, or the daemon's state directory.

    Raises KeyNeeded where neither has it, ControlUnreachable where nobody answers.
    """
    if environ.get("FEDERATION_CONTROL_KEY"):
        return environ["FEDERATION_CONTROL_KEY"]
    state = key_state(address, state_dir, environ)
    key = state.load_control_key()
    if key is None:
        raise KeyNeeded(f"there is none in {state.path}")
    return key


def key_state(address: HostPort, state_dir: Path | None, environ: Mapping[str, str]) -> StateDir:
    """The state directory of the daemon at `address`: the one that was said, or that it says itself, or the user's."""
    if state_dir is not None:
        return StateDir(state_dir.expanduser())
    if address.is_loopback:
        try:
            return StateDir(Path(json.loads(ask(address, "/api/v1/status"))["node"]["state_dir"]))
        except KeyNeeded:
            pass  # it tells strangers nothing
    return user_state_dir(environ)


def read(address: HostPort, path: str, state_dir: Path | None, environ: Mapping[str, str]) -> str:
    """As `ask`, with the control key where the node wants one even for reading: others can reach it."""
    try:
        return ask(address, path)
    except KeyNeeded:
        return ask(address, path, key=find_key(address, state_dir, environ))


def ask(
    address: HostPort,
    path: str,
    *,
    method: str = "GET",
    key: str | None = None,
    body: object = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """The API's answer as it came, one line of JSON. Raises ControlUnreachable, or FederationError with its refusal.

    `key`: the control key, for what only the owner may do (see `find_key`); `body` goes as JSON.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        with connection.getresponse() as response:
            text = response.read(MAX_ANSWER_BYTES).decode()
        answer = json.loads(text)
    except OSError as error:
        raise ControlUnreachable(f"{address}: {error.strerror or error}") from None
    except (http.client.HTTPException, ValueError):
        raise ControlUnreachable(f"what answers on {address} is not a federation daemon") from None
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ControlUnreachable(f"what answers on {address} is not a federation daemon")
    if response.status == http.client.UNAUTHORIZED:
        raise KeyNeeded(f"{address}: {answer.get('error', response.reason)}")
    if response.status != http.client.OK:
        raise refusal(response.status, answer.get("error", response.reason))
    return text


def _file_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    path = find_config_file(None, environ)
    return {key.replace("-", "_"): value for key, value in read_config_file(path).items()} if path else {}


def _of_daemon(state: StateDir) -> HostPort | None:
    info = state.load_daemon()
    try:
        return None if info is None else _dialable(HostPort.parse(str(info["control"])))
    except (KeyError, ValueError):
        return None


def _control(name: str, text: str) -> HostPort:
    try:
        return _dialable(HostPort.parse(text))
    except ValueError as error:
        raise ConfigError(f"{name} {text!r}: {error}") from None


def _dialable(address: HostPort) -> HostPort:
    """A daemon that listens everywhere listens here too."""
    if not address.is_wildcard:
        return address
    return HostPort("::1" if ":" in address.host else "127.0.0.1", address.port)
