"""Late updates: what misses its round counts less in the next one, once, and then no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peer.round.actions import Commit
from peer.sync.contribution import Contribution, Leftover
from peer.sync.own_work import OwnWork
from peer.sync.shelf import Head, Shelf
from peer.training.codecs.codec import EncodedUpdate
from peer.training.state import SharedState
from peer.training.update import Update
from protocol.agreement import Agreement
from protocol.counting import weights
from protocol.envelope import Envelope
from protocol.errors import FormatError, VerificationError
from protocol.signed import Signed
from protocol.statements import Claim, Late, open_claim
from protocol.succession import Last, check_follows
from tests.swarm_kit import World, run
from tests.table_kit import Table

LATE = 2  # the index of the member that is late


class Desk:
    """One member's own work through rounds that others make; what is agreed on is made up."""

    def __init__(self, folder: Path, **sync: Any) -> None:
        self.world = World(folder, values=1000, min_peers=2, **sync)
        self.shelf = Shelf(Head(self.world.genesis))
        self.own = OwnWork(self.world.card, self.world.identity(LATE), self.shelf)

    @property
    def head(self) -> Head:
        return self.shelf.head

    def update(self, tokens: int = 200) -> Update:
        return Update(self.world.update(LATE, self.head.round + 1), tokens, 0, -(-tokens // 16), 1)

    async def hand_over(self, base: str = "", tokens: int = 200) -> Signed[Claim] | None:
        return await self.own.hand_over(self.update(tokens), base or self.head.digest)

    def round(self, *mine: Signed[Claim], is_late: bool = True, rounds: int = 1) -> Agreement:
        """The first two members make the next round, with this one's claim or without."""
        world, head, number = self.world, self.head, self.head.round + 1
        claims = []
        for index in range(2):
            encoded = EncodedUpdate.encode(world.update(index, number), "fp32")
            made = world.claim(index, encoded, round=number, base=head.digest, tokens=400, batches=25)
            claims.append(made.sign(world.identity(index)))
        values = torch.full((1000,), float(number))
        state = SharedState(number, head.state.names_shapes, values)
        agreement = world.agreement([*claims, *mine], state.digest, head.last)
        self.shelf.advance(Head(state, agreement))
        self.own.committed(Commit(agreement, bool(mine), 0, is_late and not mine, rounds, 0.0, 1, ()))
        return agreement


def test_work_that_missed_its_round_is_in_the_next_one_at_half_its_tokens(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    world, me = desk.world, desk.world.identity(LATE).peer_id

    async def main() -> None:
        assert await desk.hand_over() is not None
        first = desk.round()
        claim = await desk.hand_over()
        assert claim is not None and desk.own.ready is not None
        assert claim.value.late == Late(base=first.base, tokens=200, first_batch=0, batches=13)
        mixed = (world.update(LATE, 2) * 200 + world.update(LATE, 1) * 100) / 300
        assert torch.allclose(desk.own.ready.encoded.decode(), mixed, atol=1e-6)
        second = desk.round(claim)
        assert second.weights[me] == 300
        again = Agreement.from_bytes(second.to_bytes(), run=world.card.run, membership_key=world.card.member_key)
        check_follows(again, Last.of(first), world.spec)
        third = await desk.hand_over()
        assert third is not None and third.value.late is None, "it counts once"

    run(main())


def test_work_that_is_finished_after_its_round_is_kept_and_work_of_two_rounds_ago_is_not(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def main() -> None:
        base = desk.head.digest
        desk.round()
        assert await desk.hand_over(base) is None
        assert desk.own.waiting_tokens == 100
        desk.round()
        assert desk.own.waiting_tokens == 0, "the next round went by as well"
        assert await desk.hand_over(base) is None and desk.own.waiting_tokens == 0
        claim = await desk.hand_over()
        assert claim is not None and claim.value.late is None

    run(main())


def test_a_member_that_was_in_the_round_keeps_nothing_of_what_it_finishes_late(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def main() -> None:
        base = desk.head.digest
        claim = await desk.hand_over()
        assert claim is not None
        desk.round(claim)
        assert await desk.hand_over(base) is None and desk.own.waiting_tokens == 0

    run(main())


def test_work_for_rounds_that_were_undone_is_in_no_claim(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def main() -> None:
        earlier = [desk.round(), desk.round()]
        assert await desk.hand_over() is not None, "for round 3"
        desk.own.committed(Commit(earlier[0], False, 0, False, -1, 0.0, 1, ()))
        assert desk.own.waiting_tokens == 0

    run(main())


def test_who_misses_a_round_is_late_and_who_misses_several_at_once_is_not() -> None:
    table = Table("abl")
    late = table["l"]
    late.hand_over_s = 5.0  # longer than the others wait
    table.agree(2)
    assert (late.commits[0].counted, late.commits[0].is_late) == (False, True)
    assert table["a"].commits[0].counted and not table["a"].commits[0].is_late
    late.kill()
    table.agree(5)
    late.start()
    table.until(lambda: late.round >= 5)
    assert late.commits[1].rounds > 1 and not late.commits[1].is_late


# ---- what others believe ---------------------------------------------------------------------------------------------


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
    terms = world.terms(last=Last(1, world.genesis.digest, {me: 5} if previous else {"other": 9}, base="b" * 64))
    late = Late(**({"base": "b" * 64, "tokens": 100, "first_batch": 0, "batches": 10} | changes))
    claim = world.claim(0, EncodedUpdate.encode(world.update(0), "fp32"), round=2, late=late).sign(world.identity(0))
    if not reason:
        terms.check_claim(claim)
        made = claim.value
        assert made.worth == made.tokens + 50 and weights({me: made.worth}, terms.last) == {me: made.worth}
        return
    with pytest.raises(VerificationError, match=reason):
        terms.check_claim(claim)


def test_a_claim_without_late_work_is_signed_as_it_always_was(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    signed = world.claim(0, EncodedUpdate.encode(world.update(0), "fp32")).sign(world.identity(0))
    assert b"late" not in Envelope.from_bytes(signed.data, Claim.max_bytes).payload
    assert isinstance(open_claim(signed.data).value, Claim)


# ---- the contribution ------------------------------------------------------------------------------------------------


def test_a_contribution_keeps_its_own_work_apart_from_what_was_late(tmp_path: Path) -> None:
    world = World(tmp_path, values=100_000, wire="int8")
    missed = EncodedUpdate.encode(world.update(1), "int8")
    late = Leftover.of(Update(world.update(1), 100, 0, 10, 8), 1, "b" * 64, missed)
    update = Update(world.update(0), 150, 0, 10, 6)
    fresh = EncodedUpdate.encode(update.vector, "int8")
    wanted = (update.vector * 150 + missed.decode() * 50) / 200
    made = Contribution.make(update, world.spec, world.card.run, 2, "c" * 64, world.identity(0), (late,), 0.0)
    assert made.fresh.encoded is not None and made.fresh.encoded.chunks == fresh.chunks and made.fresh.tokens == 150
    assert torch.allclose(made.encoded.decode(), wanted, atol=0.05)
    assert made.claim.value.flops == 10 and made.claim.value.worth == 200


def test_an_update_without_tokens_is_refused(tmp_path: Path) -> None:
    world, nothing = World(tmp_path, values=1000), Update(torch.zeros(1000), 0, 0, 0, 0)
    with pytest.raises(FormatError, match="without tokens"):
        Contribution.make(nothing, world.spec, world.card.run, 1, "c" * 64, world.identity(0), (), 0.0)
