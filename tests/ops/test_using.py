"""The control API's answer for the dashboard: the texts of the command line, without a key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from federation.errors import NotFound
from federation.ops import schemas
from federation.ops.using import use
from federation.use.clients import CLIENTS

PLACES = [{"service": "default", "warm": True}, {"service": "embed", "warm": False}]
MODELS: Any = {"models": [{"name": "gemma", "places": PLACES}, {"name": "qwen", "places": PLACES[:1]}]}


def status(*rows: dict[str, Any]) -> Any:
    every = {"service": "default", "address": "0.0.0.0:8484", "scheme": "http", "names": [], "asks_key": False}
    return {"node": {"listeners": [{**every, **row} for row in rows]}}


def test_its_shape_and_its_texts() -> None:
    said = use(status({}, {"service": "embed", "address": "127.0.0.1:1"}), MODELS, host="gpu.lan")
    TypeAdapter(schemas.Use).validate_python(said, strict=True)
    assert (said["services"], said["service"], said["url"]) == (["default", "embed"], "default", "http://gpu.lan:8484")
    assert [client["name"] for client in said["clients"]] == list(CLIENTS)
    for client in said["clients"]:
        assert any("http://gpu.lan:8484" in text["text"] for text in client["texts"])
        assert not any("YOUR_KEY" in text["text"] for text in client["texts"])
    assert use(status({}, {"service": "embed", "address": "127.0.0.1:1"}), MODELS, "embed")["models"] == ["gemma"]


def test_a_place_for_the_key() -> None:
    for said in (use(status({"asks_key": True}), MODELS), use(status({}), MODELS, with_key=True)):
        assert all("YOUR_KEY" in client["texts"][0]["text"] for client in said["clients"])


def test_the_model() -> None:
    said = use(status({}), MODELS, model="qwen")
    assert (said["model"], said["models"]) == ("qwen", ["gemma", "qwen"])
    assert use(status({}), {"models": [], "incomplete": [], "silent": []})["model"] == "MODEL"


def test_what_is_not_there() -> None:
    for how in ({"model": "none"}, {"service": "none"}):
        with pytest.raises(NotFound):
            use(status({}), MODELS, **how)
    with pytest.raises(NotFound, match="--listen"):
        use(status({"scheme": "tcp"}), MODELS)
    assert use(status({}), MODELS, host="a'b")["url"] == use(status({}), MODELS, host="00")["url"] == "http://127.0.0.1:8484"
