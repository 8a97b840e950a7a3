"""Whatever comes from outside, a parser answers with what it read or with an error of ours; nothing else escapes.

Valid bytes are changed at random: single bytes, and, where they are JSON, any part of the tree.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import canonical, certificate, checkpoint, envelope, keys, note
from protocol.agreement import Agreement
from protocol.checkpoint import CheckpointInfo
from protocol.envelope import Envelope
from protocol.epoch import Epoch, open_word
from protocol.errors import PotluckError
from protocol.held_out import Asked, Measured, open_measured
from protocol.invite import Invite
from protocol.last import Last
from protocol.ledger_entry import parse_entry
from protocol.model_signature import ModelSignature
from protocol.newest import head_note_in
from protocol.receipt import check_receipt
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.safetensors_file import FULL_FILE, Weights
from protocol.state import StateManifest
from protocol.statements import Late, open_claim, open_vote
from protocol.tlog_proof import LogProof
from protocol.verify import verify_checkpoint, verify_receipt
from tests.kit.agreeing import COORDINATOR, GENESIS, IDS, KEY, ONE, TWO, agree, spec_of, weighing
from tests.kit.builders import NOW, Run, build_run, safetensors_bytes

COMMON = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 1, 2**53 - 1, -(2**53) + 1, 0.5, 1e300, "", "\x00", "é", "A" * 70, [], {}, [[]], {"": None}]
    ),
    st.text(max_size=8),
)
ANY_JSON = st.recursive(ODD_VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"), rounds=1)


@functools.cache
def by_a_word() -> Agreement:
    """An agreement that has all that only large runs know: full groups, work that waited, a word, acceptors outside."""
    spec = spec_of(3, max_group=3)
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS, full=2, recent={IDS[4]: 2})
    word = Epoch(epoch=1, run=spec.digest, round=5, state=ONE, peers=weighing(0, 1)).sign(COORDINATOR)
    late = Late(base=GENESIS, tokens=160, first_batch=0, batches=10, waited=2)
    return agree(spec, [0, 2, 4], last, TWO, voters=[0, 1], late={4: late}, word=word, completes=True)


def valid_bytes(run: Run) -> dict[str, tuple[bytes, Callable[[bytes], Any]]]:
    """Name -> (valid bytes, parser)."""
    return members_bytes(run) | hosts_bytes(run)


def members_bytes(run: Run) -> dict[str, tuple[bytes, Callable[[bytes], Any]]]:
    agreement, large = run.agreements[1], by_a_word()
    spec, member = run.spec, run.membership_key.public_key()
    asked = Asked(spec.digest, 1, agreement.state, 4, 64)
    return {
        "claim": (agreement.claims[0].data, open_claim),
        "vote": (agreement.votes[0].data, open_vote),
        "held-out loss": (
            Measured(held_out_loss=3.25, **vars(asked)).sign(run.peers[0]).data,
            lambda data: open_measured(data, asked),
        ),
        "envelope": (agreement.claims[0].data, Envelope.from_bytes),
        "agreement": (
            agreement.to_bytes(),
            lambda data: Agreement.from_bytes(data, run=spec.digest, membership_key=member),
        ),
        "agreement of a large run": (
            large.to_bytes(),
            lambda data: Agreement.from_bytes(data, run=large.run, membership_key=KEY.public_key()),
        ),
        "word": (
            large.word.data if large.word else b"",
            lambda data: open_word(data, KEY.public_key(), run=large.run),
        ),
        "certificate": (
            run.certificate(run.peers[0]).encode(),
            lambda data: certificate.check(data.decode("latin-1"), member, run=spec.digest, accept_expired=True),
        ),
    }


def hosts_bytes(run: Run) -> dict[str, tuple[bytes, Callable[[bytes], Any]]]:
    spec, step = run.spec, run.step(1)
    head = note.sign_head(run.head(), run.ledger_key)
    invite = str(Invite(addresses=("127.0.0.1:4700",), run=spec.digest, tls="b" * 64, root=run.root.keyid))
    return {
        "run card": (
            canonical.dumps(run.card_envelope),
            lambda data: RunCard.open(data, run.root.public_key),
        ),
        "run spec": (spec.to_bytes(), RunSpec.from_bytes),
        "invite": (invite.encode(), lambda data: Invite.parse(data.decode("latin-1"))),
        "identity": (run.peers[0].to_bytes(), keys.PeerIdentity.from_bytes),
        "public key": (keys.public_pem(run.root.public_key), keys.load_public_pem),
        "peer id": (run.peers[0].peer_id.encode(), lambda data: keys.peer_public_key(data.decode("latin-1"))),
        "state manifest": (checkpoint.read_info(step).state.to_bytes(), StateManifest.from_bytes),
        "ledger entry": (run.entries[1].to_bytes(), parse_entry),
        "ledger head": (
            head.encode(),
            lambda data: note.open_head(data.decode("utf-8", "replace"), run.card.ledger_key),
        ),
        "verifier key": (
            run.card.ledger_key.encode(),
            lambda data: note.parse_verifier_key(data.decode("utf-8", "replace")),
        ),
        "log proof": (
            run.proof(1).to_text().encode(),
            lambda data: LogProof.from_text(data.decode("utf-8", "replace")).verify(
                run.entries[1].to_bytes(), run.card.ledger_key
            ),
        ),
        "receipt": (run.receipt(1), lambda data: check_receipt(data, run.trusted)),
        "file with a ledger head": (
            run.proof(1).to_text().encode(),
            lambda data: note.open_head(head_note_in(data), run.card.ledger_key),
        ),
        "checkpoint.json": ((step / "model/checkpoint.json").read_bytes(), CheckpointInfo.from_bytes),
        "model signature": (
            (step / "model.sig").read_bytes(),
            lambda data: ModelSignature.from_bytes(data).verify(run.root.public_key),
        ),
    }


NAMES = [
    "claim", "vote", "held-out loss", "envelope", "agreement", "agreement of a large run", "word", "certificate",
    "run card", "run spec", "invite", "identity", "public key", "peer id", "state manifest", "ledger entry",
    "ledger head", "verifier key", "log proof", "receipt", "file with a ledger head", "checkpoint.json",
    "model signature",
]  # fmt: skip


def answers(parse: Callable[[bytes], Any], data: bytes) -> bool:
    """Whether the bytes were accepted; an error that is not ours fails the test."""
    try:
        parse(data)
    except PotluckError as error:
        assert error.message
        return False
    return True


def test_every_parser_is_tried(run: Run) -> None:
    assert list(valid_bytes(run)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_valid_bytes_are_accepted(name: str, run: Run) -> None:
    data, parse = valid_bytes(run)[name]
    assert answers(parse, data)


@pytest.mark.parametrize("name", NAMES)
@COMMON
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(name: str, run: Run, data: bytes) -> None:
    assert not answers(valid_bytes(run)[name][1], data)


@pytest.mark.parametrize("name", NAMES)
@COMMON
@given(choice=st.data())
def test_changed_bytes_are_answered(name: str, run: Run, choice: st.DataObject) -> None:
    data, parse = valid_bytes(run)[name]
    start = choice.draw(st.integers(0, len(data)))
    length = choice.draw(st.integers(0, 3))
    answers(parse, data[:start] + choice.draw(st.binary(max_size=3)) + data[start + length :])


def change_tree(choice: st.DataObject, value: Any) -> Any:
    """A JSON value with one part replaced, removed, added or repeated; base64 of JSON is looked into."""
    if isinstance(value, str) and len(value) > 20 and choice.draw(st.booleans()):
        try:
            inner = json.loads(base64.b64decode(value, validate=True))
        except ValueError:
            pass
        else:
            return base64.b64encode(json.dumps(change_tree(choice, inner)).encode()).decode()
    if isinstance(value, dict) and value:
        key = choice.draw(st.sampled_from(sorted(value)))
        if choice.draw(st.integers(0, 3)):
            return value | {key: change_tree(choice, value[key])}
        if choice.draw(st.booleans()):
            return {name: item for name, item in value.items() if name != key}
        return value | {choice.draw(st.text(max_size=4)): choice.draw(ODD_VALUES)}
    if isinstance(value, list) and value:
        index = choice.draw(st.integers(0, len(value) - 1))
        if choice.draw(st.integers(0, 3)):
            return [*value[:index], change_tree(choice, value[index]), *value[index + 1 :]]
        return value[:index] + value[index + 1 :] if choice.draw(st.booleans()) else [*value, value[index]]
    return choice.draw(ANY_JSON)


JSON_NAMES = [
    "claim",
    "agreement",
    "run card",
    "run spec",
    "state manifest",
    "ledger entry",
    "receipt",
    "checkpoint.json",
]


@pytest.mark.parametrize("name", [*JSON_NAMES, "model signature"])
@COMMON
@given(choice=st.data())
def test_changed_json_is_answered(name: str, run: Run, choice: st.DataObject) -> None:
    data, parse = valid_bytes(run)[name]
    answers(parse, json.dumps(change_tree(choice, json.loads(data))).encode())


@COMMON
@given(value=ANY_JSON)
def test_any_json_in_place_of_an_agreement_or_entry_is_refused(run: Run, value: Any) -> None:
    data = json.dumps(value).encode()
    for name in (
        "agreement",
        "agreement of a large run",
        "word",
        "ledger entry",
        "receipt",
        "checkpoint.json",
        "model signature",
        "envelope",
    ):
        assert not answers(valid_bytes(run)[name][1], data)


@COMMON
@given(choice=st.data())
def test_a_statement_that_was_changed_and_signed_again_is_answered(run: Run, choice: st.DataObject) -> None:
    opened = Envelope.from_bytes(run.agreements[1].claims[0].data)
    value = change_tree(choice, json.loads(opened.payload))
    try:
        signed = envelope.sign(value, opened.payload_type, run.peers[0])
    except PotluckError:
        return
    answers(open_claim, signed.to_bytes())
    card = change_tree(choice, run.card.model_dump(mode="json"))
    try:
        signed = envelope.sign(card, "application/vnd.potluck.run.v1+json", run.root)
    except PotluckError:
        return
    answers(lambda data: RunCard.open(data, run.root.public_key), signed.to_bytes())


@COMMON
@given(claims=st.dictionaries(st.sampled_from(["sub", "aud", "iat", "exp", "nbf", "x"]), ANY_JSON | st.just(1e400)))
def test_a_certificate_that_says_anything_and_is_signed_is_answered(run: Run, claims: dict[str, Any]) -> None:
    import jwt

    full = {"sub": run.peers[0].peer_id, "aud": run.spec.digest, "iat": NOW, "exp": NOW + 10} | claims
    try:
        token = jwt.encode(full, run.membership_key, algorithm="EdDSA", headers={"typ": "potluck-member+jwt"})
    except (TypeError, jwt.PyJWTError):
        return
    member = run.membership_key.public_key()
    for expired in (False, True):
        answers(
            lambda data, expired=expired: certificate.check(
                data.decode(), member, run=run.spec.digest, accept_expired=expired
            ),
            token.encode(),
        )


@settings(COMMON, max_examples=40)
@given(choice=st.data())
def test_a_checkpoint_json_that_was_changed_and_signed_again_gets_a_report(
    run: Run, choice: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    other = run.copy(folder)
    shutil.copytree(run.checkpoints, other.checkpoints)
    path = other.step(1) / "model/checkpoint.json"
    try:
        path.write_bytes(canonical.dumps(change_tree(choice, json.loads(path.read_bytes()))))
    except PotluckError:
        return
    checkpoint.sign_checkpoint(other.step(1), run.root)
    report = verify_checkpoint(other.step(1), trusted=run.trusted, checkpoints_dir=other.checkpoints)
    assert not report.ok or path.read_bytes() == (run.step(1) / "model/checkpoint.json").read_bytes()
    json.dumps(report.to_json())
    report.to_text().encode()
    shutil.rmtree(folder)


@COMMON
@given(data=st.binary(max_size=300), prefix=st.booleans())
def test_a_random_receipt_file_gets_a_report(tmp_path: Path, data: bytes, prefix: bool) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes((b'{"run_card":' if prefix else b"") + data)
    assert not verify_receipt(path, set()).ok


@COMMON
@given(choice=st.data())
def test_a_changed_safetensors_file_is_answered(tmp_path: Path, choice: st.DataObject) -> None:
    data = safetensors_bytes({"a": ((2, 2), [1.0, 2.0, 3.0, 4.0]), "b": ((), [5.0])})
    if choice.draw(st.booleans()):
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(change_tree(choice, json.loads(data[8 : 8 + length]))).encode()
        changed = len(header).to_bytes(8, "little") + header + data[8 + length :]
    else:
        start = choice.draw(st.integers(0, len(data)))
        changed = data[:start] + choice.draw(st.binary(max_size=3)) + data[start + choice.draw(st.integers(0, 3)) :]
    (tmp_path / FULL_FILE).write_bytes(changed)
    answers(lambda _: Weights.open(tmp_path, [FULL_FILE]).state_root(), b"")
