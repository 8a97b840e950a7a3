"""An invite as people bring it: found in what was pasted, or in a file, with whatever stands around it or in it.

Mail clients break lines and quote them, chat programs put in quotes, marks and invisible characters, editors a byte
order mark. What is left when all of that is gone is still checked by the invite's own check digits.

>>> from protocol.invite import Invite
>>> invite = Invite(addresses=("127.0.0.1:4700",), run="a" * 64, tls="b" * 64, root="c" * 64)
>>> read_invite(f"> Join us: <{str(invite)[:40]}\\n> {str(invite)[40:]}>, please!") == invite
True
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import FormatError, InputError
from protocol.invite import MAX_INVITE_CHARS, PREFIX, Invite

MAX_FILE_BYTES = 1 << 20  # in which an invite is looked for
MAX_FOUND = 64  # places in one text that look like an invite
_QUOTED = re.compile(r"^[ \t]*[>|][>| \t]*", re.MULTILINE)  # as mail clients begin the lines of what they answer
_SOFT_BREAK = re.compile(r"[=\\][ \t]*\r?$", re.MULTILINE)  # quoted-printable, shells
_HYPHEN = re.compile(r"-[ \t]*\r?\n")  # that a word processor put where it broke a line
_TAG = re.compile(r"<\s*/?\s*(?:br|wbr|p|div|span)\b[^<>]{0,200}>", re.IGNORECASE)
_START = re.compile(re.escape(PREFIX), re.IGNORECASE)
_REST = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_INVITE_CHARS}}}\.[0-9a-f]{{8}}")
_PATH_QUOTES = "\"'`“”‘’«»<>"
_HINT = "an invite begins with 'potluck1.'; copy the whole line the host sent you, or name a file that holds it"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # the longer ones before those that they begin with


def read_invite(given: str) -> Invite:
    """The invite in a text, or in the file that the text names.

    Raises:
        FormatError: there is none, it is damaged, or there are several.
        InputError: the file cannot be read.
    """
    path = file_named(given)
    if path is None:
        return find_invite(given)
    try:
        return find_invite(decoded(_read(path)))
    except FormatError as error:
        raise FormatError(f"{path}: {error.message}", error.hint) from error


def find_invite(text: str) -> Invite:
    """The one invite that stands in a text.

    Raises:
        FormatError: there is none, it is damaged, or there are several.
    """
    found: dict[str, Invite] = {}
    damage: FormatError | None = None
    for rest in candidates(text, _START, _REST, MAX_INVITE_CHARS):
        try:
            found[PREFIX + rest] = Invite.parse(PREFIX + rest)
        except FormatError as error:
            damage = damage or error
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise FormatError(f"there are {len(found)} different invites here", "give the one of the run you want to join")
    raise damage or FormatError("not an invite", _HINT)


def candidates(text: str, start: re.Pattern[str], rest: re.Pattern[str], max_chars: int) -> Iterator[str]:
    """What follows each `start` in a text: what fits `rest`, else as much as there is, up to `max_chars`."""
    for bare in (_bare(text), _bare(_HYPHEN.sub("", text))):
        for begun in list(start.finditer(bare))[:MAX_FOUND]:
            fits = rest.match(bare, begun.end())
            yield bare[begun.end() : begun.end() + max_chars] if fits is None else fits[0]


def holds_invite(data: bytes) -> bool:
    """Whether something in a file looks like one, whole or not."""
    return _START.search(_bare(decoded(data))) is not None


def contents(given: str) -> bytes | None:
    """What the file that a text names begins with; None when it names none.

    Raises:
        InputError: it names a folder, or a file that cannot be read.
    """
    path = file_named(given)
    return None if path is None else _read(path)


def file_named(given: str) -> Path | None:
    """The path that a text is, as typed, or with quotes, `~` or escaped spaces; None when nothing lies there."""
    bare = "".join(character for character in given if unicodedata.category(character) != "Cf").strip()
    plain = bare.strip(_PATH_QUOTES).removeprefix("file://")
    for name in (given, bare, plain, plain.replace("\\ ", " ")):
        try:
            path = Path(name).expanduser()
            if name and os.path.lexists(path):
                return path
        except (OSError, ValueError, RuntimeError):  # too long for a name, NUL, a user that nobody knows
            continue
    return None


def decoded(data: bytes) -> str:
    """Text in whatever encoding an editor left it, as far as it matters for an invite, which is ASCII."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    return data.decode(errors="replace")  # of UTF-16 without a mark, too: its zeroes go with all that nobody sees


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(
                f"{path}: a folder, not an invite", "give the line the host sent you, or a file that holds it"
            )
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: not a file that can hold an invite", "give the line the host sent you")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}", "check the file's owner and permissions"
        ) from error


def _bare(text: str) -> str:
    """Without what was put into it: quotes of answers, soft breaks, tags, marks, white space and what nobody sees."""
    text = _TAG.sub("", _SOFT_BREAK.sub("", _QUOTED.sub("", text[: 2 * MAX_FILE_BYTES])))
    gone = {"Cf", "Cc", "Cn", "Co", "Cs", "Zs", "Zl", "Zp"}
    return "".join(
        character for character in text if character not in "\\*" and unicodedata.category(character) not in gone
    )
