"""The field of an upload, by transcript and for any form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http.form_field import MAX_HEAD, MAX_PARTS, MAX_VALUE, FormField, boundary_of

LINE = b'Content-Disposition: form-data; name="model"'
FILE = b'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav'


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"b") -> bytes:
    return b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, body) for head, body in parts) + b"--%b--\r\n" % boundary


def fed(data: bytes, *cuts: int, boundary: bytes = b"b") -> FormField:
    field = FormField(boundary, b"model")
    for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        field.feed(data[begin:end])
    return field


def test_the_field_behind_a_file() -> None:
    field = fed(form((FILE, b"RIFF\r\n--\r\n--c" * 1000), (LINE, b"whisper-1")))
    assert (field.values, field.is_whole, field.is_broken) == ([b"whisper-1"], True, False)


@pytest.mark.parametrize(
    "head",
    [
        b'content-disposition:form-data;name="model"', b"Content-Disposition: form-data; name=model",
        b'X: y\r\nContent-Disposition: form-data; name="model"; x=y\r\nContent-Type: text/plain',
        b'Content-Disposition: form-data ; NAME = "model"',
    ],
)  # fmt: skip
def test_heads_of_the_field(head: bytes) -> None:
    assert fed(form((head, b"m"))).values == [b"m"]


@pytest.mark.parametrize(
    "head",
    [
        FILE.replace(b'"file"', b'"model"'), b'Content-Disposition: form-data; name="models"', b"", b"X: " + LINE,
        b'Content-Disposition: form-data; name="model"; name="x"', LINE + b"\r\n" + LINE, b"Content-Disposition: form-data",
        b'Content-Disposition: attachment; name="model"',
    ],
)  # fmt: skip
def test_heads_of_something_else(head: bytes) -> None:
    field = fed(form((head, b"m")))
    assert (field.values, field.is_whole) == ([], True)


def test_an_empty_value_and_two_values() -> None:
    assert fed(form((LINE, b""), (LINE, b"m"))).values == [b"", b"m"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([LINE, FILE, b"X: y"]), st.binary(max_size=30) | st.sampled_from([b"\r\n--", b"\r\n-", b"\r"])
        ),
        max_size=5,
    ),
    st.binary(min_size=1, max_size=5).filter(lambda b: b"\r" not in b and b"\n" not in b),
    st.data(),
)
def test_any_split_gives_the_same(parts: list[tuple[bytes, bytes]], boundary: bytes, data: st.DataObject) -> None:
    body = form(*parts, boundary=boundary)
    whole = fed(body, boundary=boundary)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    for split in (fed(body, *cuts, boundary=boundary), fed(body, *range(1, len(body)), boundary=boundary)):
        assert (split.values, split.is_whole, split.is_broken) == (whole.values, whole.is_whole, whole.is_broken)
    if not any(b"--" + boundary in b"\r\n" + value + b"\r\n" for _, value in parts):
        assert whole.values == [value for head, value in parts if head == LINE]
        assert whole.is_whole


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_are_borne(data: bytes, cuts: list[int]) -> None:
    data = b"--b\r\n" + data
    inside = sorted(cut for cut in cuts if cut <= len(data))
    whole, split = fed(data), fed(data, *inside)
    assert (split.values, split.is_whole, split.is_broken) == (whole.values, whole.is_whole, whole.is_broken)


def test_bounds() -> None:
    assert fed(form((LINE, b"m" * MAX_VALUE))).values == [b"m" * MAX_VALUE]
    assert fed(form((LINE, b"m" * (MAX_VALUE + 1)))).is_broken
    assert fed(form((b"X: " + b"y" * MAX_HEAD, b""))).is_broken
    assert fed(b"--b\r\n" + b"x" * MAX_HEAD).is_broken
    assert fed(form(*[(b"X: y", b"")] * MAX_PARTS)).is_whole
    assert fed(form(*[(b"X: y", b"")] * (MAX_PARTS + 1))).is_broken
    field = fed(b"--b\r\n" + FILE + b"\r\n\r\n")
    for _ in range(1000):
        field.feed(b"\r\n--" * 1000)
    assert len(field._kept) < 10


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; Boundary="a b;c"', b"a b;c"),
        (b"multipart/form-data;boundary=abc; charset=utf-8", b"abc"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b"multipart/form-data; boundary=" + b"a" * 71, None),
        (b"multipart/mixed; boundary=abc", None),
        (b"application/json", None),
        (b"", None),
    ],
)
def test_the_boundary(content_type: bytes, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary
