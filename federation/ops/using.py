"""Clients' configurations for the control API: the texts of `federation use`, without a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.use import target
from federation.use.clients import CLIENTS

if TYPE_CHECKING:
    from federation.ops import schemas


def use(
    status: schemas.Status,
    models: schemas.Models,
    service: str = "",
    model: str = "",
    *,
    host: str = "",
    with_key: bool = False,
) -> schemas.Use:
    """`service`, `model`: empty is the first one. `host`: this machine, as the client's machine calls it; what is no host
    counts as none. Raises NotFound.
    """
    host = host.removeprefix("[").removesuffix("]")
    host = host if target.is_host(host) else ""
    ports = target.ports(status["node"], host)
    services = list(dict.fromkeys(port.service for port in ports))
    port = target.port_of(ports, service or next(iter(services), "default"), host)
    known = target.names(models, port.service)
    to = target.target(port, known, model=model, key=target.KEY_HERE if with_key or port.asks_key else "")
    return {
        "services": services,
        "service": port.service,
        "url": port.url,
        "asks_key": port.asks_key,
        "model": to.model,
        "models": known,
        "clients": [_client(name, to) for name in CLIENTS],
    }


def _client(name: str, to: target.Target) -> schemas.UseClient:
    client = CLIENTS[name]
    recipe = client.make(to)
    texts: list[schemas.UseText] = [{"title": "", "text": recipe.text}]
    if recipe.other is not None:
        texts.append({"title": recipe.other[0], "text": recipe.other[1]})
    file = None if recipe.file is None else recipe.file.path
    return {
        "name": name, "title": client.title, "texts": texts, "file": file, "note": recipe.note, "reads": client.reads,
    }  # fmt: skip
