"""What docs and comments name is there: a module, class, function, constant or file of this project.

What counts as a name of ours, in backticks in docs/*.md, README.md and examples/*.md:

* a path: with a slash inside (`net/dial/race`, `forward/l4.py`, `net/host.Host.cut`, `reactor/`) or with the ending of a
  file that we keep (`two-nodes.sh`). Of a command line the first word counts. Not paths: `/metrics`, `~/.bashrc`, `https://x`;
* a dotted name, unless it begins with a module of somebody else (`host.cut`, `Link.tick`, but `sys.path`);
* a single word with an underscore in front or capitals inside: `_retired`, `NodeData`, `MAX_CHANNELS`;
* on the pages about the code itself (ABOUT_CODE) every single word.

Words of others are in FOREIGN. In comments and docstrings of federation/ and scripts/ the names of Python files count, and
dotted names of a module and a class or constant in it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for part in (".", "docs", "examples") for path in (ROOT / part).glob("*.md") if path.name != "CHANGELOG.md"
)
FOLDERS = ("federation", "docs", "examples", "scripts", "tests")
ARCHITECTURE = ROOT / "docs/architecture.md"
ABOUT_CODE = {"architecture.md", "decisions.md"}
ENDINGS = ("py", "md", "sh", "toml", "lock", "yml", "yaml", "json", "js", "html", "service", "plist", "txt")
MADE = {"dist/", "control.sock", "control.key", "examples/.env"}  # by scripts/build; by a daemon; by a person
MADE |= {"dist/package/", "SHA256SUMS", "SHA256SUMS.sig", "release.pub"}  # by scripts/package
MADE |= {"bin/federation", "lib/", "share/", "share/install.sh", "share/contents"}
FOREIGN = {
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("ConnectionConfig", "Swarm", "dial_peer", "psk", "noise", "cryptography"),  # libp2p's, and what it stands on
    *("TCP_INFO", "IP_PMTUDISC_DONT", "TCP_MAXSEG", "TCP_NOTSENT_LOWAT", "SO_SNDBUF"),  # the kernel's
    *("OLLAMA_ORIGINS", "OLLAMA_HOST", "SCHED_BATCH", "fed1_", "fed2_", "fed100_"),
}
_PATH = re.compile(r"[\w-][\w.-]*(?:/[\w.*-]+)*/?")
_WORD = re.compile(r"[A-Za-z_]\w*")
_PYTHON = re.compile(r"(?<![\w/.-])[a-z_]+(?:/[a-z_0-9]+)*\.py\b")
_DOTTED = re.compile(r"(?<![\w/.-])[a-z_]+\.(?:[A-Z][a-z]+[A-Z]?\w*|[A-Z]+_[A-Z_]+)\b")
_OURS = re.compile(r"_\w+|[A-Z][a-z0-9]+[A-Z]\w*|[A-Z]+_[A-Z_]+")


@dataclass
class Scope:
    """What a module or class defines, by name; a class also what it inherits, by the names of its bases."""

    names: dict[str, Scope] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)


def scope(node: ast.Module | ast.ClassDef) -> Scope:
    found = Scope(bases=[ast.unparse(base).split("[")[0].split(".")[-1] for base in getattr(node, "bases", [])])
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and isinstance(node, ast.ClassDef):
            found.names.setdefault(inner.attr, Scope())  # self.x = ...
    for statement in [
        inner for inner in node.body for inner in (ast.walk(inner) if isinstance(inner, ast.If | ast.Try) else [inner])
    ]:
        if isinstance(statement, ast.ClassDef):
            found.names[statement.name] = scope(statement)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            found.names[statement.name] = Scope()
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]:
                found.names[name.id] = Scope()
    return found


@cache
def files() -> frozenset[str]:
    """This project's files and their folders, from the root; folders end in a slash."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts)
    paths = [path.relative_to(ROOT) for path in [*ROOT.glob("*"), *inside] if path.is_file()]
    return frozenset([*map(str, paths), *(f"{parent}/" for path in paths for parent in path.parents if parent.name)])


@cache
def modules() -> dict[tuple[str, ...], Scope]:
    sources = [ROOT / path for path in files() if path.startswith("federation/") and path.endswith(".py")]
    return {path.relative_to(ROOT).with_suffix("").parts: scope(ast.parse(path.read_text())) for path in sources}


@cache
def classes() -> dict[str, list[Scope]]:
    found: dict[str, list[Scope]] = {}
    for module in modules().values():
        for name, inner in module.names.items():
            if inner.names or inner.bases:
                found.setdefault(name, []).append(inner)
    return found


def has(where: Scope, name: str, seen: frozenset[str] = frozenset()) -> bool:
    inherited = [(base, it) for base in where.bases if base not in seen for it in classes().get(base, [])]
    return name in where.names or any(has(it, name, seen | {base}) for base, it in inherited)


