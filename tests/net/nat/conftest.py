"""Fixtures of tests over relays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.hosts import HostEvents
from tests.support.links import End

if TYPE_CHECKING:
    from federation.net.link.channel import Channel
    from federation.net.link.link import Link


@pytest.fixture
def tunnels_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody takes them, tunnels that the remote opened keep what comes."""
    recorded = HostEvents.tunnel_opened

    def keep(self: HostEvents, link: Link, channel: Channel, service: str, believed: int) -> None:
        channel.other = End()
        recorded(self, link, channel, service, believed)

    monkeypatch.setattr(HostEvents, "tunnel_opened", keep)
