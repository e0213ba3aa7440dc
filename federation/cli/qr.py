"""A QR code in a terminal, of half blocks where the terminal shows UTF-8, else of coloured spaces.

segno makes the code: pure Python without dependencies, 0.3 MB, and kept; it is imported when somebody asks for a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

QUIET = 4  # modules of white around a code, as ISO 18004 has it;
LEAST_QUIET = 1  # in a narrow terminal: zxing-cpp, which many scanners use, reads that too
BLACK_ON_WHITE, WHITE, BLACK, RESET = "\x1b[30;107m", "\x1b[107m", "\x1b[40m", "\x1b[0m"
_HALVES = {(True, True): "\u2588", (True, False): "\u2580", (False, True): "\u2584", (False, False): " "}


class Screen(NamedTuple):
    """`utf8`: it shows block characters; `colors`: it understands ANSI colours; `columns`: how wide it is."""

    utf8: bool
    colors: bool
    columns: int

    @property
    def wide(self) -> int:
        """Columns of a module: half a block is as high as it is wide, and two spaces are."""
        return 1 if self.utf8 else 2


def drawn(text: str, screen: Screen) -> str | None:
    """The picture; None if this terminal cannot show it."""
    if not (screen.utf8 or screen.colors):
        return None
    modules = _modules(text)
    quiet = min(QUIET, (screen.columns // screen.wide - len(modules)) // 2)
    if quiet < LEAST_QUIET:
        return None
    rows = _framed(modules, quiet)
    if not screen.utf8:
        return "\n".join(_spaces(row) for row in rows)
    if len(rows) % 2:
        rows.append([False] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join(_halves(upper, lower, colors=screen.colors) for upper, lower in pairs)


def missing(text: str, screen: Screen) -> str:
    """Why this terminal cannot show it."""
    if not (screen.utf8 or screen.colors):
        return "it needs a terminal that shows UTF-8, or colours (TERM is dumb, or NO_COLOR is set)"
    needed = (len(_modules(text)) + 2 * LEAST_QUIET) * screen.wide
    return f"it needs {needed} columns, and the terminal has {screen.columns}; widen it"


def _modules(text: str) -> list[list[bool]]:
    """True is black. The lowest error correction: a screen has no scratches, and a small code fits more terminals."""
    import segno

    return [[bool(dark) for dark in row] for row in segno.make_qr(text, error="l", boost_error=False).matrix]


def _framed(modules: Sequence[Sequence[bool]], quiet: int) -> list[list[bool]]:
    white = [False] * (len(modules) + 2 * quiet)
    middle = [[False] * quiet + list(row) + [False] * quiet for row in modules]
    return [white] * quiet + middle + [white] * quiet


def _halves(upper: Sequence[bool], lower: Sequence[bool], *, colors: bool) -> str:
    """Without colours the terminal's own: most are light on dark, so the light modules are drawn."""
    if colors:
        return BLACK_ON_WHITE + "".join(_HALVES[pair] for pair in zip(upper, lower, strict=True)) + RESET
    return "".join(_HALVES[not up, not low] for up, low in zip(upper, lower, strict=True))


def _spaces(row: Sequence[bool]) -> str:
    return "".join(f"{BLACK if dark else WHITE}  " for dark in row) + RESET
