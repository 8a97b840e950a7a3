"""Canonical JSON (RFC 8785), bounded and strict on the way in.

Everything that is hashed or signed goes through `dumps`; everything that comes from outside goes through `loads`.

    >>> dumps({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    >>> loads(b'{"a": 1, "a": 2}', max_bytes=100)
    Traceback (most recent call last):
    ...
    protocol.errors.FormatError: the key 'a' stands twice in one JSON object
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, NoReturn

import rfc8785

from protocol.errors import FormatError

MAX_DEPTH = 32  # levels of nesting
MAX_SAFE_INTEGER = 2**53 - 1  # RFC 8785 numbers are IEEE doubles
# A string, or the rest of the text where a string does not end: so one pass suffices, whatever the input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def dumps(value: Any) -> bytes:
    """The canonical bytes of a JSON value.

    Raises:
        FormatError: the value holds NaN, an infinity, an integer beyond 2**53, or something JSON has no word for.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise FormatError(f"cannot be written as canonical JSON: {error}") from error


def sha256_hex(data: bytes) -> str:
    """Lower-case hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical bytes of a JSON value."""
    return sha256_hex(dumps(value))


def loads(data: bytes, *, max_bytes: int) -> Any:
    """Parse JSON that came from outside; it need not be canonical, but must be unambiguous.

    Args:
        data: UTF-8 bytes.
        max_bytes: refuse anything longer before looking at it.

    Raises:
        FormatError: too long, too deep, not JSON, half a surrogate pair, a key twice, NaN or an infinity, or an
            integer beyond 2**53.
    """
    if len(data) > max_bytes:
        raise FormatError(f"expected at most {max_bytes} bytes of JSON, got {len(data)}")
    if _depth(data) > MAX_DEPTH:
        raise FormatError(f"JSON is nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_repeats,
            parse_constant=_no_constant,
            parse_float=_finite_float,
            parse_int=_bounded_int,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeError, json.JSONDecodeError) as error:
        raise FormatError(f"not JSON: {error}") from error
    return value


def _depth(data: bytes) -> int:
    """How deeply brackets nest, strings left out: known before the recursive parser runs."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", data).translate(None, delete=_NO_BRACKET):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise FormatError(f"the key {key!r} stands twice in one JSON object")
        result[key] = value
    return result


def _no_constant(word: str) -> NoReturn:
    raise FormatError(f"{word} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise FormatError(f"the number {text[:20]} is too large")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_SAFE_INTEGER:
        raise FormatError(f"integer {text[:20]} is beyond 2**53")
    return int(text)
