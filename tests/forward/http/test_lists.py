"""Lists of models: the union of what nodes announce, as each dialect has them."""

from __future__ import annotations

import json

import pytest

from federation.forward.http import lists
from federation.forward.http.lists import EPOCH, answer, encoded, is_list, merged
from federation.mesh.models import Model, catalog

GIB = 1 << 30
A = catalog("vllm", [Model("b"), Model("org/name", size=2 * GIB)])
B = catalog("ollama", [Model("llama3:latest", warm=True, size=GIB), Model("b", warm=True, size=GIB)])


@pytest.mark.parametrize(
    ("method", "target", "is_one"),
    [
        ("GET", "/v1/models", True),
        ("HEAD", "/v1/models", True),
        ("GET", "/v1/models/", True),
        ("GET", "/v1/models?limit=20", True),
        ("GET", "/v1/models/org/name", True),
        ("GET", "/api/tags", True),
        ("GET", "/api/ps", True),
        ("POST", "/v1/models", False),
        ("DELETE", "/v1/models/m", False),
        ("GET", "/v1/modelsx", False),
        ("GET", "/api/tags/x", False),
        ("POST", "/api/show", False),
        ("GET", "/", False),
    ],
)
def test_which_requests_are_for_lists(method: str, target: str, is_one: bool) -> None:
    assert is_list(method, target) is is_one


def test_a_model_of_several_nodes_is_there_once() -> None:
    assert merged([A, B]) == merged([B, A])
    assert [(model.name, model.warm, model.size) for model in merged([A, B])] == [
        ("b", True, GIB), ("llama3:latest", True, GIB), ("org/name", False, 2 * GIB),
    ]  # fmt: skip


def test_openai() -> None:
    said = answer("/v1/models", [A, B])
    assert said["object"] == "list"
    assert [row["id"] for row in said["data"]] == ["b", "llama3:latest", "org/name"]
    assert said["data"][0] == {"id": "b", "object": "model", "created": 0, "owned_by": lists.OWNER}


def test_anthropic() -> None:
    said = answer("/v1/models?limit=5", [A, B], is_anthropic=True)
    assert (said["first_id"], said["last_id"], said["has_more"]) == ("b", "org/name", False)
    assert said["data"][0] == {"type": "model", "id": "b", "display_name": "b", "created_at": EPOCH}
    empty = answer("/v1/models", [], is_anthropic=True)
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)


def test_ollama() -> None:
    said = answer("/api/tags", iter([A, B]))
    assert [(row["name"], row["model"], row["size"]) for row in said["models"]] == [
        ("b", "b", GIB), ("llama3:latest", "llama3:latest", GIB), ("org/name", "org/name", 2 * GIB),
    ]  # fmt: skip
    said = answer("/api/ps", [A, B])
    assert [(row["name"], row["size_vram"]) for row in said["models"]] == [("b", GIB), ("llama3:latest", GIB)]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("b", "b"),
        ("org/name", "org/name"),
        ("org%2Fname", "org/name"),
        ("llama3", "llama3:latest"),  # as a request with that name is served
        ("LLaMA3:latest", "llama3:latest"),
        ("Org/name", None),  # vLLM minds the case
        ("name", None),
        ("", "list"),
    ],
)
def test_one_model(asked: str, found: str | None) -> None:
    said = answer(f"/v1/models/{asked}", iter([A, B]))
    assert (said and said.get("id", said["object"])) == found
    if found not in (None, "list"):
        assert answer(f"/v1/models/{asked}", [A, B], is_anthropic=True)["id"] == found


def test_no_models() -> None:
    assert answer("/v1/models", []) == {"object": "list", "data": []}
    assert answer("/api/tags", []) == answer("/api/ps", []) == {"models": []}
    assert answer("/v1/models/m", []) is None


def test_any_name_is_json() -> None:
    said = answer("/v1/models", [catalog("", [Model('"\\ é 日本')])])
    assert json.loads(encoded(said)) == said
    assert encoded(said).isascii()
