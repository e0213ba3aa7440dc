"""Looks at the built site: it fetches nothing from elsewhere, and its pages have all that their files have.

    .venv/bin/python scripts/site/look.py build/site

The site's Markdown is Python-Markdown's, which reads some texts differently from GitHub's (CommonMark): a list right behind
a line of text is no list, for one. So headings, rows, list items and blocks of code of each page are counted in both.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}
LOADING_RELS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
COUNTED = {
    "h2": "headings",
    "h3": "headings",
    "tr": "rows of tables",
    "li": "list items",
    "pre": "blocks of code",
    "img": "pictures",
}
_ELSEWHERE = re.compile(r"(?:https?:)?//")
_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


class Look(HTMLParser):
    """One page: what it would fetch from elsewhere, and how many of each element its article has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = _CSS.findall(text)
        self.count: Counter[str] = Counter()
        self._in_article = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_article |= tag == "article"
        if self._in_article and tag in COUNTED:
            self.count[COUNTED[tag]] += 1
        loads = values.get(LOADING.get(tag, ""), "")
        if tag == "link" and LOADING_RELS & set(values.get("rel", "").split()):
            loads = values.get("href", "")
        if _ELSEWHERE.match(loads):
            self.fetched.append(loads)

    def handle_endtag(self, tag: str) -> None:
        self._in_article &= tag != "article"


def as_commonmark(text: str) -> Counter[str]:
    return Look("<article>" + MarkdownIt("commonmark").enable("table").render(text) + "</article>").count


def faults(site: Path, root: Path = ROOT) -> list[str]:
    found = []
    for page in sorted(site.rglob("*.html")):
        look = Look(page.read_text())
        found += [f"{page.relative_to(site)} fetches {what}" for what in look.fetched]
        source = root / page.relative_to(site).with_suffix(".md")
        if page.name == "index.html":
            source = source.with_name("README.md")
        if page.name == "404.html":
            continue
        if not source.is_file():
            found.append(f"{page.relative_to(site)} comes from no file")
            continue
        wanted = as_commonmark(source.read_text())
        found += [
            f"{source.relative_to(root)}: {wanted[what]} {what}, and {look.count[what]} on the site"
            for what in sorted({*wanted, *look.count})
            if wanted[what] != look.count[what]
        ]
    for sheet in site.rglob("*.css"):
        found += [f"{sheet.relative_to(site)} fetches {what}" for what in _CSS.findall(sheet.read_text())]
    return found or ([] if (site / "index.html").is_file() else [f"{site} has no index.html"])


if __name__ == "__main__":
    site = Path(sys.argv[1])
    for fault in (found := faults(site)):
        print(f"docs: {fault}", file=sys.stderr)
    if not found:
        print(f"docs: {len(list(site.rglob('*.html')))} pages in {site}")
    sys.exit(bool(found))
