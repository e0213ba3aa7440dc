"""Links between pages lead to a file that is there, and to a heading or an anchor in it.

Links to other hosts are not looked at. Pages are read as GitHub reads them (CommonMark), and anchors are GitHub's.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for part in (".", "docs", "examples") for path in (ROOT / part).glob("*.md"))
_ID = re.compile(r"<\w+[^>]*\b(?:id|name)=\"([^\"]+)\"")
_ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|//", re.IGNORECASE)


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def inside(found: list[Token]) -> Iterator[Token]:
    for token in found:
        yield token
        yield from token.children or []


def links(text: str) -> list[str]:
    return [
        str(token.attrs.get("href") or token.attrs.get("src"))
        for token in inside(tokens(text))
        if token.type in {"link_open", "image"}
    ]


def anchors(text: str) -> set[str]:
    """Of headings: lower case, without punctuation, a hyphen a space, and a number where there are several of one name."""
    found: set[str] = set()
    several = tokens(text)
    for opening, inline in pairwise(several):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or [] if child.type in {"text", "code_inline"})
            name = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            number = 0
            while (anchor := f"{name}-{number}" if number else name) in found:
                number += 1
            found.add(anchor)
    raw = (token.content for token in inside(several) if token.type in {"html_block", "html_inline"})
    return found | {name for text in raw for name in _ID.findall(text)}


@cache
def anchors_of(path: Path) -> set[str]:
    return anchors(path.read_text())


def broken(text: str, page: Path) -> list[str]:
    found = []
    for link in links(text):
        if _ELSEWHERE.match(link):
            continue
        where, _, anchor = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        if not target.is_relative_to(ROOT) or not target.is_file() or (anchor and anchor not in anchors_of(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not broken(page.read_text(), page)


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        targets = {(page.parent / link.partition("#")[0]).resolve() for page in new for link in links(page.read_text())}
        new = {target for target in targets if target in PAGES} - reached
    assert not [str(page.relative_to(ROOT)) for page in PAGES if page not in reached]


@pytest.mark.parametrize(
    "link",
    [
        *("http.md", "http.md#client-keys", "../README.md#web-pages", "images/dashboard-add.png", "../examples/alerts.yml"),
        *("https://example.net/nothing", "mailto:x@example.net", "#links"),
    ],
)
def test_right_links_pass(link: str) -> None:
    assert not broken(f"[text]({link}) and ![picture]({link})", ROOT / "docs/decisions.md")


@pytest.mark.parametrize(
    "link",
    [
        "htp.md",
        "http.md#client-key",
        "README.md",
        "../README.md#nothing",
        "#nothing",
        "../../README.md",
        "/docs/http.md",
        "images",
    ],
)
def test_wrong_links_are_found(link: str) -> None:
    page = ROOT / "docs/decisions.md"
    assert broken(f"[text]({link})", page) == [link]
    assert broken(f"a | b\n--|--\n[text]({link}) | c\n", page) == [link]
    assert not broken(f"`[text]({link})`\n\n```\n[text]({link})\n```\n", page)


def test_anchors_are_as_github_makes_them() -> None:
    text = (
        '# A title\n\n## What `--write` does, and not\n\n## Twice\n\n## Twice\n\n<a id="own"></a>text\n\n```\n# none\n```\n'
    )
    assert anchors(text) == {"a-title", "what---write-does-and-not", "twice", "twice-1", "own"}
