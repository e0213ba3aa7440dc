"""The error vocabulary: whatever class we raise, a person reads one finished line and the shell gets the right code."""

from __future__ import annotations

import inspect

import pytest

from federation import errors
from federation.errors import FederationError, ListenFailed, TokenError, UsageError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)]

every_class = pytest.mark.parametrize("cls", CLASSES)


def test_the_vocabulary_is_found() -> None:
    assert {FederationError, UsageError, TokenError, ListenFailed} < set(CLASSES)


@every_class
def test_all_are_federation_errors(cls: type[Exception]) -> None:
    assert issubclass(cls, FederationError)


@every_class
def test_message_is_one_line_of_its_own(cls: type[FederationError]) -> None:
    assert cls.__dict__.get("__doc__"), "an inherited docstring would be another error's message"
    message = str(cls())
    assert message.isprintable()
    assert message[0].isupper()
    assert message[-1] not in ".: "


def test_no_two_classes_say_the_same() -> None:
    assert len({str(cls()) for cls in CLASSES}) == len(CLASSES)


@every_class
def test_detail_ends_the_line(cls: type[FederationError]) -> None:
    error = cls("127.0.0.1:4484 is in use")
    assert str(error) == error.detail if cls.detail_says_all else f"{cls()}: 127.0.0.1:4484 is in use"
    assert error.detail == "127.0.0.1:4484 is in use"


@every_class
def test_only_usage_errors_exit_with_2(cls: type[FederationError]) -> None:
    assert cls.exit_code == (2 if issubclass(cls, UsageError) else 1)


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("UsageError", 2),
        ("ConfigError", 2),
        ("TokenMalformed", 2),
        ("TokenChecksumWrong", 2),
        ("TokenTooNew", 2),
        ("FederationError", 1),
        ("RecordInvalid", 1),
        ("StateDirBusy", 1),
        ("ListenFailed", 1),
        ("ControlUnreachable", 1),
        ("TokenRefused", 1),
    ],
)
def test_exit_codes(name: str, exit_code: int) -> None:
    assert getattr(errors, name).exit_code == exit_code


def test_message_is_the_docstrings_first_paragraph() -> None:
    class LongWinded(FederationError):
        """One sentence that the editor
        has wrapped

        And a paragraph for those who read the source.
        """

    assert str(LongWinded()) == "One sentence that the editor has wrapped"
    assert str(LongWinded("here")) == "One sentence that the editor has wrapped: here"


@pytest.mark.parametrize(("status", "exit_code"), [(400, 2), (404, 1), (409, 1), (500, 1)])
def test_what_was_asked_wrongly_is_told_from_what_failed(status: int, exit_code: int) -> None:
    error = errors.refusal(status, "two peers are called so")
    assert (str(error), error.exit_code) == ("two peers are called so", exit_code)
