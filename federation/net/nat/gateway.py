"""The router of this machine: the IPv4 gateway of its default route."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from pathlib import Path

import trio

ROUTES = Path("/proc/net/route")  # Linux
COMMAND = ("/sbin/route", "-n", "get", "default")  # macOS and the BSDs
COMMAND_S = 5.0
_GATEWAY = re.compile(r"^\s*gateway: (\S+)\s*$", re.MULTILINE)


async def default_gateway(routes: Path = ROUTES, command: tuple[str, ...] = COMMAND) -> str | None:
    """None without a router, or where this machine does not tell."""
    try:
        return _of_table(await trio.Path(routes).read_text())
    except OSError:
        return await _ask(command)


def _of_table(table: str) -> str | None:
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000" and int(fields[3], 16) & 2:
            return str(ipaddress.IPv4Address(int(fields[2], 16).to_bytes(4, "little")))
    return None


async def _ask(command: tuple[str, ...]) -> str | None:
    try:
        with trio.fail_after(COMMAND_S):
            run = await trio.run_process(list(command), capture_stdout=True, check=False, stderr=subprocess.DEVNULL)
    except (OSError, trio.TooSlowError):
        return None
    found = _GATEWAY.search(run.stdout.decode("utf-8", "replace"))
    try:
        return None if found is None else str(ipaddress.IPv4Address(found[1]))
    except ValueError:  # "link#12", of a tunnel; or IPv6
        return None
