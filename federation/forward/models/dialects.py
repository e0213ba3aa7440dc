"""What model servers answer, as models: one pure function a dialect, from JSON values to `Model`s.

| server | paths | warm | size | slots |
|---|---|---|---|---|
| Ollama | /api/tags, /api/ps | listed by /api/ps | on disk | not said |
| llama.cpp | /v1/models, /props, /slots | its one model, unless it sleeps | meta.size | total_slots, or /slots counted |
| llama.cpp, router mode | /v1/models or /models | status.value is loaded | meta.size | not said |
| vLLM, SGLang | /v1/models | always | not said | not said |
| LM Studio from 0.4 | /api/v1/models | has loaded_instances | size_bytes | config.parallel of an instance |
| LM Studio | /api/v0/models | state is loaded | not said | not said |
| LocalAI | /v1/models, /system | in loaded_models | not said | not said |
| llama-swap | /v1/models, /running | in running, and ready | not said | not said |
| any other | /v1/models | always: nothing says that it loads on demand | not said | not said |

An answer may have any shape: a row that is none is left out, a number that is none is 0, and None is no answer at all, in
which case the function returns None. Ollama's size_vram is 0 for a model in main memory, which is warm too, so being listed
counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from federation.mesh.models import MAX_SLOTS, Model, is_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_ROWS = 4096  # of an answer that are looked at
MAX_SIZE = 2**52
_METRIC = re.compile(r"^([a-z_]+:[a-z_]+)(?:\{[^}\n]{0,2000}\})?[ \t]+([0-9.eE+-]{1,32})\s*$", re.MULTILINE)
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")


class Queue(NamedTuple):
    """What a server says of its requests, whoever sent them."""

    running: int
    waiting: int


def ollama(tags: Any, ps: Any) -> list[Model] | None:
    if not isinstance(tags, dict):
        return None
    loaded = {name for row in _rows(ps, "models") for name in _names(row, "name", "model")}
    return [
        Model(name, name in loaded, _size(row.get("size")))
        for row in _rows(tags, "models")
        for name in _names(row, "name", "model")[:1]
    ]


def llama_cpp(models: Any, props: Any = None, slots: Any = None) -> list[Model] | None:
    """One model, by its id and its aliases; or, in router mode, all that the router may load."""
    if not isinstance(models, dict):
        return None
    props = props if isinstance(props, dict) else {}
    count = _count(props.get("total_slots")) or (len(slots) if isinstance(slots, list) else 0)
    found = []
    for row in _rows(models, "data"):
        status = row.get("status")
        if isinstance(status, dict):  # of a router: each model is a process of its own, with slots of its own
            warm, places = status.get("value") == "loaded", 0
        else:
            warm, places = props.get("is_sleeping") is not True, count
        meta = row.get("meta")
        size = _size(meta.get("size")) if isinstance(meta, dict) else 0
        aliases = row.get("aliases")
        names = [*_names(row, "id"), *(filter(is_name, aliases[:MAX_ROWS]) if isinstance(aliases, list) else ())]
        found += [Model(name, warm, size, min(places, MAX_SLOTS)) for name in names]
    return found


def openai(models: Any) -> list[Model] | None:
    """vLLM, SGLang and any server that says what it has in OpenAI's way."""
    if not isinstance(models, dict) or not isinstance(models.get("data"), list):
        return None
    return [Model(name, True) for row in _rows(models, "data") for name in _names(row, "id")]


def lm_studio(models: Any) -> list[Model] | None:
    """/api/v1/models. An instance may have an id of its own, by which it can be asked for too."""
    if not isinstance(models, dict) or not isinstance(models.get("models"), list):
        return None
    found = []
    for row in _rows(models, "models"):
        instances = list(_rows(row, "loaded_instances"))
        size = _size(row.get("size_bytes"))
        slots = sum(_count(config.get("parallel")) for one in instances if isinstance(config := one.get("config"), dict))
        found += [Model(name, bool(instances), size, min(slots, MAX_SLOTS)) for name in _names(row, "key")]
        found += [
            Model(name, True, size) for one in instances for name in _names(one, "id") if name not in _names(row, "key")
        ]
    return found


def lm_studio_v0(models: Any) -> list[Model] | None:
    """/api/v0/models."""
    if not isinstance(models, dict) or not isinstance(models.get("data"), list):
        return None
    return [Model(name, row.get("state") == "loaded") for row in _rows(models, "data") for name in _names(row, "id")]


def localai(models: Any, system: Any) -> list[Model] | None:
    return _with_warm(models, {name for row in _rows(system, "loaded_models") for name in _names(row, "id")})


def llama_swap(models: Any, running: Any) -> list[Model] | None:
    ready = {name for row in _rows(running, "running") if row.get("state") == "ready" for name in _names(row, "model")}
    return _with_warm(models, ready)


def owners(models: Any) -> set[str]:
    """The values of owned_by in a list of OpenAI's shape: vllm, sglang, llamacpp, llama-swap tell themselves apart so."""
    return {row["owned_by"] for row in _rows(models, "data") if isinstance(row.get("owned_by"), str)}


def total(value: Any) -> int:
    """How many models a list has, those included whose names are none for us."""
    for key in ("data", "models"):
        if isinstance(value, dict) and isinstance(value.get(key), list):
            return len(value[key])
    return 0


def queue_of_metrics(text: str) -> Queue | None:
    """Prometheus' text of vLLM, SGLang or llama.cpp: requests that run and that wait, of all its models."""
    counts: dict[str, float] = {}
    for name, value in _METRIC.findall(text):
        if name in _RUNNING or name in _WAITING:
            counts[name] = counts.get(name, 0.0) + _number(value)
    if not counts:
        return None
    return Queue(
        _whole(sum(counts.get(name, 0.0) for name in _RUNNING)), _whole(sum(counts.get(name, 0.0) for name in _WAITING))
    )


def queue_of_loads(loads: Any) -> Queue | None:
    """SGLang's /v1/loads, or the list of the older /get_load: a row for each of its data-parallel ranks."""
    rows = list(_rows(loads, "loads") if isinstance(loads, dict) else _dicts(loads))
    if not rows:
        return None
    running = sum(_count(row.get("num_running_reqs", row.get("num_reqs"))) for row in rows)
    return Queue(running, sum(_count(row.get("num_waiting_reqs")) for row in rows))


def queue_of_slots(slots: Any) -> Queue | None:
    """llama.cpp's /slots."""
    rows = list(_dicts(slots))
    return Queue(sum(row.get("is_processing") is True for row in rows), 0) if rows else None


def _with_warm(models: Any, warm: set[str]) -> list[Model] | None:
    found = openai(models)
    return None if found is None else [model._replace(warm=model.name in warm) for model in found]


def _rows(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """The objects of the list under `key`."""
    yield from _dicts(value.get(key) if isinstance(value, dict) else None)


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    rows: Iterable[Any] = value[:MAX_ROWS] if isinstance(value, list) else ()
    yield from (row for row in rows if isinstance(row, dict))


def _names(row: dict[str, Any], *keys: str) -> list[str]:
    return [row[key] for key in keys if is_name(row.get(key))]


def _count(value: Any) -> int:
    return min(value, MAX_SLOTS) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _size(value: Any) -> int:
    """Bytes; JSON of some languages writes large ones as 1e9."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SIZE:
        return 0
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _whole(value: float) -> int:
    return int(value) if 0 < value <= MAX_SLOTS else 0
