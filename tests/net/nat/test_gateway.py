"""The router of this machine, from tables and commands of several systems."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from federation.net.nat.gateway import default_gateway

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
MACOS = """\
   route to: default
destination: default
       mask: default
    gateway: {gateway}
  interface: en0
      flags: <UP,GATEWAY,DONE,STATIC,PRCLONING,GLOBAL>
"""


@pytest.mark.parametrize(
    ("lines", "gateway"),
    [
        ("eth0\t00000000\t010BA8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "192.168.11.1"),
        ("eth0\t000BA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", None),
        ("tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n", None),
        ("", None),
    ],
)
async def test_of_linux(tmp_path: Path, lines: str, gateway: str | None) -> None:
    table = tmp_path / "route"
    table.write_text(HEAD + lines)
    assert await default_gateway(table, ("/nowhere/route",)) == gateway


@pytest.mark.parametrize(
    ("said", "gateway"),
    [(MACOS.format(gateway="192.168.1.1"), "192.168.1.1"), (MACOS.format(gateway="link#12"), None), ("", None)],
    ids=["a router", "a tunnel", "no route"],
)
async def test_of_macos(tmp_path: Path, said: str, gateway: str | None) -> None:
    command = (sys.executable, "-c", f"import sys; sys.stdout.write({said!r})")
    assert await default_gateway(tmp_path / "none", command) == gateway


async def test_where_nothing_tells(tmp_path: Path) -> None:
    assert await default_gateway(tmp_path / "none", (str(tmp_path / "none"),)) is None
