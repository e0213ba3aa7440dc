"""What `join` says of the model servers that it found; finding them: forward/models/test_finding.py."""

from __future__ import annotations

from federation.cli import detect
from federation.forward.models.finding import Found
from federation.forward.models.servers import KINDS
from federation.units import HostPort


def found(kind: str, port: int, *uids: int) -> Found:
    return Found(kind, kind.title(), HostPort("127.0.0.1", port), uids)


def test_nothing_found_is_nothing_said() -> None:
    assert detect.find(without=[kind.port for kind in KINDS]) == []
    assert detect.in_words([]) == []


def test_the_first_one_and_the_others() -> None:
    first, second = detect.in_words([found("ollama", 11434), found("vllm", 8000)])
    assert "Ollama on 127.0.0.1:11434" in first
    assert "--no-detect" in first
    assert "--listen vllm=" in second


def test_another_users_server_is_named_behind_the_others() -> None:
    lines = detect.in_words([found("ollama", 11434, 60_001), found("vllm", 8000)])
    assert ["leaves it alone" in line for line in lines] == [False, True]
    assert "leaves it alone: it is another user's (uid 60001)" in lines[1]
    assert lines[1].endswith("--backend 127.0.0.1:11434")
