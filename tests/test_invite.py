"""The invite: survives chat programs, and damage is noticed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import canonical
from protocol.errors import FormatError
from protocol.invite import MAX_INVITE_CHARS, Invite

INVITE = Invite(addresses=("203.0.113.7:4700", "[2001:db8::1]:4700"), run="a" * 64, tls="b" * 64, root="c" * 64)


NEWER = INVITE.model_copy(update={"version": 2})


def encode(value) -> str:
    payload = canonical.dumps(value)
    return (
        "potluck1." + base64.urlsafe_b64encode(payload).decode().rstrip("=") + "." + canonical.sha256_hex(payload)[:8]
    )


@pytest.mark.parametrize("code", [None, "let me in", "众人拾柴"])
def test_an_invite_reads_back(code: str | None) -> None:
    invite = INVITE.model_copy(update={"code": code})
    assert Invite.parse(str(invite)) == invite


def test_line_breaks_and_spaces_of_a_chat_program_are_forgiven() -> None:
    text = str(INVITE)
    assert Invite.parse(f"  {text[:30]}\n {text[30:60]}\r\n{text[60:]}\n") == INVITE


def test_an_invite_of_before_reads_like_one_of_now() -> None:
    assert str(INVITE) == encode(INVITE.model_dump(mode="json", exclude_none=True))
    assert NEWER != INVITE and str(NEWER) != str(INVITE)
    assert Invite.parse(str(INVITE)) == INVITE and Invite.parse(str(NEWER)) == NEWER


def test_an_older_potluck_prints_what_to_do() -> None:
    """Its `Invite.parse` takes the prefix off, checks the digits, and reads the rest as JSON: that names the key."""
    body, _, check = str(NEWER).removeprefix("potluck1.").partition(".")
    payload = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    assert canonical.sha256_hex(payload)[:8] == check
    with pytest.raises(FormatError) as told:
        canonical.loads(payload, max_bytes=MAX_INVITE_CHARS)
    assert "this run needs a newer Potluck: git pull, or pip install -U potluck" in told.value.message


def test_an_invite_whose_last_character_has_other_spare_bits_is_damaged() -> None:
    body, dot, check = str(INVITE).rpartition(".")
    same = [character for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
            if base64.urlsafe_b64decode(body[9:-1] + character + "=" * (-len(body[9:]) % 4))
            == base64.urlsafe_b64decode(body[9:] + "=" * (-len(body[9:]) % 4))]  # fmt: skip
    assert len(same) > 1, "its length leaves some"
    for character in set(same) - {body[-1]}:
        with pytest.raises(FormatError, match="check digits"):
            Invite.parse(body[:-1] + character + dot + check)


@given(st.data())
def test_a_damaged_invite_is_refused(data: st.DataObject) -> None:
    text = str(data.draw(st.sampled_from([INVITE, NEWER])))
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.sampled_from("abcXYZ019_-."))
    damaged = data.draw(st.sampled_from([text[:position], text[:position] + character + text[position + 1 :]]))
    if damaged != text:
        with pytest.raises(FormatError) as caught:
            Invite.parse(damaged)
        assert "copy the whole line" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": []},
        {"addresses": ["no port"]},
        {"addresses": ["a:1"] * 9},
        {"run": "A" * 64},
        {"tls": "b" * 63},
        {"code": "x" * 129},
        {"extra": 1},
    ],
)
def test_an_invite_that_says_something_else_is_refused(changes: dict) -> None:
    value = INVITE.model_dump(mode="json", exclude_none=True) | changes
    with pytest.raises(FormatError, match="damaged"):
        Invite.parse(encode(value))


def test_an_oversize_invite_is_refused() -> None:
    with pytest.raises(FormatError, match="not an invite"):
        Invite.parse("potluck1." + "a" * 5000)
