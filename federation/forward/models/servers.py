"""The kinds of model servers: how each is recognised, and which of its paths say what models it has.

A port alone says nothing (8080 is everybody's), so a server counts as its kind only when it answers as that does. The first
kind that recognises a server has it; the last one takes any server that lists models in OpenAI's way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from federation.forward.models import dialects
from federation.mesh.models import MAX_SLOTS, Catalog, catalog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from federation.forward.models.asking import Asker
    from federation.forward.models.dialects import Queue
    from federation.mesh.models import Model

# Beside those of KINDS: SGLang, koboldcpp, TabbyAPI and text-generation-webui.
_OTHER_PORTS = (30000, 5001, 5000)


class Said(NamedTuple):
    """What a server said of itself."""

    catalog: Catalog
    queue: Queue | None = None
    slots: int = 0  # requests that it computes at once, all its models together; 0: unknown


@dataclass(frozen=True, slots=True)
class Kind:
    """`name`: the name of a service too, for a server that `join` finds. `port`: where it listens unless it is told to
    listen elsewhere; 0: no port of its own."""

    name: str
    title: str
    port: int
    recognises: Callable[[Asker], Awaitable[bool]] = field(repr=False)
    describe: Callable[[Asker], Awaitable[Said | None]] = field(repr=False)


async def recognise(asker: Asker) -> Kind | None:
    """The kind of a server; None if it is no model server, or does not answer."""
    for kind in KINDS:
        if await kind.recognises(asker):
            return kind
    return None


def _said(kind: str, models: list[Model] | None, whole: object, queue: Queue | None = None) -> Said | None:
    if models is None:
        return None
    slots = [model.slots for model in models]
    # LM Studio's models have slots of their own; llama.cpp's are those of one model, which may have several names.
    together = sum(slots) if kind == "lm-studio" else max(slots, default=0)
    return Said(catalog(kind, models, total=dialects.total(whole)), queue, min(together, MAX_SLOTS))


# Ollama


async def _is_ollama(asker: Asker) -> bool:
    answer = await asker.get("/")
    return answer is not None and "ollama is running" in answer.text.lower()


async def _ollama(asker: Asker) -> Said | None:
    tags = await asker.json("/api/tags")
    return _said("ollama", dialects.ollama(tags, await asker.json("/api/ps")), tags)


# LocalAI


async def _is_localai(asker: Asker) -> bool:
    ready = await asker.get("/readyz")
    return ready is not None and ready.status == 200 and _has(await asker.json("/system"), "backends")


async def _localai(asker: Asker) -> Said | None:
    models = await asker.json("/v1/models")
    return _said("localai", dialects.localai(models, await asker.json("/system")), models)


# llama.cpp


async def _is_llama_cpp(asker: Asker) -> bool:
    answer = await asker.get("/health")
    if answer is None:
        return False
    return answer.server.lower().startswith("llama.cpp") or _has(await asker.json("/props"), "total_slots")


async def _llama_cpp(asker: Asker) -> Said | None:
    models, props = await asker.json("/v1/models"), await asker.json("/props")
    slots = await asker.json("/slots")
    return _said("llama.cpp", dialects.llama_cpp(models, props, slots), models, dialects.queue_of_slots(slots))


# vLLM and SGLang


async def _is_vllm(asker: Asker) -> bool:
    return _has(await asker.json("/version"), "version") and "vllm" in dialects.owners(await asker.json("/v1/models"))


async def _vllm(asker: Asker) -> Said | None:
    models = await asker.json("/v1/models")
    queue = dialects.queue_of_metrics(await asker.text("/metrics"))
    return _said("vllm", dialects.openai(models), models, queue)


async def _is_sglang(asker: Asker) -> bool:
    return "sglang" in dialects.owners(await asker.json("/v1/models"))


async def _sglang(asker: Asker) -> Said | None:
    models = await asker.json("/v1/models")
    loads = await asker.json("/v1/loads") or await asker.json("/get_load")
    return _said("sglang", dialects.openai(models), models, dialects.queue_of_loads(loads))


# LM Studio


async def _is_lm_studio(asker: Asker) -> bool:
    return _has(await asker.json("/api/v0/models"), "data") or _has(await asker.json("/api/v1/models"), "models")


async def _lm_studio(asker: Asker) -> Said | None:
    models = await asker.json("/api/v1/models")
    said = _said("lm-studio", dialects.lm_studio(models), models)
    if said is None:
        models = await asker.json("/api/v0/models")
        said = _said("lm-studio", dialects.lm_studio_v0(models), models)
    return said


# Others


async def _is_llama_swap(asker: Asker) -> bool:
    return "llama-swap" in dialects.owners(await asker.json("/v1/models"))


async def _llama_swap(asker: Asker) -> Said | None:
    models = await asker.json("/v1/models")
    return _said("llama-swap", dialects.llama_swap(models, await asker.json("/running")), models)


async def _is_openai(asker: Asker) -> bool:
    return dialects.openai(await asker.json("/v1/models")) is not None


async def _openai(asker: Asker) -> Said | None:
    models = await asker.json("/v1/models")
    return _said("openai", dialects.openai(models), models)


def _has(value: object, key: str) -> bool:
    return isinstance(value, dict) and key in value


# Those with a port are looked for by `join`, in the order in which one of several becomes the default service.
KINDS = (
    Kind("ollama", "Ollama", 11434, _is_ollama, _ollama),
    Kind("localai", "LocalAI", 8080, _is_localai, _localai),
    Kind("llama.cpp", "llama.cpp", 8080, _is_llama_cpp, _llama_cpp),
    Kind("vllm", "vLLM", 8000, _is_vllm, _vllm),
    Kind("lm-studio", "LM Studio", 1234, _is_lm_studio, _lm_studio),
    Kind("sglang", "SGLang", 0, _is_sglang, _sglang),
    Kind("llama-swap", "llama-swap", 0, _is_llama_swap, _llama_swap),
    Kind("openai", "a server with OpenAI's API", 0, _is_openai, _openai),
)
USUAL_PORTS = frozenset({kind.port for kind in KINDS if kind.port} | {*_OTHER_PORTS})
