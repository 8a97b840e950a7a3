"""Signed notes and ledger heads, by the C2SP specs."""

from __future__ import annotations

import base64

import pytest

from protocol import note
from protocol.errors import FormatError, SignatureError
from protocol.note import LedgerHead
from tests.kit.builders import fixed_ed25519

# The example of c2sp.org/signed-note
SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""
NAME = "potluck/tiny/0123456789abcdef"
KEY = fixed_ed25519("ledger")
OTHER = fixed_ed25519("other")
VERIFIER = note.verifier_key(NAME, KEY.public_key())
HEAD = LedgerHead(NAME, 12, bytes(range(32)))


def test_the_example_of_the_specification_verifies() -> None:
    assert note.verify(SPEC_NOTE, SPEC_KEY) == "This is an example message.\n"


def test_the_verifier_key_of_the_specification_is_written_as_there() -> None:
    name, key = note.parse_verifier_key(SPEC_KEY)
    assert note.verifier_key(name, key) == SPEC_KEY


def test_a_ledger_head_reads_back() -> None:
    text = note.sign_head(HEAD, KEY)
    assert note.open_head(text, VERIFIER) == HEAD
    assert text.startswith(f"{NAME}\n12\nAAECAwQF")


def test_a_changed_text_is_refused() -> None:
    with pytest.raises(SignatureError, match="does not hold"):
        note.open_head(note.sign_head(HEAD, KEY).replace("\n12\n", "\n13\n"), VERIFIER)


def test_a_note_by_another_key_is_refused() -> None:
    with pytest.raises(SignatureError, match="not signed by"):
        note.open_head(note.sign_head(HEAD, OTHER), VERIFIER)


def test_signatures_by_unknown_keys_are_ignored() -> None:
    mine, others = note.sign_head(HEAD, KEY), note.sign_head(HEAD, OTHER)
    witness = note.sign(HEAD.to_text(), "witness.example", OTHER)
    both = mine + others.split("\n\n")[1] + witness.split("\n\n")[1]
    assert note.open_head(both, VERIFIER) == HEAD


def test_one_bad_signature_by_the_known_key_spoils_the_note() -> None:
    bad = note.key_id(NAME, KEY.public_key()) + bytes(64)
    line = f"— {NAME} {base64.b64encode(bad).decode()}\n"
    with pytest.raises(SignatureError, match="does not hold"):
        note.open_head(note.sign_head(HEAD, KEY) + line, VERIFIER)


def test_a_log_cannot_speak_for_another() -> None:
    head = LedgerHead("potluck/other/0123456789abcdef", 12, bytes(32))
    with pytest.raises(SignatureError, match="expected potluck/tiny"):
        note.open_head(note.sign(head.to_text(), NAME, KEY), VERIFIER)


def test_a_note_may_hold_empty_lines_and_other_scripts() -> None:
    text = "众人拾柴火焰高\n\n火\n"
    assert note.verify(note.sign(text, NAME, KEY), VERIFIER) == text


@pytest.mark.parametrize(
    "text",
    [
        f"{NAME}\n12\n",
        f"{NAME}\n12\n{base64.b64encode(bytes(32)).decode()}\nextension\n",
        f"{NAME}\n012\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n-1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n1_2\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n٣\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n99999999999999999\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n12\n{base64.b64encode(bytes(31)).decode()}\n",
        f"{NAME}\n12\n{base64.b64encode(bytes(32)).decode()[:-2]}B=\n",
        f"{NAME}\n12\nnot base64\n",
    ],
)
def test_a_signed_text_that_is_no_ledger_head_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        note.open_head(note.sign(text, NAME, KEY), VERIFIER)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("— ", "- "),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n",
        lambda text: text + "garbage\n",
        lambda text: text + "— name AAAA\n",
        lambda text: text.replace("\n12", "\r\n12"),
        lambda text: text + "— witness.example AAAAAAAAAA==\n" * 100,
        lambda text: "x" * 20_000 + text,
        lambda text: "\ud800" + text,
        lambda text: "",
    ],
)
def test_what_is_no_note_is_refused(change) -> None:
    with pytest.raises((FormatError, SignatureError)):
        note.open_head(change(note.sign_head(HEAD, KEY)), VERIFIER)


@pytest.mark.parametrize(
    "verifier",
    ["", NAME, f"{NAME}+00000000+{VERIFIER.rsplit('+', 1)[1]}", VERIFIER + "A", VERIFIER.replace("+", " "), "x" * 1000],
)
def test_what_is_no_verifier_key_is_refused(verifier: str) -> None:
    with pytest.raises(FormatError):
        note.parse_verifier_key(verifier)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "x" * 300, "a\u2003b"])
def test_a_name_that_no_note_can_carry_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        note.sign("text\n", name, KEY)


@pytest.mark.parametrize("text", ["no newline", "tab\t\n", "bell\x07\n"])
def test_a_text_that_no_note_can_carry_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        note.sign(text, NAME, KEY)


def test_the_origin_names_the_run() -> None:
    assert note.origin("tiny", "0123456789abcdef" * 4) == NAME
