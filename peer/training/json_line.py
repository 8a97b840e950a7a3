"""One line of a JSONL file as the object in it, read strictly: each field once, and no text that is none."""

from __future__ import annotations

import json
from typing import Any

from peer.training.conversation import json_type
from protocol.errors import InputError
from protocol.shown import shown

WHOLE_PAIRS = r"write both halves (\ud83d\ude00), or the character itself"
_ONE_A_LINE = "a JSONL file has one JSON object on each line; `jq -c . OLD > NEW` writes it so"


def json_object(line: str, where: str, rules: int, first: bool) -> dict[str, Any]:
    """The object in a line.

    Args:
        where: file and line; errors begin with it.
        rules: `data.rules`.
        first: it is the first line of the file with something in it.

    Raises:
        InputError: none, or one that is not what it seems.
    """
    try:
        value = _STRICT.decode(line) if rules > 1 else json.loads(line)
    except json.JSONDecodeError as error:
        if first and line.lstrip().startswith("["):
            raise InputError(
                f"{where}: a JSON array, not JSONL", "`jq -c '.[]' OLD > NEW` writes each on a line"
            ) from error
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}", _ONE_A_LINE) from error
    except _Twice as error:
        raise InputError(
            f"{where}: the field '{shown(error)}' stands twice in one object", "leave one of them"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {shown(error)}", _ONE_A_LINE) from error
    if isinstance(value, list) and first:
        raise InputError(f"{where}: a JSON array, not JSONL", "`jq -c '.[]' OLD > NEW` writes each on a line")
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {json_type(value)}", _ONE_A_LINE)
    if rules > 1 and "\\u" in line:
        _check_texts(value, where)
    return value


class _Twice(Exception):
    """A field stands twice in one object; its name."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Twice(name)
            seen.add(name)
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_once)  # made once: `json.loads` would make one for each line


def _check_texts(record: dict[str, Any], where: str) -> None:
    """Raises: InputError: a text or a name in the record that is no text: half of a surrogate pair, or NUL."""
    waiting: list[tuple[str, Any]] = list(record.items())
    texts = [(name, name) for name in record]
    while waiting:
        field, part = waiting.pop()
        if isinstance(part, str):
            texts.append((field, part))
        elif isinstance(part, dict):
            texts += [(field, name) for name in part]
            waiting += [(field, item) for item in part.values()]
        elif isinstance(part, list):
            waiting += [(field, item) for item in part]
    for field, text in texts:
        if "\0" in text:
            raise InputError(f"{where}: a NUL character in '{shown(field)}'", "take it out: no text has one")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where}: half of a surrogate pair in '{shown(field)}'", WHOLE_PAIRS)
