"""Stored vectors of every signed format: what was once signed verifies for ever.

tests/vectors holds bytes that were made once, with fixed keys. Formats whose signatures are deterministic (Ed25519) are
made again here, byte for byte; P-256 signatures are random, so what carries one is only verified. A new format gets its
file from `python -m tests.test_vectors`, which writes what is missing and never changes what is there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol import canonical, certificate, keys, merkle, note, tlog_proof
from protocol.agreement import Agreement, group_digest
from protocol.beginners import Beginners
from protocol.envelope import Envelope
from protocol.epoch import open_word
from protocol.errors import RefusedError
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.ledger_entry import CheckpointEntry, CreditEntry, RunEntry, parse_entry
from protocol.note import LedgerHead
from protocol.receipt import check_receipt, make_receipt
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.state import StateManifest
from protocol.statements import (
    Cast,
    Claim,
    Farewell,
    Late,
    Promise,
    UpdateDigest,
    Vote,
    open_claim,
    open_farewell,
    open_promise,
    open_vote,
)
from protocol.succession import Last, check_follows
from protocol.tlog_proof import LogProof
from protocol.verify import verify_checkpoint
from tests.kit.builders import NOW, build_run, fixed_root_key, make_spec
from tests.kit.vectors import (
    GENESIS,
    LATE_PEER,
    LEDGER,
    MEMBERSHIP,
    PEERS,
    ROOT,
    STATE,
    VECTORS,
    issue,
    stored,
    write_missing,
)

SPEC = make_spec("vectors")
RUN = SPEC.digest
ORIGIN = note.origin("vectors", RUN)
CLAIMS = [
    Claim(
        run=RUN,
        round=1,
        base=GENESIS,
        tokens=tokens,
        flops=6 * tokens,
        first_batch=0,
        batches=tokens // 16,
        update=UpdateDigest(root="1" * 64, values=36, chunk_values=262144, codec="int8"),
        segments=("2" * 64,),
    ).sign(peer)
    for peer, tokens in zip(PEERS, (1024, 2048), strict=True)
]
VOTE = Vote(run=RUN, round=1, attempt=0, group=group_digest(CLAIMS), base=GENESIS, state=STATE)
# round 2: the second peer has left, a third brings work that missed round 1
LATE = Late(base=GENESIS, tokens=512, first_batch=0, batches=32)
SECOND_CLAIMS = [
    Claim(
        run=RUN,
        round=2,
        base=STATE,
        tokens=1024,
        flops=6144,
        first_batch=0,
        batches=64,
        update=UpdateDigest(root="3" * 64, values=36, chunk_values=262144, codec="int8"),
        late=late,
    ).sign(peer)
    for peer, late in ((PEERS[0], None), (LATE_PEER, LATE))
]
SECOND_VOTE = Vote(run=RUN, round=2, attempt=1, group=group_digest(SECOND_CLAIMS), base=STATE, state="5" * 64)
PROMISE = Promise(
    run=RUN, round=1, base="ab" * 32, attempt=2, leader=PEERS[1].peer_id,
    cast=(Cast(attempt=1, group="cd" * 32, state="ef" * 32),),
)  # fmt: skip
FAREWELL = Farewell(run=RUN, round=2, successor=PEERS[0].peer_id, attempt=1)
ENTRIES = [
    RunEntry(run=RUN, genesis=GENESIS, root_key=ROOT.keyid),
    CheckpointEntry(run=RUN, round=0, payload="e" * 64, state=GENESIS),
    CreditEntry(
        run=RUN, round=1, peer_id=PEERS[0].peer_id, tokens=1024, flops=6144, claim=CLAIMS[0].digest, state=STATE
    ),
    CheckpointEntry(run=RUN, round=1, payload="f" * 64, state=STATE, parent="e" * 64),
]
TREE = merkle.Tree(merkle.leaf_hash(entry.to_bytes()) for entry in ENTRIES)
HEAD = LedgerHead(ORIGIN, TREE.size, TREE.root)
CARD = RunCard(
    run=RUN,
    spec=SPEC,
    genesis=GENESIS,
    ledger_key=note.verifier_key(ORIGIN, LEDGER.public_key()),
    membership_key=MEMBERSHIP.public_key().public_bytes_raw().hex(),
)


def make_agreement() -> bytes:
    certificates = json.loads(stored("certificates.json"))
    value = {
        "claims": [json.loads(item.data) for item in CLAIMS],
        "votes": [json.loads(VOTE.sign(peer).data) for peer in PEERS],
        "certificates": certificates,
        "weights": {PEERS[0].peer_id: 1024, PEERS[1].peer_id: 2048},
    }
    return canonical.dumps(value)


def make_second_agreement() -> bytes:
    certificates = json.loads(stored("certificates.json")) | json.loads(stored("late-certificate.json"))
    voters = [PEERS[0], LATE_PEER]
    value = {
        "claims": [json.loads(item.data) for item in SECOND_CLAIMS],
        "votes": [json.loads(SECOND_VOTE.sign(peer).data) for peer in voters],
        "certificates": {peer.peer_id: certificates[peer.peer_id] for peer in voters},
        "weights": {PEERS[0].peer_id: 1024, LATE_PEER.peer_id: 1280},
        "farewells": [json.loads(FAREWELL.sign(PEERS[1]).data)],
    }
    return canonical.dumps(value)


def make_vector_receipt() -> bytes:
    return make_receipt(
        run_card=json.loads(stored("run-card.json")),
        root_public_key=stored("coordinator.pub").decode(),
        entry=ENTRIES[2],
        proof=tlog_proof.make(TREE, 2, HEAD, note.sign_head(HEAD, LEDGER)),
    )


# In the order in which they are made: later ones hold earlier ones.
SAME_AGAIN: dict[str, Callable[[], bytes]] = {
    "identity": lambda: PEERS[0].to_bytes(),
    "peer-id": lambda: PEERS[0].peer_id.encode(),
    "coordinator.pub": lambda: keys.public_pem(ROOT.public_key),
    "fingerprint": lambda: ROOT.keyid.encode(),
    "invite": lambda: str(
        Invite(addresses=("203.0.113.7:4700",), run=RUN, tls="c" * 64, root=ROOT.keyid, code="wood")
    ).encode(),
    "invite-2": lambda: str(
        Invite(addresses=("203.0.113.7:4700",), run=RUN, tls="c" * 64, root=ROOT.keyid, code="wood", version=2)
    ).encode(),
    "run-spec.json": SPEC.to_bytes,
    "claim.json": lambda: CLAIMS[0].data,
    "vote.json": lambda: VOTE.sign(PEERS[0]).data,
    "late-claim.json": lambda: SECOND_CLAIMS[1].data,
    "farewell.json": lambda: FAREWELL.sign(PEERS[1]).data,
    "beginners.json": lambda: (
        Beginners(run=RUN, peers=tuple(peer.peer_id for peer in PEERS)).sign(PeerIdentity(MEMBERSHIP)).data
    ),
    "promise.json": lambda: PROMISE.sign(PEERS[0]).data,
    "state-manifest.json": lambda: StateManifest(
        round=1, tensors=(("a", (2, 3)), ("b", ())), parameters="1" * 64, outer="2" * 64, outer_vectors=2, outer_steps=7
    ).to_bytes(),
    "ledger-entries.jsonl": lambda: b"\n".join(entry.to_bytes() for entry in ENTRIES),
    "ledger-head.note": lambda: note.sign_head(HEAD, LEDGER).encode(),
    "credit.tlog-proof": lambda: tlog_proof.make(TREE, 2, HEAD, note.sign_head(HEAD, LEDGER)).to_text().encode(),
}
MADE_ONCE: dict[str, Callable[[], bytes]] = {
    # the library that writes certificates may order a JWT's header anew
    "certificates.json": lambda: canonical.dumps({peer.peer_id: issue(peer, RUN) for peer in PEERS}),
    "late-certificate.json": lambda: canonical.dumps({LATE_PEER.peer_id: issue(LATE_PEER, RUN)}),
    "run-card.json": lambda: CARD.sign(ROOT).to_bytes(),
}
SAME_FROM_STORED: dict[str, Callable[[], bytes]] = {
    "agreement.json": make_agreement,
    "agreement-2.json": make_second_agreement,
    "receipt.json": make_vector_receipt,
}


@pytest.mark.parametrize("name", [*SAME_AGAIN, *SAME_FROM_STORED])
def test_what_is_made_today_is_what_was_made_then(name: str) -> None:
    assert (SAME_AGAIN | SAME_FROM_STORED)[name]() == stored(name)


def test_the_identity_file_still_opens() -> None:
    identity = PeerIdentity.from_bytes(stored("identity"))
    assert identity.peer_id.encode() == stored("peer-id")


def test_the_root_public_key_still_has_its_fingerprint() -> None:
    assert keys.fingerprint(keys.load_public_pem(stored("coordinator.pub"))).encode() == stored("fingerprint")


def test_the_invite_still_opens() -> None:
    for version, name in ((1, "invite"), (2, "invite-2")):
        invite = Invite.parse(stored(name).decode())
        assert (invite.version, invite.root, invite.code) == (version, stored("fingerprint").decode(), "wood")


def test_the_run_spec_still_has_its_digest() -> None:
    assert RunSpec.from_bytes(stored("run-spec.json")).digest == RUN
    assert RUN == "8a4b96594087a92859bcf4fee3d56b418d4ed7f543b17114bb63c72850f30bb2"


def test_the_claim_and_the_vote_still_verify() -> None:
    opened = open_claim(stored("claim.json"))
    assert (opened.by.encode(), opened.value.tokens) == (stored("peer-id"), 1024)
    vote = open_vote(stored("vote.json"))
    assert (vote.by.encode(), vote.value.state) == (stored("peer-id"), STATE)


def test_a_naming_of_beginners_and_a_promise_still_verify() -> None:
    word = open_word(stored("beginners.json"), MEMBERSHIP.public_key(), run=RUN)
    assert word.value.weights == {peer.peer_id: 1 for peer in PEERS}
    assert open_promise(stored("promise.json")) == PROMISE.sign(PEERS[0])


def test_the_certificates_still_verify() -> None:
    for peer_id, token in json.loads(stored("certificates.json")).items():
        member = certificate.check(token, MEMBERSHIP.public_key(), run=RUN, accept_expired=True)
        assert (member.peer_id, member.expires) == (peer_id, NOW + 3600)


def test_the_agreement_still_verifies() -> None:
    agreed = Agreement.from_bytes(stored("agreement.json"), run=RUN, membership_key=MEMBERSHIP.public_key())
    assert (agreed.state, sum(agreed.weights.values())) == (STATE, 3072)
    check_follows(agreed, Last(0, agreed.base), CARD.spec)


def test_an_agreement_with_late_work_and_a_farewell_still_verifies() -> None:
    key = MEMBERSHIP.public_key()
    first = Agreement.from_bytes(stored("agreement.json"), run=RUN, membership_key=key)
    second = Agreement.from_bytes(stored("agreement-2.json"), run=RUN, membership_key=key)
    check_follows(second, Last.of(first), CARD.spec)
    assert second.by_peer[LATE_PEER.peer_id].late == LATE
    assert open_claim(stored("late-claim.json")).value.worth == 1280
    assert open_farewell(stored("farewell.json")) == FAREWELL.sign(PEERS[1])
    assert second.has_majority_of(first.weights), "the one that left speaks through its successor"
    assert not replace(second, farewells=()).has_majority_of(first.weights)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("round", 3, "farewell for round 3"), ("attempt", 2, "from attempt 2"), ("run", "0" * 64, "farewell for round")],
)
def test_an_agreement_with_a_farewell_that_does_not_count_is_refused(field: str, value: Any, reason: str) -> None:
    agreement = json.loads(stored("agreement-2.json"))
    other = FAREWELL.model_copy(update={field: value})
    agreement["farewells"] = [json.loads(other.sign(PEERS[1]).data)]
    with pytest.raises(RefusedError, match=reason):
        Agreement.from_bytes(canonical.dumps(agreement), run=RUN, membership_key=MEMBERSHIP.public_key())


def test_late_work_of_somebody_who_was_in_the_round_before_is_refused() -> None:
    second = Agreement.from_bytes(stored("agreement-2.json"), run=RUN, membership_key=MEMBERSHIP.public_key())
    with pytest.raises(RefusedError, match="in the round before"):
        check_follows(second, Last(1, second.base, {PEERS[0].peer_id: 1024, LATE_PEER.peer_id: 2048}), CARD.spec)


def test_the_run_card_still_verifies() -> None:
    assert RunCard.open(stored("run-card.json"), keys.load_public_pem(stored("coordinator.pub"))) == CARD
    assert Envelope.from_bytes(stored("run-card.json")).digest == CARD.sign(ROOT).digest


def test_the_state_manifest_still_has_its_digest() -> None:
    assert (
        StateManifest.from_bytes(stored("state-manifest.json")).digest
        == "0e44359b75aa33fdac682a534027b20a8f42f1bce1eded78dfdbb0f17a041ae3"
    )


def test_the_ledger_entries_still_have_their_root() -> None:
    entries = stored("ledger-entries.jsonl").split(b"\n")
    assert [parse_entry(data) for data in entries] == ENTRIES
    assert (
        merkle.root(merkle.leaf_hash(data) for data in entries).hex()
        == "719e60e8017b77b94f48a0822fc3bf150af819fe6cca65a914411cdbe520ead2"
    )


def test_the_ledger_head_and_the_log_proof_still_verify() -> None:
    assert note.open_head(stored("ledger-head.note").decode(), CARD.ledger_key) == HEAD
    entry = stored("ledger-entries.jsonl").split(b"\n")[2]
    assert LogProof.from_text(stored("credit.tlog-proof").decode()).verify(entry, CARD.ledger_key) == HEAD


def test_the_receipt_still_verifies() -> None:
    checked = check_receipt(stored("receipt.json"), {stored("fingerprint").decode()})
    assert checked.entry == ENTRIES[2]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_checkpoints_still_verify(kind: str) -> None:
    folder = VECTORS / "checkpoints" / kind
    for step in ("step-000000", "step-000001"):
        report = verify_checkpoint(folder / step, trusted={fixed_root_key(1).keyid}, checkpoints_dir=folder)
        assert report.ok, report.to_text()


def write_checkpoints() -> None:
    for kind in ("full", "lora"):
        if not (VECTORS / "checkpoints" / kind).exists():
            with tempfile.TemporaryDirectory() as folder:
                run = build_run(Path(folder), rounds=1, method=kind)
                shutil.copytree(run.checkpoints, VECTORS / "checkpoints" / kind)


if __name__ == "__main__":
    write_missing(SAME_AGAIN | MADE_ONCE | SAME_FROM_STORED)
    write_checkpoints()
