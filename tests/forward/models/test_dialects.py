"""Parsers over what servers answer. The field names are those of the servers' documentation and source; shortened.

None was recorded from a running server here: the shapes are those of public API documentation (Ollama, vLLM, LM Studio v0
and v1, llama.cpp and its router) and of what other routers read (LocalAI, SGLang, llama-swap).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.forward.models import dialects
from federation.forward.models.dialects import Queue
from federation.mesh.models import Model, is_name

quick = settings(max_examples=60)

TAGS = {
    "models": [
        {
            "name": "llama3.2:latest", "model": "llama3.2:latest", "modified_at": "2025-05-04T17:37:44.706015396-07:00",
            "size": 3338801804, "digest": "a80c4f17acd5", "details": {"format": "gguf", "parameter_size": "3.2B"},
        },
        {"name": "deepseek-r1:8b", "model": "deepseek-r1:8b", "size": 5e9, "digest": "28f8fd6cdc67", "details": None},
        {"model": "only-model:1b"},
    ]
}  # fmt: skip
PS = {
    "models": [
        {
            "name": "llama3.2:latest", "model": "llama3.2:latest", "size": 5137025024, "size_vram": 5137025024,
            "expires_at": "2025-06-04T14:38:31.83753-07:00", "context_length": 4096,
        }
    ]
}  # fmt: skip
LLAMA_CPP = {
    "object": "list",
    "models": [{"name": "/models/qwen.gguf", "capabilities": ["completion"]}],
    "data": [
        {
            "id": "/models/qwen.gguf", "object": "model", "owned_by": "llamacpp", "created": 1753191900,
            "meta": {"vocab_type": 1, "n_ctx_train": 131072, "n_params": 8030261312, "size": 4912898304},
        }
    ],
}  # fmt: skip
PROPS = {"default_generation_settings": {"id": 0}, "total_slots": 4, "model_path": "/models/qwen.gguf", "is_sleeping": False}
SLOTS = [{"id": 0, "n_ctx": 8192, "is_processing": True}, {"id": 1, "n_ctx": 8192, "is_processing": False}]
ROUTER = {
    "data": [
        {"id": "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "in_cache": True, "status": {"value": "loaded", "args": ["-ctx", "1"]}},
        {"id": "ggml-org/gpt-oss-20b-GGUF", "in_cache": True, "status": {"value": "unloaded"}},
        {"id": "loading", "status": {"value": "loading"}},
        {"id": "broken", "status": {"value": "unloaded", "failed": True}},
    ]
}
VLLM = {
    "object": "list",
    "data": [
        {"id": "Qwen/Qwen2.5-7B", "object": "model", "owned_by": "vllm", "root": "Qwen/Qwen2.5-7B", "max_model_len": 32768},
        {"id": "my-lora", "object": "model", "owned_by": "vllm", "root": "/loras/my", "parent": "Qwen/Qwen2.5-7B"},
    ],
}
LM_STUDIO = {
    "models": [
        {
            "type": "llm", "publisher": "lmstudio-community", "key": "gemma-3-270m-it-qat", "size_bytes": 241410208,
            "loaded_instances": [{"id": "gemma-3-270m-it-qat", "config": {"context_length": 4096, "parallel": 4}}],
        },
        {"type": "embedding", "key": "text-embedding-nomic", "size_bytes": 84106624, "loaded_instances": []},
        {
            "type": "llm", "key": "qwen/qwen3-4b", "size_bytes": 2**31,
            "loaded_instances": [{"id": "qwen/qwen3-4b:2", "config": {}}],
        },
    ]
}  # fmt: skip
LM_STUDIO_V0 = {
    "object": "list",
    "data": [
        {"id": "qwen2-vl-7b-instruct", "type": "vlm", "state": "not-loaded", "max_context_length": 32768},
        {"id": "meta-llama-3.1-8b-instruct", "type": "llm", "state": "loaded", "max_context_length": 131072},
    ],
}
LOCALAI = {"object": "list", "data": [{"id": "gpt-4", "object": "model"}, {"id": "whisper-1", "object": "model"}]}
SYSTEM = {"backends": ["llama-cpp"], "loaded_models": [{"id": "gpt-4"}]}
VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen2.5-7B"} 3.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen2.5-7B"} 1.0
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen2.5-7B"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen2.5-7B"} 0.25
"""


def test_ollama() -> None:
    assert dialects.ollama(TAGS, PS) == [
        Model("llama3.2:latest", True, 3338801804),
        Model("deepseek-r1:8b", False, 5_000_000_000),
        Model("only-model:1b"),
    ]
    assert [model.warm for model in dialects.ollama(TAGS, None) or ()] == [False] * 3


def test_a_model_in_main_memory_is_warm_too() -> None:
    on_cpu = {"models": [{"name": "deepseek-r1:8b", "size": 7, "size_vram": 0}]}
    assert [model.warm for model in dialects.ollama(TAGS, on_cpu) or ()] == [False, True, False]


