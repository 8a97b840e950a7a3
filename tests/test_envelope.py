"""DSSE envelopes: one statement, one signature, one type."""

from __future__ import annotations

import base64
import json

import pytest

from protocol import envelope
from protocol.envelope import Envelope
from protocol.errors import FormatError, SignatureError
from protocol.keys import PeerIdentity
from tests.kit.builders import fixed_ed25519, fixed_root_key

TYPE = "application/vnd.potluck.example.v1+json"
PEER = PeerIdentity(fixed_ed25519("peer"))
OTHER = PeerIdentity(fixed_ed25519("other"))


def signed(value=None) -> dict:
    return json.loads(envelope.sign({"n": 1} if value is None else value, TYPE, PEER).to_bytes())


def test_the_signed_bytes_are_those_of_the_dsse_specification() -> None:
    # github.com/secure-systems-lab/dsse, protocol.md, "Pre-Authentication Encoding"
    assert envelope.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_peers_statement_reads_back() -> None:
    data = envelope.sign({"b": [1], "a": None}, TYPE, PEER).to_bytes()
    assert envelope.open_by_peer(data, TYPE) == (PEER.peer_id, {"a": None, "b": [1]})


def test_a_root_keys_statement_reads_back() -> None:
    root = fixed_root_key()
    data = envelope.sign({"n": 1}, TYPE, root).to_bytes()
    assert envelope.open_by_root(data, TYPE, root.public_key) == {"n": 1}


def test_an_envelope_is_written_canonically_and_named_by_its_payload() -> None:
    first = envelope.sign({"n": 1}, TYPE, PEER)
    again = Envelope.from_bytes(first.to_bytes())
    assert again == first
    assert again.digest == envelope.sign({"n": 1}, TYPE, OTHER).digest != envelope.sign({"n": 2}, TYPE, PEER).digest


def test_a_changed_payload_is_refused() -> None:
    value = signed()
    value["payload"] = base64.b64encode(b'{"n":2}').decode()
    with pytest.raises(SignatureError):
        envelope.open_by_peer(json.dumps(value).encode(), TYPE)


def test_another_peers_name_on_a_statement_is_refused() -> None:
    value = signed()
    value["signatures"][0]["keyid"] = OTHER.peer_id
    with pytest.raises(SignatureError):
        envelope.open_by_peer(json.dumps(value).encode(), TYPE)


def test_a_statement_of_another_type_is_refused() -> None:
    with pytest.raises(FormatError, match="expected a application/vnd"):
        envelope.open_by_peer(json.dumps(signed()).encode(), "application/vnd.other")


def test_a_relabelled_statement_is_refused() -> None:
    value = signed() | {"payloadType": "application/vnd.other"}
    with pytest.raises(SignatureError):
        envelope.open_by_peer(json.dumps(value).encode(), "application/vnd.other")


def test_a_statement_by_another_root_key_is_refused() -> None:
    data = envelope.sign({"n": 1}, TYPE, fixed_root_key(2)).to_bytes()
    with pytest.raises(SignatureError, match="expected"):
        envelope.open_by_root(data, TYPE, fixed_root_key(1).public_key)
    value = json.loads(data)
    value["signatures"][0]["keyid"] = fixed_root_key(1).keyid
    with pytest.raises(SignatureError, match="not by the root key"):
        envelope.open_by_root(json.dumps(value).encode(), TYPE, fixed_root_key(1).public_key)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value | {"extra": 1},
        lambda value: {"payload": value["payload"]},
        lambda value: value | {"signatures": []},
        lambda value: value | {"signatures": value["signatures"] * 2},
        lambda value: value | {"signatures": [{"sig": "AA=="}]},
        lambda value: value | {"payload": "not base64!"},
        lambda value: value | {"payload": 5},
        lambda value: value | {"payloadType": None},
        lambda value: [value],
        lambda value: "envelope",
    ],
)
def test_what_is_no_envelope_is_refused(change) -> None:
    with pytest.raises(FormatError):
        envelope.open_by_peer(json.dumps(change(signed())).encode(), TYPE)


def test_an_oversize_envelope_is_refused_unread() -> None:
    with pytest.raises(FormatError, match="at most"):
        envelope.open_by_peer(b" " * (envelope.MAX_ENVELOPE_BYTES + 1), TYPE)
