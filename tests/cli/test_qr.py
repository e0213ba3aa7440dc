"""QR codes in terminals: every module where it belongs, in each way to draw, and nothing where it does not fit."""

from __future__ import annotations

import re

import pytest
import segno

from federation.cli.qr import LEAST_QUIET, QUIET, Screen, drawn, missing
from federation.mesh.invite_codes import InviteCode
from federation.net.dial.address import PeerAddress

CODE = InviteCode(bytes(range(16)), 1_800_000_000, (PeerAddress("192.0.2.1", 4484), PeerAddress("2001:db8::1", 4484)))
TEXT = CODE.encode()
MODULES = [[bool(dark) for dark in row] for row in segno.make_qr(TEXT, error="l", boost_error=False).matrix]


def read(picture: str, *, utf8: bool) -> list[list[bool]]:
    """The picture's dark modules, as a terminal shows them: with colours black on white, without them light on dark."""
    colored = "\x1b" in picture
    if utf8:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", picture).split("\n")
        halves = ("\u2588\u2580", "\u2588\u2584")
        return [[(character in half) == colored for character in line] for line in lines for half in halves]
    return [
        [dark == "40" for dark, spaces in re.findall(r"\x1b\[(40|107)m(  )", line) if spaces] for line in picture.split("\n")
    ]


def without_quiet(rows: list[list[bool]], quiet: int) -> list[list[bool]]:
    size = len(MODULES)
    assert not any(any(row) for row in rows[:quiet] + rows[quiet + size :]), "white above and below"
    assert not any(any(row[:quiet]) or any(row[quiet + size :]) for row in rows), "white on both sides"
    return [row[quiet : quiet + size] for row in rows[quiet : quiet + size]]


@pytest.mark.parametrize("colors", [True, False])
def test_half_blocks(colors: bool) -> None:
    picture = drawn(TEXT, Screen(True, colors, 80))
    assert picture is not None
    rows = read(picture, utf8=True)
    assert len(rows[0]) == len(MODULES) + 2 * QUIET
    assert without_quiet(rows, QUIET) == MODULES
    assert ("\x1b" in picture) == colors


def test_a_code_fits_40_columns() -> None:
    picture = drawn(TEXT, Screen(True, True, 40))
    assert picture is not None
    rows = read(picture, utf8=True)
    assert len(rows[0]) <= 40
    assert without_quiet(rows, (40 - len(MODULES)) // 2) == MODULES


def test_an_ascii_terminal_with_colours() -> None:
    picture = drawn(TEXT, Screen(False, True, 80))
    assert picture is not None
    assert picture.isascii()
    rows = read(picture, utf8=False)
    assert 2 * len(rows[0]) <= 80
    assert without_quiet(rows, (80 // 2 - len(MODULES)) // 2) == MODULES


def test_what_is_missing_is_said() -> None:
    for screen, words in (
        (Screen(False, False, 200), "UTF-8, or colours"),
        (Screen(True, True, len(MODULES) + 2 * LEAST_QUIET - 1), f"{len(MODULES) + 2} columns, and the terminal has 34"),
        (Screen(False, True, 40), f"{2 * (len(MODULES) + 2)} columns"),
    ):
        assert drawn(TEXT, screen) is None
        assert words in missing(TEXT, screen)
