"""Stored vectors of what runs larger than a group sign (`sync.rules = 3`): what was once signed verifies for ever.

As in `test_vectors`; a new format gets its file from `python -m tests.test_vectors_large_runs`.
"""

from __future__ import annotations

import json

import pytest

from protocol import canonical
from protocol.agreement import Agreement, group_digest
from protocol.epoch import Epoch, open_word
from protocol.keys import PeerIdentity
from protocol.last import Last
from protocol.run_spec import RunSpec
from protocol.statements import Claim, Late, UpdateDigest, Vote, open_claim, open_vote
from protocol.succession import check_follows
from tests.kit.builders import make_spec
from tests.kit.vectors import GENESIS, LATE_PEER, MEMBERSHIP, PEERS, STATE, Makers, issue, stored, write_missing

# of a run by rules 3 with groups of two: the second peer has waited for a round; acceptors complete this one alone
SPEC = make_spec("vectors", rules=3)
SPEC = SPEC.model_copy(update={"sync": SPEC.sync.model_copy(update={"max_group": 2})})
RUN = SPEC.digest
LAST = Last(
    2, STATE, {PEERS[0].peer_id: 1024, LATE_PEER.peer_id: 1024}, base=GENESIS, full=2, recent={PEERS[1].peer_id: 1}
)
WAITED = Late(base=GENESIS, tokens=2048, first_batch=0, batches=128, waited=1)
CLAIMS = [
    Claim(
        run=RUN,
        round=3,
        base=STATE,
        tokens=1024,
        flops=6144,
        first_batch=0,
        batches=64,
        update=UpdateDigest(root="4" * 64, values=36, chunk_values=262144, codec="int8"),
        late=late,
    ).sign(peer)
    for peer, late in ((PEERS[0], None), (PEERS[1], WAITED))
]
COMPLETING_VOTE = Vote(
    run=RUN, round=3, attempt=2, group=group_digest(CLAIMS), base=STATE, state="6" * 64, completes=True
)
# the round after it, by the coordinator's word: the second peer alone decides it, and a first peer's claim is in it
EPOCH = Epoch(epoch=1, run=RUN, round=3, state="6" * 64, peers={PEERS[1].peer_id: 3072})
EPOCH_CLAIMS = [
    Claim(
        run=RUN,
        round=4,
        base="6" * 64,
        tokens=1024,
        flops=6144,
        first_batch=0,
        batches=64,
        update=UpdateDigest(root="7" * 64, values=36, chunk_values=262144, codec="int8"),
    ).sign(peer)
    for peer in PEERS
]
EPOCH_VOTE = Vote(run=RUN, round=4, attempt=0, group=group_digest(EPOCH_CLAIMS), base="6" * 64, state="8" * 64, epoch=1)


def make_completed_agreement() -> bytes:
    tokens = json.loads(stored("turns-certificates.json"))
    value = {
        "claims": [json.loads(item.data) for item in CLAIMS],
        "votes": [json.loads(COMPLETING_VOTE.sign(peer).data) for peer in (PEERS[0], LATE_PEER)],
        "certificates": tokens,
        "weights": {PEERS[0].peer_id: 1024, PEERS[1].peer_id: 3072},
        "full": 3,
        "recent": {LATE_PEER.peer_id: 1},
    }
    return canonical.dumps(value)


def make_epoch_agreement() -> bytes:
    tokens = json.loads(stored("turns-certificates.json"))
    value = {
        "claims": [json.loads(item.data) for item in EPOCH_CLAIMS],
        "votes": [json.loads(EPOCH_VOTE.sign(peer).data) for peer in PEERS],
        "certificates": {peer.peer_id: tokens[peer.peer_id] for peer in PEERS},
        "weights": {peer.peer_id: 1024 for peer in PEERS},
        "full": 4,
        "recent": {LATE_PEER.peer_id: 2},
        "epoch": json.loads(stored("epoch.json")),
    }
    return canonical.dumps(value)


SAME_AGAIN: Makers = {
    "turns-spec.json": SPEC.to_bytes,
    "waiting-claim.json": lambda: CLAIMS[1].data,
    "completing-vote.json": lambda: COMPLETING_VOTE.sign(LATE_PEER).data,
    "epoch.json": lambda: EPOCH.sign(PeerIdentity(MEMBERSHIP)).data,
}
MADE_ONCE: Makers = {
    "turns-certificates.json": lambda: canonical.dumps(
        {peer.peer_id: issue(peer, RUN) for peer in (*PEERS, LATE_PEER)}
    ),
}
SAME_FROM_STORED: Makers = {
    "completed-agreement.json": make_completed_agreement,
    "epoch-agreement.json": make_epoch_agreement,
}


@pytest.mark.parametrize("name", [*SAME_AGAIN, *SAME_FROM_STORED])
def test_what_is_made_today_is_what_was_made_then(name: str) -> None:
    assert {**SAME_AGAIN, **SAME_FROM_STORED}[name]() == stored(name)


def test_an_agreement_with_work_that_waited_completed_by_its_acceptors_still_verifies() -> None:
    spec, key = RunSpec.from_bytes(stored("turns-spec.json")), MEMBERSHIP.public_key()
    agreed = Agreement.from_bytes(stored("completed-agreement.json"), run=RUN, membership_key=key)
    check_follows(agreed, LAST, spec)
    assert agreed.completes and LATE_PEER.peer_id in agreed.voters - agreed.by_peer.keys()
    assert open_claim(stored("waiting-claim.json")).value.worth == 3072
    assert open_vote(stored("completing-vote.json")) in agreed.votes


def test_the_round_after_it_by_the_coordinators_word_still_verifies() -> None:
    spec, key = RunSpec.from_bytes(stored("turns-spec.json")), MEMBERSHIP.public_key()
    before, agreed = (
        Agreement.from_bytes(stored(name), run=RUN, membership_key=key)
        for name in ("completed-agreement.json", "epoch-agreement.json")
    )
    word = open_word(stored("epoch.json"), key, run=RUN)
    check_follows(agreed, Last.of(before), spec, word)
    assert agreed.word == word and Last.of(agreed).epoch == 1


if __name__ == "__main__":
    write_missing({**SAME_AGAIN, **MADE_ONCE, **SAME_FROM_STORED})