def defines(where: Scope, names: tuple[str, ...]) -> bool:
    if not names:
        return True
    return has(where, names[0]) and (
        len(names) == 1 or names[0] not in where.names or defines(where.names[names[0]], names[1:])
    )


def is_defined(parts: tuple[str, ...]) -> bool:
    """A module by the end of its path and what is in it, or a class and what is in it."""
    for end in range(len(parts), 0, -1):
        if any(path[-end:] == parts[:end] and defines(inner, parts[end:]) for path, inner in modules().items()):
            return True
    return any(defines(inner, parts[1:]) for inner in classes().get(parts[0], []))


def is_defined_anywhere(word: str) -> bool:
    scopes = [*modules().values(), *(it for several in classes().values() for it in several)]
    return any(word in path for path in modules()) or any(word in it.names for it in scopes)


def is_file(path: str, beside: Path) -> bool:
    """A file or folder from the root, from federation/, from where the name stands, or the only one of that name."""
    here = beside.relative_to(ROOT)
    candidates = {path, f"federation/{path}", str(here / path) + "/" * path.endswith("/")}
    candidates |= {f"{it}/" for it in candidates}
    return bool(candidates & files()) or sum(known.endswith(f"/{path}") for known in files()) == 1


def wrong(text: str, page: Path) -> bool:
    """Whether this text from between backticks is a name of ours that leads nowhere."""
    word = text.removeprefix("sudo ").split(" ")[0].removesuffix("()")
    parts = tuple(word.removesuffix(".py").replace("/", ".").split("."))
    if word in FOREIGN or word in MADE:
        return False
    if _PATH.fullmatch(word) and ("/" in word or word.rpartition(".")[2] in ENDINGS):
        if "*" in word:
            return not any(Path(known).match(word) for known in files())
        return not (is_file(word, page.parent) or is_defined(parts))
    if len(parts) > 1 and all(_WORD.fullmatch(part) for part in parts):
        return not is_defined(parts) and (is_defined(parts[:1]) or importlib.util.find_spec(parts[0]) is None)
    about_code = page.name in ABOUT_CODE and _WORD.fullmatch(text)
    return bool(about_code or _OURS.fullmatch(text)) and not text.startswith("FEDERATION_") and not is_defined_anywhere(text)


def in_backticks(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_in_backticks_is_there(page: Path) -> None:
    assert not [text for text in in_backticks(page) if wrong(text, page)]


def spoken(path: Path) -> Iterator[str]:
    """The comments and docstrings of a file."""
    source = path.read_text()
    yield from re.findall(r"(?:^|\s)#.*", source, flags=re.MULTILINE)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    yield from (ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))


def lost(text: str, beside: Path) -> list[str]:
    """Names in a comment that lead nowhere."""
    paths = [name for name in _PYTHON.findall(text) if not any(it.endswith(f"/{name}") for it in files())]
    dotted = [name for name in _DOTTED.findall(text) if not is_defined(tuple(name.split(".")))]
    foreign = [name for name in dotted if importlib.util.find_spec(name.split(".")[0])]
    return [name for name in (*paths, *dotted) if name not in foreign and not is_file(name, beside)]


def test_every_name_in_a_comment_is_there() -> None:
    names = [known for known in sorted(files()) if known.endswith(".py") and known.startswith(("federation/", "scripts/"))]
    texts = [(name, text) for name in names for text in spoken(ROOT / name)]
    assert not [(name, it) for name, text in texts for it in lost(text, (ROOT / name).parent)]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "net/host.py",
            "net/host",
            "host.Host.cut",
            "net/host.Host.cut",
            "Host.cut",
            "reactor/",
            "docs/api.md",
            "two-nodes.sh",
        ),
        *(
            "scripts/check --all",
            "NodeData",
            "MAX_CHANNELS",
            "sys.path",
            "trio.Cancelled",
            "/metrics",
            "~/.bashrc",
            "--hold",
        ),
    ],
)
def test_right_names_pass(text: str) -> None:
    assert not wrong(text, ARCHITECTURE)


@pytest.mark.parametrize(
    "text",
    [
        *("net/hosts.py", "net/hosts", "host.Host.cuts", "net/host.Host.cuts", "Host.cuts", "hosts.cut", "reactors/"),
        *("docs/apis.md", "scripts/checks --all", "NodeDatum", "MAX_CHANNEL", "_no_such_name", "three-nodes.sh"),
    ],
)
def test_wrong_names_are_found(text: str) -> None:
    assert wrong(text, ARCHITECTURE)


def test_words_of_everyday_count_on_pages_about_the_code_only() -> None:
    assert wrong("wherever", ARCHITECTURE)
    assert not wrong("wherever", ROOT / "README.md")
