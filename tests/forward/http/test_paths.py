"""What a target says, target by target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http.paths import MAX_NAME, Shape, kind_of, ollama_name, read

MODEL = ("model",)


@pytest.mark.parametrize(
    ("target", "shape", "keys"),
    [
        ("/v1/chat/completions", Shape.CHAT, MODEL),
        ("/chat/completions", Shape.CHAT, MODEL),
        ("/v1/completions", Shape.PROMPT, MODEL),
        ("/completion", Shape.PROMPT, MODEL),
        ("/v1/responses", Shape.RESPONSES, MODEL),
        ("/v1/embeddings", Shape.NONE, MODEL),
        ("/v1/audio/transcriptions", Shape.NONE, MODEL),
        ("/v1/rerank", Shape.NONE, MODEL),
        ("/infill", Shape.NONE, MODEL),
        ("/models/load", Shape.NONE, MODEL),
        ("/models/apply", Shape.NONE, MODEL),
        ("/v1/text-to-speech/alloy", Shape.NONE, ("model_id", "model")),
        ("/v1/messages", Shape.CHAT, MODEL),
        ("/v1/messages/count_tokens", Shape.NONE, MODEL),
        ("/v1/messages/batches", Shape.NONE, MODEL),
        ("/api/chat", Shape.CHAT, ("model", "name")),
        ("/api/generate", Shape.PROMPT, ("model", "name")),
        ("/api/embed", Shape.NONE, ("model", "name")),
        ("/api/copy", Shape.NONE, ("source",)),
        ("/api/blobs/sha256:00", Shape.NONE, ()),
        ("/api/v0/chat/completions", Shape.NONE, MODEL),
        ("/", Shape.NONE, MODEL),
    ],
)
def test_a_post(target: str, shape: Shape, keys: tuple[str, ...]) -> None:
    path = read("POST", target)
    assert (path.target, path.shape, path.keys, path.model, path.id) == (target, shape, keys, "", "")


@pytest.mark.parametrize(
    ("method", "target", "model"),
    [
        ("GET", "/v1/models/llama3", "llama3"),
        ("GET", "/v1/models/org/name:q4", "org/name:q4"),
        ("DELETE", "/v1/models/org%2Fname", "org/name"),
        ("GET", "/models/org/name", "org/name"),
        ("GET", "/api/v0/models/name", "name"),
        ("POST", "/v1/engines/org/name/completions", "org/name"),
        ("POST", "/v1/engines/name/chat/completions", "name"),
        ("POST", "/openai/deployments/gpt-4o/chat/completions?api-version=1", "gpt-4o"),
        ("POST", "/openai/deployments/whisper/audio/transcriptions", "whisper"),
        ("POST", "/v1beta/models/gemma:generateContent", "gemma"),
        ("POST", "/v1beta/models/org/gemma:4b:streamGenerateContent?alt=sse", "org/gemma:4b"),
        ("GET", "/v1/models/%ff", ""),
        ("GET", "/v1/models/" + "a" * (MAX_NAME + 1), ""),
        ("GET", "/v1/models/a%0a", ""),
        ("GET", "/models/available", ""),
        ("GET", "/models/jobs/1", ""),
        ("GET", "/v1/models", ""),
    ],
)
def test_a_model_in_the_path(method: str, target: str, model: str) -> None:
    path = read(method, target)
    assert (path.model, path.target, path.keys) == (model, target, ())


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("/v1/realtime?model=gpt-4o%2Frealtime&x=1", "gpt-4o/realtime"),
        ("/slots?a=b&model=one&model=two", "two"),
        ("/v1/audio/voices?model=a+b", "a b"),
        ("/v1/realtime?mymodel=x", ""),
        ("/v1/realtime", ""),
    ],
)
def test_a_model_in_the_query(target: str, model: str) -> None:
    assert read("GET", target).query_model == model


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("/v1/responses/resp_1", "responses/resp_1"),
        ("/v1/responses/resp_1/cancel", "responses/resp_1"),
        ("/v1/files/file-1/content", "files/file-1"),
        ("/v1/batches/b", "batches/b"),
        ("/v1/messages/batches/m", "messages/batches/m"),
        ("/v1/chat/completions/c", "chat/completions/c"),
        ("/v1/responses/input_tokens", ""),
        ("/v1/files", ""),
    ],
)
def test_an_id_lives_on_one_node(target: str, named: str) -> None:
    assert read("GET", target).id == named


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/models?x=/v1/v1", "/v1/models?x=/v1/v1"),
        ("/api/api/chat", "/api/chat"),
        ("/ollama/api/chat", "/api/chat"),
        ("/ollama/api/api/tags/", "/api/tags"),
        ("/ollama/v1/models", "/v1/models"),
        ("/v1/api/chat", "/api/chat"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("//v1//chat/completions", "/v1//chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("http://box:8484/v1/chat/completions?a=b", "/v1/chat/completions?a=b"),
        ("/api/v1/chat", "/api/v1/chat"),  # LM Studio's own
        ("/api/v1/models", "/api/v1/models"),
        ("/v1/models/org/v1/v1", "/v1/models/org/v1/v1"),
        ("/v1/models/a/", "/v1/models/a/"),
        ("/ollamas/api", "/ollamas/api"),
        ("*", "*"),
    ],
)
def test_prefixes_that_people_get_wrong(asked: str, served: str) -> None:
    assert read("POST", asked).target == served


@given(
    st.sampled_from(["GET", "POST", "DELETE", "brew"]), st.text(st.sampled_from("/v1api?=&%0:oml*é.\0") | st.characters())
)
def test_any_target_is_borne(method: str, target: str) -> None:
    for text in (target, "/" + target, "/v1/models/" + target, "/x?model=" + target):
        path = read(method, text)
        assert len(path.model) <= MAX_NAME
        assert len(path.query_model) <= MAX_NAME
        assert len(path.target) <= len(text)


def test_a_long_target_takes_no_time() -> None:
    for piece in ("/v1", "/api", "//", "/openai/deployments", "%2f", "&model=a", "/engines/a", ":generateContent"):
        read("POST", "/v1/engines" + piece * (60_000 // len(piece)) + "?" + piece * 1000)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("llama3", "llama3:latest"),
        ("Llama3", "registry.ollama.ai/library/llama3"),
        ("library/llama3", "llama3"),
        ("hf.co/Org/Name:Q4_K_M", "hf.co/org/name:q4_k_m"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
    ],
)
def test_names_that_ollama_takes_for_one(one: str, other: str) -> None:
    assert ollama_name(one) == ollama_name(other)
    assert ollama_name(ollama_name(one)) == ollama_name(one)


def test_names_that_differ() -> None:
    assert len({ollama_name(name) for name in ("llama3", "llama3:8b", "user/llama3", "hf.co/user/llama3")}) == 4


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("GET", "/api/version", "ollama"), ("HEAD", "/api/version?x", "ollama"), ("HEAD", "/", "ollama"), ("GET", "/", ""),
        ("POST", "/api/pull", "ollama"), ("POST", "/api/create", "ollama"), ("POST", "/api/chat", ""),
        ("POST", "/api/version", ""), ("GET", "/version", ""), ("GET", "/health", ""),
    ],
)  # fmt: skip
def test_what_only_one_kind_of_server_answers(method: str, target: str, kind: str) -> None:
    assert kind_of(method, target) == kind
