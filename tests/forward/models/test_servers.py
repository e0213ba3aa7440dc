"""Which server it is and what it has, over real sockets: the pages of test_dialects.py's servers, shortened."""

from __future__ import annotations

from typing import Any

import pytest

from federation.forward.models.asking import Asker
from federation.forward.models.dialects import Queue
from federation.forward.models.servers import KINDS, USUAL_PORTS, Said, recognise
from federation.mesh.models import Model
from federation.units import HostPort
from tests.support.model_servers import serving


def of(owner: str, *names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "owned_by": owner} for name in names]}


SERVERS: dict[str, tuple[dict[str, Any], tuple[Model, ...], Queue | None]] = {
    "ollama": (
        {
            "/": "Ollama is running",
            "/api/tags": {"models": [{"name": "m:latest", "size": 7}]},
            "/api/ps": {"models": [{"name": "m:latest"}]},
            "/v1/models": of("library", "m:latest"),
        },
        (Model("m:latest", True, 7),),
        None,
    ),
    "localai": (
        {
            "/readyz": "OK",
            "/system": {"backends": [], "loaded_models": [{"id": "m"}]},
            "/v1/models": {"data": [{"id": "m"}, {"id": "n"}]},
        },
        (Model("m", True), Model("n")),
        None,
    ),
    "llama.cpp": (
        {
            "/health": {"status": "ok"},
            "/props": {"total_slots": 2},
            "/slots": [{"is_processing": True}, {"is_processing": False}],
            "/v1/models": of("llamacpp", "m.gguf"),
            "/api/tags": {"models": [{"name": "m.gguf"}]},
        },
        (Model("m.gguf", True, 0, 2),),
        Queue(1, 0),
    ),
    "vllm": (
        {"/version": {"version": "0.11"}, "/v1/models": of("vllm", "m"), "/metrics": "vllm:num_requests_running 2.0\n"},
        (Model("m", True),),
        Queue(2, 0),
    ),
    "lm-studio": (
        {
            "/api/v0/models": {"data": [{"id": "m", "state": "loaded"}, {"id": "n", "state": "not-loaded"}]},
            "/v1/models": of("organization_owner", "m", "n"),
        },
        (Model("m", True), Model("n")),
        None,
    ),
    "sglang": (
        {"/v1/models": of("sglang", "m"), "/get_load": [{"num_reqs": 3, "num_waiting_reqs": 1}]},
        (Model("m", True),),
        Queue(3, 1),
    ),
    "llama-swap": (
        {"/v1/models": of("llama-swap", "m", "n"), "/running": {"running": [{"model": "n", "state": "ready"}]}},
        (Model("n", True), Model("m")),
        None,
    ),
    "openai": ({"/v1/models": of("somebody", "m")}, (Model("m", True),), None),
}


async def said_at(port: int) -> tuple[str, Said | None]:
    asker = Asker(HostPort("127.0.0.1", port))
    kind = await recognise(asker)
    return ("", None) if kind is None else (kind.name, await kind.describe(asker))


@pytest.mark.parametrize("name", SERVERS)
async def test_each_server_is_known_and_says_what_it_has(name: str) -> None:
    pages, models, queue = SERVERS[name]
    with serving(pages) as port:
        kind, said = await said_at(port)
    assert kind == name
    assert said is not None
    assert (said.catalog.kind, said.catalog.models, said.queue) == (name, models, queue)


async def test_lm_studio_of_today() -> None:
    with serving({"/api/v1/models": {"models": [{"key": "m", "size_bytes": 7, "loaded_instances": []}]}}) as port:
        kind, said = await said_at(port)
    assert kind == "lm-studio"
    assert said is not None
    assert said.catalog.models == (Model("m", False, 7),)


async def test_models_whose_names_are_none_count() -> None:
    with serving({"/v1/models": of("x", "m", "a\nb", "")}) as port:
        _, said = await said_at(port)
    assert said is not None
    assert (len(said.catalog.models), said.catalog.total, said.catalog.is_whole) == (1, 3, False)


@pytest.mark.parametrize("pages", [{}, {"/": "<html>", "/v1/models": "no"}, {"/v1/models": {"data": 7}}])
async def test_a_web_server_without_models(pages: dict[str, Any]) -> None:
    with serving(pages) as port:
        assert await said_at(port) == ("", None)


def test_the_table() -> None:
    assert [kind.name for kind in KINDS] == list(SERVERS)
    assert {11434, 8080, 8000, 1234, 30000} < USUAL_PORTS
    assert not {6379, 5432, 3306, 22, 80, 0} & USUAL_PORTS
