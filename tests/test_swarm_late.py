"""Late updates: what misses its round counts less in the next one, once, and then no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peer.round.report import Rounds
from peer.sync.contribution import Contribution, Leftover
from peer.training.codecs.codec import EncodedUpdate
from peer.training.work import Update
from protocol.counting import weights
from protocol.envelope import Envelope
from protocol.errors import FormatError, RoundAborted, VerificationError
from protocol.statements import Claim, Late, open_claim
from protocol.succession import Last, check_follows
from tests.swarm_kit import World, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Misses(Rounds):
    """Is not in time for round 2."""

    missed = 2

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        real = self.own.wait_ready

        async def wait_ready(timeout_s: float) -> Contribution:
            if self.position.round == self.missed:
                raise RoundAborted("not ready")
            return await real(timeout_s)

        self.own.wait_ready = wait_ready  # type: ignore[method-assign]


def test_work_that_missed_its_round_is_in_the_next_one_at_half_its_tokens(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=900, min_peers=2)

    async def main() -> None:
        async with world.peers(2) as (one, two), world.peer(2, one, two, engine=Misses, tokens=200) as late:
            peers = [one, two, late]
            await agreed(peers, 3)
            second, third = (next(h.agreement for h in one.heads if h.round == number) for number in (2, 3))
            assert second and third
            assert late.me not in second.weights
            made = third.by_peer[late.me].late
            assert made == Late(base=second.base, tokens=200, first_batch=0, batches=13)
            assert third.weights == {one.me: 400, two.me: 400, late.me: 300}
            assert all(claim.late is None for claim in second.by_peer.values())
            again = type(third).from_bytes(third.to_bytes(), run=world.card.run, membership_key=world.card.member_key)
            check_follows(again, Last.of(second), world.spec)
            base, after = (next(h.state for h in one.heads if h.round == number) for number in (2, 3))
            mixed = (world.update(2, 3) * 200 + world.update(2, 2) * 100) / 300
            mean = (world.update(0, 3) * 400 + world.update(1, 3) * 400 + mixed * 300) / 1100
            assert torch.allclose(after.parameters, base.parameters - mean, atol=1e-5)
            await agreed(peers, 4)
            fourth = next(h.agreement for h in one.heads if h.round == 4)
            assert fourth and fourth.by_peer[late.me].late is None, "it counts once"

    run(main())


def test_work_that_is_finished_after_its_round_is_kept_and_work_of_two_rounds_ago_is_not(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=800, min_peers=2)

    async def main() -> None:
        async with world.peers(2) as (one, two), world.peer(2, one, two, train=False) as slow:
            await until(lambda: slow.round >= 1 and slow.rounds.head.agreement, what="the first rounds to be seen")
            rounds = slow.rounds
            first = slow.heads[-1]
            assert first.agreement is not None
            just_missed = Update(world.update(2), 160, 0, 10, 1)
            await rounds.finish_work(just_missed, first.agreement.base)
            assert rounds.own.late is not None and rounds.own.late.tokens == 160
            await until(lambda: slow.round > first.round)
            assert rounds.own.late is None, "the next round went by as well"
            await rounds.finish_work(Update(world.update(2), 160, 0, 10, 1), first.agreement.base)
            assert rounds.own.late is None

    run(main())


def claim_with_late(world: World, **changes: Any) -> bytes:
    encoded = EncodedUpdate.encode(world.update(0), "fp32")
    fields = {"base": "b" * 64, "tokens": 100, "first_batch": 0, "batches": 10} | changes
    return world.claim(0, encoded, round=2, late=Late(**fields)).sign(world.identity(0)).data


@pytest.mark.parametrize(
    ("changes", "previous", "reason"),
    [
        ({}, {}, ""),
        ({}, {"self": 5}, "was in the round before"),
        ({"base": "c" * 64}, {}, "late work from"),
        ({"tokens": 10**6}, {}, "more than fit"),
    ],
)
def test_late_work_must_be_of_the_round_before_and_not_counted_there(
    tmp_path: Path, changes: dict[str, Any], previous: dict[str, int], reason: str
) -> None:
    world = World(tmp_path, values=1000)
    me = world.identity(0).peer_id
    rules = world.rules(last=Last(1, world.genesis.digest, {me: 5} if previous else {"other": 9}, base="b" * 64))
    data = claim_with_late(world, **changes)
    if not reason:
        made = rules.check_member(data, world.certificate(0), True).claim
        assert made.worth == made.tokens + 50 and weights({me: made.worth}, rules.last) == {me: made.worth}
        return
    with pytest.raises(VerificationError, match=reason):
        rules.check_member(data, world.certificate(0), True)


def test_a_claim_without_late_work_is_signed_as_it_always_was(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    signed = world.claim(0, EncodedUpdate.encode(world.update(0), "fp32")).sign(world.identity(0))
    assert b"late" not in Envelope.from_bytes(signed.data).payload
    assert isinstance(open_claim(signed.data).value, Claim)


def test_a_contribution_keeps_its_own_work_apart_from_what_was_late(tmp_path: Path) -> None:
    world = World(tmp_path, values=100_000, wire="int8")
    missed = EncodedUpdate.encode(world.update(1), "int8")
    late = Leftover.of(Update(world.update(1), 100, 0, 10, 8), 1, "b" * 64, missed)
    update = Update(world.update(0), 150, 0, 10, 6)
    fresh = EncodedUpdate.encode(update.vector, "int8")
    wanted = (update.vector * 150 + missed.decode() * 50) / 200
    made = Contribution.make(update, world.spec, world.card.run, 2, "c" * 64, world.identity(0), late, 0.0)
    assert made.fresh.encoded.chunks == fresh.chunks and made.fresh.tokens == 150
    assert torch.allclose(made.encoded.decode(), wanted, atol=0.05)
    assert made.claim.flops == 10 and made.claim.worth == 200


def test_an_update_without_tokens_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    with pytest.raises(FormatError, match="without tokens"):
        Contribution.make(
            Update(world.update(0), 0, 0, 0, 0), world.spec, world.card.run, 1, "c" * 64, world.identity(0), None, 0.0
        )
