"""Agreements in memory, signed by members whose keys are the same in every test run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol import certificate
from protocol.agreement import Agreement, group_digest
from protocol.beginners import Beginners
from protocol.counting import counted
from protocol.epoch import Word
from protocol.keys import PeerIdentity
from protocol.last import Last
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim, Farewell, Late, UpdateDigest, Vote
from protocol.succession import epoch_after
from tests.kit.builders import fixed_ed25519, make_spec

KEY = fixed_ed25519("membership 1")
COORDINATOR = PeerIdentity(KEY)
GENESIS, ONE, TWO, THREE = "ab" * 32, "cd" * 32, "ef" * 32, "12" * 32
PEERS = [PeerIdentity(fixed_ed25519(f"member {index}")) for index in range(8)]
IDS = [peer.peer_id for peer in PEERS]


def spec_of(rules: int, **sync: object) -> RunSpec:
    spec = make_spec(rules=rules)
    return spec.model_copy(update={"sync": spec.sync.model_copy(update=sync)})


def weighing(*members: int, tokens: int = 100) -> dict[str, int]:
    """These members, each with so much weight."""
    return {IDS[index]: tokens for index in members}


def named(spec: RunSpec, *members: int) -> Signed[Beginners]:
    return Beginners(run=spec.digest, peers=tuple(IDS[index] for index in members)).sign(COORDINATOR)


def claim_of(index: int, last: Last, spec: RunSpec, tokens: int = 160, late: Late | None = None) -> Claim:
    update = UpdateDigest(root="0" * 64, values=36, chunk_values=36, codec="int8")
    return Claim(
        run=spec.digest, round=last.round + 1, base=last.state, tokens=tokens, flops=index,
        first_batch=0, batches=-(-tokens // 16), update=update, late=late,
    )  # fmt: skip


def agree(
    spec: RunSpec,
    members: Sequence[int],
    last: Last,
    state: str,
    *,
    voters: Sequence[int] | None = None,
    tokens: Mapping[int, int] | None = None,
    late: Mapping[int, Late] | None = None,
    farewells: tuple[Signed[Farewell], ...] = (),
    word: Signed[Word] | None = None,
    **vote: object,
) -> Agreement:
    """What these members would sign; opened from its bytes, as whoever gets it does.

    Args:
        voters: who has voted; None: the members.
        vote: fields of all votes.
    """
    claims = {
        IDS[index]: claim_of(index, last, spec, (tokens or {}).get(index, 160), (late or {}).get(index))
        for index in members
    }
    signed = tuple(claims[IDS[index]].sign(PEERS[index]) for index in members)
    voting = members if voters is None else voters
    place = {"run": spec.digest, "round": last.round + 1, "base": last.state, "attempt": 0}
    place["epoch"] = epoch_after(last, word.value if word else None)
    said = Vote.model_validate({**place, "group": group_digest(signed), "state": state, **vote})
    made = Agreement(
        claims=signed,
        votes=tuple(said.sign(PEERS[index]) for index in voting),
        certificates={
            IDS[index]: certificate.issue(KEY, run=spec.digest, peer_id=IDS[index], lifetime_s=60)
            for index in {*members, *voting}
        },
        counts=counted(claims, last, spec),
        farewells=farewells,
        word=word,
    )
    return Agreement.from_bytes(made.to_bytes(), run=spec.digest, membership_key=KEY.public_key())
