"""The places of federation's files on this machine, and the reader of its settings file. No pydantic: see units.py."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.errors import ConfigError
from federation.units import decoded

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_VARIABLE = "FEDERATION_CONFIG"


def default_state_dir(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    if platform == "darwin":
        return _home() / "Library/Application Support/federation"
    return _base(environ, "XDG_STATE_HOME", ".local/state") / "federation"


def default_config_file(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    if platform == "darwin":
        return _home() / "Library/Application Support/federation/config.toml"
    return _base(environ, "XDG_CONFIG_HOME", ".config") / "federation/config.toml"


def find_config_file(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The settings file to read: the one asked for, which must be there, or the user's own if there is one."""
    if given is None and environ.get(CONFIG_VARIABLE):
        given = Path(environ[CONFIG_VARIABLE])
    if given is not None:
        return given.expanduser()
    default = default_config_file(environ)
    return default if os.path.exists(default) else None  # nor is there one in a home that this user may not enter


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings file's keys as written. Raises ConfigError, which names the file."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        values: dict[str, Any] = toml.loads(decoded(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return values


def _base(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    # The XDG specification: a value that is not an absolute path counts as none.
    path = Path(environ.get(variable, ""))
    return path if path.is_absolute() else _home() / fallback


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user id without an account, as containers have it
        raise ConfigError("this user has no home directory; set HOME, or name --state-dir and --config") from None
