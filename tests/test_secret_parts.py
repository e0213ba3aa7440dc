"""No object of ours shows a secret when it is printed, and no error repeats one."""

from __future__ import annotations

import gc
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from federation.config import Settings, load
from federation.errors import FederationError
from federation.mesh.tokens import Token
from federation.node import Node
from federation.state import StateDir
from tests.support.secret_parts import found_in, of_token, spellings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = Token(hashlib.sha256(b"a secret").digest(), "test")  # the same in all workers


async def no_control(*_: object, **__: object) -> None: ...


def ours_within(root: object) -> Iterator[object]:
    """All objects of our classes that can be reached from `root`."""
    seen: set[int] = set()
    todo = [root]
    while todo:
        found = todo.pop()
        if id(found) in seen or isinstance(found, type(gc)):
            continue
        seen.add(id(found))
        if str(type(found).__module__).startswith("federation"):
            yield found
        if not isinstance(found, type):
            todo += gc.get_referents(found)


@pytest.mark.parametrize("secret", [TOKEN.secret, bytes(range(32))], ids=["random", "in order"])
def test_the_helper_finds_what_it_looks_for(secret: bytes) -> None:
    for text in (repr(secret), secret.hex(), f"[{', '.join(map(str, secret))}]", *spellings(secret)):
        assert found_in(f"... {text} ...", {"it": secret}) == ["it"]
    assert found_in(TOKEN.encode(), of_token(TOKEN)) == ["the token", "its secret"]
    assert found_in("12D3KooW nothing here", of_token(TOKEN)) == []


async def test_no_repr_of_anything_in_a_node(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, token=SecretStr(TOKEN.encode()), control="127.0.0.1:0", mdns=False)
    state = StateDir(tmp_path)
    state.lock()
    try:
        node = Node(settings, state, TOKEN, no_control)
        secrets = {**of_token(TOKEN), "the identity": state.identity(), "the control key": state.control_key()}
        reprs: dict[str, str] = {}
        for part in ours_within(node):
            for text in (repr(part), str(part)):
                if found := found_in(text, secrets):
                    reprs[type(part).__qualname__] = ", ".join(found)
        assert reprs == {}
        kinds = {type(part).__name__ for part in ours_within(node)}
        assert {"Node", "Host", "TokenNoise", "Token", "StateDir", "Settings", "Keyring"} <= kinds
    finally:
        state.unlock()


def damaged() -> dict[str, str]:
    text = TOKEN.encode()
    return {
        "cut short": text[:-3],
        "a letter changed": text[:-1] + ("A" if text[-1] != "A" else "B"),
        "twice": text + text,
        "too new": "fed9" + text[4:],
        "no prefix": text[5:],
        "half quoted": f"'{text}",
    }


@pytest.mark.parametrize("text", damaged().values(), ids=list(damaged()))
def test_no_error_repeats_a_token(text: str, tmp_path: Path) -> None:
    with pytest.raises(FederationError) as caught:
        Token.decode(text)
    shown = f"{caught.value} {caught.value!r} {caught.value.detail}"
    assert found_in(shown, of_token(TOKEN)) == []


@pytest.mark.parametrize("field", ["token", "peers", "policy", "backends", "p2p_listen", "log_level"])
def test_no_complaint_about_a_setting_repeats_a_token_put_in_its_place(field: str, tmp_path: Path) -> None:
    value: Any = [TOKEN.encode()] if field in ("peers", "backends") else TOKEN.encode()
    if field == "token":
        assert found_in(repr(load({field: value, "state_dir": str(tmp_path)})), of_token(TOKEN)) == []
        return
    with pytest.raises(FederationError) as caught:
        load({field: value, "state_dir": str(tmp_path)})
    assert found_in(f"{caught.value} {caught.value!r}", of_token(TOKEN)) == []
