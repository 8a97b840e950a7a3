"""Canonical JSON: the published form out, nothing ambiguous in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import canonical
from protocol.errors import FormatError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2**53) + 1, 2**53 - 1)  # RFC 8785 writes whole floats as integers, and larger ones are not read
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner)
    ),
    max_leaves=20,
)


@given(JSON)
def test_what_is_written_reads_back_and_is_written_the_same(value) -> None:
    data = canonical.dumps(value)
    again = canonical.loads(data, max_bytes=1 << 20)
    assert again == value
    assert canonical.dumps(again) == data


def test_the_example_of_the_rfc_comes_out_as_printed_there() -> None:
    value = {  # RFC 8785, section 3.2.2
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical.dumps(value) == expected


@given(st.binary(max_size=200))
def test_random_bytes_are_json_or_a_format_error(data: bytes) -> None:
    try:
        value = canonical.loads(data, max_bytes=100)
    except FormatError:
        return
    canonical.dumps(value)


@given(st.text(st.sampled_from('[]{}",:\\u d8019eE+-.truefalsn'), max_size=60))
def test_random_json_like_text_is_json_that_can_be_hashed_or_a_format_error(text: str) -> None:
    try:
        value = canonical.loads(text.encode(), max_bytes=100)
    except FormatError:
        return
    assert canonical.loads(canonical.dumps(value), max_bytes=10_000) == value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a":1,"a":1}', "stands twice"),
        (b'{"a":{"b":1,"b":2}}', "stands twice"),
        (b"NaN", "not a JSON number"),
        (b"-Infinity", "not a JSON number"),
        (b"1e999", "too large"),
        (b"9007199254740992", "beyond 2\\*\\*53"),
        (b"1" * 90, "beyond 2\\*\\*53"),
        (b'"\\ud800"', "not JSON"),
        (b'{"\\udc00":1}', "not JSON"),
        (b"\xff", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[1,]", "not JSON"),
        (b"[" * 33 + b"]" * 33, "deeper than 32"),
        (b'{"a":' * 40, "deeper than 32"),
        (b" " * 251, "at most 250 bytes"),
    ],
)
def test_ambiguous_or_oversize_json_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        canonical.loads(data, max_bytes=250)


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    value = ["[" * 100, '"[[[\\', "{" * 100]
    assert canonical.loads(json.dumps(value).encode(), max_bytes=1000) == value


@pytest.mark.parametrize("tail", [b"", b"\\", b'"'])
def test_a_long_string_without_an_end_is_refused_in_one_pass(tail: bytes) -> None:
    with pytest.raises(FormatError):
        canonical.loads(b'["' + b'\\"' * 1_000_000 + tail, max_bytes=1 << 22)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, b"bytes", {1: 2}, "\ud800", {"\ud800": 1}, {1}])
def test_what_json_has_no_word_for_is_not_written(value) -> None:
    with pytest.raises(FormatError):
        canonical.dumps(value)
