from __future__ import annotations

from federation.api import sessions
from federation.api.sessions import Sessions


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(made: Sessions) -> str:
    session = made.exchange(made.new_code())
    assert session is not None
    return session


def test_a_code_is_good_once() -> None:
    made = Sessions(Clock())
    code = made.new_code()
    session = made.exchange(code)
    assert session is not None
    assert made.is_one(session)
    assert made.exchange(code) is None
    assert not made.is_one(code)
    assert made.exchange("") is None
    assert made.exchange(session) is None


def test_and_for_30_seconds() -> None:
    clock = Clock()
    made = Sessions(clock)
    in_time, late = made.new_code(), made.new_code()
    clock.now = sessions.CODE_S
    assert made.exchange(in_time)
    clock.now += 0.1
    assert made.exchange(late) is None


def test_codes_and_sessions_are_few() -> None:
    clock = Clock()
    made = Sessions(clock)
    codes = [made.new_code() for _ in range(sessions.MAX_CODES + 1)]
    assert made.exchange(codes[0]) is None
    assert made.exchange(codes[1])
    made.end_all()
    tokens = []
    for _ in range(sessions.MAX_SESSIONS):
        clock.now += 1
        tokens.append(opened(made))
    with made.used(tokens[0], lambda: None):
        clock.now += 1
    opened(made)
    assert [made.is_one(token) for token in tokens[:3]] == [True, False, True]  # of those, 0 was used last


def test_a_session_ends_after_a_week_without_use() -> None:
    clock = Clock()
    made = Sessions(clock)
    session = opened(made)
    clock.now = sessions.IDLE_S
    with made.used(session, lambda: None):
        clock.now += sessions.IDLE_S  # a page that was open all the time
        assert made.is_one(session)
    clock.now += sessions.IDLE_S
    assert made.is_one(session)
    clock.now += 0.1
    assert not made.is_one(session)


def test_revoking_ends_what_runs_and_what_was_not_used() -> None:
    made = Sessions(Clock())
    one, other, code = opened(made), opened(made), made.new_code()
    ended: list[str] = []
    with made.used(one, lambda: ended.append("stream")), made.used(one, lambda: ended.append("request")):
        assert made.end_all() == 2
        assert sorted(ended) == ["request", "stream"]
    assert not made.is_one(one)
    assert not made.is_one(other)
    assert made.exchange(code) is None
    assert made.end_all() == 0


def test_neither_is_kept_in_the_clear() -> None:
    made = Sessions(Clock())
    code, session = made.new_code(), opened(made)
    kept = repr(made._codes) + repr(made._sessions)
    assert code not in kept
    assert session not in kept
