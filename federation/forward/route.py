"""The subject of a client's request. A pick, the roster and every decision see all of it."""

from __future__ import annotations

from typing import NamedTuple


class Route(NamedTuple):
    service: str
    model: str = ""  # "" is any; a layer-4 client names none
    target: str = ""  # a node's name or peer id, where the request wants no other; its model is then that node's affair
    kind: str = ""  # the server that is to answer, as a catalog calls it ("ollama"), if there is one; only without a model
