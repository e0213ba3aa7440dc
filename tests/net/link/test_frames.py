"""The frames in numbers. What each one means is tested in test_mux.py."""

from __future__ import annotations

from federation.net.link.frames import FIRST_OPTIONAL, HEADER, LOOK
from tests.support.frames import NAMES


def test_the_numbers_of_the_frame_types_are_the_protocol() -> None:
    """A change of one is a change of the muxer's protocol id, and splits the network."""
    assert sorted(NAMES) == [*range(1, 16), LOOK]
    assert (FIRST_OPTIONAL, LOOK) == (64, 65)
    assert HEADER.size == 7