def test_llama_cpp() -> None:
    (model,) = dialects.llama_cpp(LLAMA_CPP, PROPS, None) or ()
    assert model == Model("/models/qwen.gguf", True, 4912898304, 4)
    (model,) = dialects.llama_cpp(LLAMA_CPP, None, SLOTS) or ()
    assert model.slots == 2
    (model,) = dialects.llama_cpp({"data": [{"id": "m", "meta": None}]}, {**PROPS, "is_sleeping": True}) or ()
    assert model == Model("m", False, 0, 4)
    aliased = {"data": [{"id": "m", "aliases": ["chat", 7, "a\nb"]}]}
    assert [model.name for model in dialects.llama_cpp(aliased) or ()] == ["m", "chat"]


def test_llama_cpp_as_a_router() -> None:
    found = dialects.llama_cpp(ROUTER, PROPS, SLOTS) or []
    assert [(model.name, model.warm) for model in found] == [
        ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", True), ("ggml-org/gpt-oss-20b-GGUF", False), ("loading", False),
        ("broken", False),
    ]  # fmt: skip
    assert {model.slots for model in found} == {0}


def test_vllm_and_sglang() -> None:
    assert dialects.openai(VLLM) == [Model("Qwen/Qwen2.5-7B", True), Model("my-lora", True)]
    assert dialects.owners(VLLM) == {"vllm"}


def test_lm_studio() -> None:
    assert dialects.lm_studio(LM_STUDIO) == [
        Model("gemma-3-270m-it-qat", True, 241410208, 4),
        Model("text-embedding-nomic", False, 84106624),
        Model("qwen/qwen3-4b", True, 2**31),
        Model("qwen/qwen3-4b:2", True, 2**31),
    ]
    assert dialects.lm_studio_v0(LM_STUDIO_V0) == [
        Model("qwen2-vl-7b-instruct"),
        Model("meta-llama-3.1-8b-instruct", True),
    ]


def test_localai_and_llama_swap() -> None:
    assert dialects.localai(LOCALAI, SYSTEM) == [Model("gpt-4", True), Model("whisper-1")]
    assert dialects.localai(LOCALAI, None) == [Model("gpt-4"), Model("whisper-1")]
    running = {"running": [{"model": "whisper-1", "state": "ready"}, {"model": "gpt-4", "state": "starting"}]}
    assert dialects.llama_swap(LOCALAI, running) == [Model("gpt-4"), Model("whisper-1", True)]


def test_queues() -> None:
    assert dialects.queue_of_metrics(VLLM_METRICS) == Queue(4, 2)
    sglang = 'sglang:num_running_reqs{model_name="m"} 5.0\nsglang:num_queue_reqs{model_name="m"} 7\n'
    assert dialects.queue_of_metrics(sglang) == Queue(5, 7)
    assert dialects.queue_of_metrics("llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n") == Queue(1, 0)
    for text in ("", "up 1\n", "vllm:num_requests_running"):
        assert dialects.queue_of_metrics(text) is None
    assert dialects.queue_of_metrics("vllm:num_requests_running 1e999\nvllm:num_requests_waiting --1\n") == Queue(0, 0)
    assert dialects.queue_of_slots(SLOTS) == Queue(1, 0)
    assert dialects.queue_of_slots(None) is None
    loads = {"loads": [{"dp_rank": 0, "num_running_reqs": 2, "num_waiting_reqs": 1}, {"dp_rank": 1, "num_running_reqs": 3}]}
    assert dialects.queue_of_loads(loads) == Queue(5, 1)
    assert dialects.queue_of_loads([{"dp_rank": 0, "num_reqs": 4, "num_waiting_reqs": 1, "num_tokens": 9}]) == Queue(4, 1)
    assert dialects.queue_of_loads(None) is dialects.queue_of_loads({"loads": 7}) is None


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(("data", "models", "id", "name", "model", "size", "status", "meta", "loaded_instances", "loads"))
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@quick
@given(json, json, json)
def test_any_json_is_an_answer(one: Any, two: Any, three: Any) -> None:
    lists = [
        dialects.ollama(one, two), dialects.llama_cpp(one, two, three), dialects.openai(one), dialects.lm_studio(one),
        dialects.lm_studio_v0(one), dialects.localai(one, two), dialects.llama_swap(one, two),
    ]  # fmt: skip
    for model in [model for found in lists for model in found or ()]:
        assert is_name(model.name)
        assert isinstance(model.warm, bool)
        assert 0 <= model.size <= dialects.MAX_SIZE
        assert 0 <= model.slots <= 100_000
    dialects.owners(one)
    dialects.total(one)
    dialects.queue_of_loads(one)
    dialects.queue_of_slots(one)


@quick
@given(st.text(alphabet='vllm:num_requests_running{}="\n 0.1e-', max_size=60))
def test_any_text_is_metrics(text: str) -> None:
    dialects.queue_of_metrics(text)


@pytest.mark.parametrize("size", [True, -1, "7", None, float("nan"), float("inf"), 2**60])
def test_a_size_that_is_none(size: Any) -> None:
    (model,) = dialects.ollama({"models": [{"name": "m", "size": size}]}, None) or ()
    assert model.size == 0
