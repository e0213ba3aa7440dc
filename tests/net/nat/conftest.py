"""Fixtures of tests over relays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.hosts import HostEvents
from tests.support.links import End

if TYPE_CHECKING:
    from federation.net.link.link import Link


@pytest.fixture
def tunnels_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody takes them, tunnels that the remote opened keep what comes."""
    recorded = HostEvents.tunnel_opened

    def keep(self: HostEvents, link: Link, channel: object, service: str) -> None:
        channel.other = End()  # type: ignore[attr-defined]
        recorded(self, link, channel, service)  # type: ignore[arg-type]

    monkeypatch.setattr(HostEvents, "tunnel_opened", keep)
