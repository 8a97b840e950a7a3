"""What members sign: it reads back as it was, and nothing out of bounds or of another kind does."""

from __future__ import annotations

from typing import Any

import pytest

from protocol import envelope
from protocol.errors import FormatError
from protocol.keys import PeerIdentity
from protocol.signed import Signed
from protocol.statements import MAX_TOKENS, Claim, UpdateDigest, Vote, open_claim
from tests.kit.builders import fixed_ed25519

PEER = PeerIdentity(fixed_ed25519("member"))


def make_claim(tokens: int, **changes: Any) -> Claim:
    update = UpdateDigest(root="1" * 64, values=36, chunk_values=1024, codec="fp32")
    fields = {"run": "a" * 64, "round": 1, "base": "b" * 64, "tokens": tokens, "flops": 0, "first_batch": 0}
    return Claim(**(fields | {"batches": 1, "update": update} | changes))


def test_a_claim_reads_back_with_its_author() -> None:
    made = make_claim(100)
    assert open_claim(made.sign(PEER).data) == Signed(made, PEER.peer_id, made.sign(PEER).data, made.sign(PEER).digest)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 0},
        {"tokens": -5},
        {"tokens": MAX_TOKENS + 1},
        {"tokens": 1.5},
        {"round": 0},
        {"base": "xyz"},
        {"z": 1},
    ],
)
def test_a_claim_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    value = make_claim(100).model_dump(mode="json") | changes
    data = envelope.sign(value, Claim.media_type, PEER).to_bytes()
    with pytest.raises(FormatError, match="not a claim"):
        open_claim(data)


def test_a_vote_cannot_pass_for_a_claim() -> None:
    vote = Vote(run="a" * 64, round=1, attempt=0, group="b" * 64, base="c" * 64, state="d" * 64).sign(PEER)
    with pytest.raises(FormatError, match="expected a"):
        open_claim(vote.data)
