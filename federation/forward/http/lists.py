"""Lists of models, as the dialects have them: the union of what the nodes announce, without asking any. No I/O.

    GET /v1/models          OpenAI's list; Anthropic's for a request with anthropic-version
    GET /v1/models/{id}     one of it
    GET /api/tags           Ollama's list
    GET /api/ps             Ollama's list of what is in memory

A name that several nodes have is listed once. One node that is gone never slows or blanks a list.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from federation.mesh.models import is_called

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.mesh.models import Catalog, Model

EPOCH = "1970-01-01T00:00:00Z"  # nodes do not announce when a model was made
OWNER = "federation"
_MODELS, _TAGS, _PS = "/v1/models", "/api/tags", "/api/ps"


def is_list(method: str, target: str) -> bool:
    """Whether the request is for a list of models, or for one row of it."""
    path = _path(target)
    return method in ("GET", "HEAD") and (path in (_MODELS, _TAGS, _PS) or path.startswith(f"{_MODELS}/"))


def answer(target: str, catalogs: Iterable[Catalog], *, is_anthropic: bool = False) -> Any | None:
    """What JSON says of it; None for one model that no node announces. Only where `is_list`."""
    catalogs = tuple(catalogs)
    models = merged(catalogs)
    path = _path(target)
    if path == _TAGS:
        return {"models": [_ollama(model) for model in models]}
    if path == _PS:
        return {"models": [{**_ollama(model), "size_vram": model.size} for model in models if model.warm]}
    row = _anthropic if is_anthropic else _openai
    if path == _MODELS:
        rows = [row(model) for model in models]
        if not is_anthropic:
            return {"object": "list", "data": rows}
        ends = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"]} if rows else {"first_id": None, "last_id": None}
        return {"data": rows, "has_more": False, **ends}
    name = unquote(path[len(_MODELS) + 1 :])
    called = {known.name for catalog in catalogs for known in catalog.models if is_called(known.name, name, catalog.kind)}
    return next((row(model) for model in models if model.name in called), None)


def encoded(said: Any) -> bytes:
    return json.dumps(said).encode()


def merged(catalogs: Iterable[Catalog]) -> list[Model]:
    """By name. Warm where one node has it in memory, and of the largest size."""
    found: dict[str, Model] = {}
    for catalog in catalogs:
        for model in catalog.models:
            known = found.get(model.name)
            if known is None:
                found[model.name] = model
            else:
                found[model.name] = known._replace(warm=known.warm or model.warm, size=max(known.size, model.size))
    return [found[name] for name in sorted(found)]


def _openai(model: Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": OWNER}


def _anthropic(model: Model) -> dict[str, Any]:
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": EPOCH}


def _ollama(model: Model) -> dict[str, Any]:
    return {
        "name": model.name, "model": model.name, "size": model.size, "modified_at": EPOCH, "digest": "", "details": {},
    }  # fmt: skip


def _path(target: str) -> str:
    path = target.partition("?")[0]
    return path.rstrip("/") or "/"
