"""What scripts/docs adds to mkdocs: which files are pages, and the look at the built site. No mkdocs is needed here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SITE = Path(__file__).parents[1] / "scripts/site"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


look, pages = load("look"), load("pages")


def test_all_pages_are_in_the_navigation_once() -> None:
    there = [path for path in pages.files() if path.endswith(".md")]
    shown = [page for section in pages.navigation(there) for several in section.values() for page in several]
    assert sorted(shown) == there
    assert {"README.md", "CHANGELOG.md", "docs/http.md", "examples/ollama.md"} <= set(there)


def test_a_page_that_no_section_names_comes_last_and_a_missing_one_is_passed_over() -> None:
    assert pages.navigation(["docs/new.md", "README.md"]) == [{"Start": ["README.md"]}, {"More": ["docs/new.md"]}]


def test_hidden_files_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "README.md",
        "CHANGELOG.md",
        "docs/a.md",
        "docs/images/a.png",
        "examples/.env",
        "docs/.hidden/a.md",
        "other/a.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.files() == ["CHANGELOG.md", "README.md", "docs/a.md", "docs/images/a.png"]


def built(tmp_path: Path, source: str, page: str) -> list[str]:
    (tmp_path / "README.md").write_text(source)
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text(page)
    return look.faults(site, tmp_path)


TEXT = "# T\n\n## A\n\n* one\n* two\n\n```\ncode\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
GOOD = (
    "<nav><ul><li>x</li></ul></nav><article><h1>T</h1><h2>A</h2><ul><li>one<li>two</ul><pre>code</pre>"
    "<table><tr><td>a</table><table><tr><td>1</table></article><a href='https://example.net'>x</a>"
)


def test_a_page_with_all_of_its_file_passes(tmp_path: Path) -> None:
    assert built(tmp_path, TEXT, GOOD) == []


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (GOOD.replace("<li>two", ""), "README.md: 2 list items, and 1 on the site"),
        (GOOD.replace("<pre>code</pre>", ""), "README.md: 1 blocks of code, and 0 on the site"),
        (GOOD.replace("<table><tr><td>1</table>", ""), "README.md: 2 rows of tables, and 1 on the site"),
        (f"<script src='https://example.net/a.js'></script>{GOOD}", "index.html fetches https://example.net/a.js"),
        (f"<link rel='stylesheet' href='//example.net/a.css'>{GOOD}", "index.html fetches //example.net/a.css"),
        (f"<style>@import url(https://example.net/a.css)</style>{GOOD}", "index.html fetches https://example.net/a.css"),
    ],
)
def test_what_is_missing_and_what_is_fetched_is_named(tmp_path: Path, page: str, fault: str) -> None:
    assert built(tmp_path, TEXT, page) == [fault]


def test_style_sheets_are_looked_at_and_an_empty_site_is_a_fault(tmp_path: Path) -> None:
    assert look.faults(tmp_path) == [f"{tmp_path} has no index.html"]
    (tmp_path / "a.css").write_text("a { background: url('https://example.net/a.png') }")
    assert look.faults(tmp_path) == ["a.css fetches https://example.net/a.png"]
