"""Which files are pages of the site, and in which order: a hook of mkdocs (scripts/docs).

The pages are the files where they are, and each keeps its place: README.md is the first page, docs/http.md is
docs/http.html. So relative links lead to the same file on the site and in a checkout. A page that SECTIONS lacks stands
in the last section.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
# Pages that are not there yet, or not any more, are passed over.
SECTIONS: dict[str, list[str]] = {
    "Start": [
        "README.md",
        "docs/start.md",
        "docs/install.md",
        "docs/service.md",
        "docs/invites.md",
        "examples/three-machines.md",
    ],
    "Backends": [
        *("examples/README.md", "examples/ollama.md", "examples/llama.cpp.md", "examples/vllm.md", "examples/sglang.md"),
        *("examples/lm-studio.md", "examples/localai.md", "examples/openai-compatible.md"),
    ],
    "Clients": ["docs/clients.md", "docs/http.md", "examples/keys-and-tls.md"],
    "Run it": [
        "docs/cli.md",
        "docs/dashboard.md",
        "docs/networking.md",
        "docs/security.md",
        "docs/versions.md",
        "docs/api.md",
    ],
    "Help": ["docs/troubleshooting.md", "docs/reports.md", "docs/comparison.md"],
    "How it is made": [
        *("docs/architecture.md", "docs/decisions.md", "docs/performance.md", "docs/reliability.md", "CHANGELOG.md"),
    ],
}
REST = "More"


def files() -> list[str]:
    """Pages, and what they show or link to, by paths from the root; no hidden file (examples/.env has secrets)."""
    inside = (path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*"))
    paths = [path.relative_to(ROOT) for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *inside) if path.is_file()]
    return sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))


def navigation(pages: list[str]) -> list[dict[str, list[str]]]:
    named = {page for several in SECTIONS.values() for page in several}
    sections = {**SECTIONS, REST: [page for page in pages if page not in named]}
    there = {title: [page for page in several if page in pages] for title, several in sections.items()}
    return [{title: several} for title, several in there.items() if several]


def on_config(config: MkDocsConfig) -> None:
    config.nav = navigation([path for path in files() if path.endswith(".md")])


def on_files(found: Files, config: MkDocsConfig, **_: Any) -> Files:
    from mkdocs.structure.files import File

    for file in [file for file in found if file.src_dir == config.docs_dir]:
        found.remove(file)
    for path in files():
        found.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return found
