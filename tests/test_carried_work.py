"""Where work is audited, a member's rounds hang together: each begins where its last agreed one ended, and replays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lab.training_fixtures import Bench
from peer.disk.peer_folder import PeerFolder
from peer.disk.shown_work import ShownWork
from peer.round.actions import Commit
from peer.sync.own_work import OwnWork
from peer.sync.shelf import Head, Shelf
from peer.training.replay import replay
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol import audit, note
from protocol.agreement import Agreement, Counts, group_digest
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard
from protocol.signed import Signed
from protocol.statements import Claim, Trajectory, Vote
from tests.kit.builders import fixed_ed25519

KINDS: dict[str, dict[str, Any]] = {
    "steps by fp32": {"sync": {"wire": "fp32"}},
    "steps by int4": {"sync": {"wire": "int4"}},
    "fragments by int2": {"sync": {"wire": "int2", "fragments": 2}},
    "overlap by int4": {"sync": {"wire": "int4", "overlap": True}},
    "overlap of fragments by int2": {"sync": {"wire": "int2", "fragments": 2, "overlap": True}},
    "gradient by int4": {"sync": {"method": "gradient", "wire": "int4"}},
}
AHEAD = 6  # sequences that are done before the next base, where rounds overlap


class Member:
    """One member between its trainer and the core, whose part is played here: another one is in all rounds, too."""

    def __init__(self, folder: Path, bench: Bench) -> None:
        self.bench, self.me, self.other = bench, PeerIdentity.generate(), PeerIdentity.generate()
        self.folder = PeerFolder(folder, bench.spec.digest)
        ledger, key = fixed_ed25519("ledger"), fixed_ed25519("membership")
        self.card = RunCard(
            run=bench.spec.digest,
            spec=bench.spec,
            genesis=bench.genesis.digest,
            ledger_key=note.verifier_key(note.origin("test", bench.spec.digest), ledger.public_key()),
            membership_key=key.public_key().public_bytes_raw().hex(),
            audit_chain="a" * 64,
        )
        self.states = {bench.genesis.digest: bench.genesis}
        self.shelf = Shelf(Head(bench.genesis))
        self.restart()

    def restart(self) -> None:
        """All but the disk is gone."""
        self.shown = ShownWork(self.folder, self.states.__getitem__)
        self.shelf = Shelf(self.shelf.head)
        self.own = OwnWork(self.card, self.me, self.shelf, self.shown)
        self.work = LocalWork(self.bench.model(), self.bench.dataset, self.bench.spec, self.me.peer_id)

    async def round(self, *, counted: bool = True) -> Signed[Claim]:
        """One round, with this member's work in it or not."""
        head = self.shelf.head
        self.own.begin(self.work, head)
        while self.work.sequences < 10:
            self.work.step(10 - self.work.sequences)
        claim = await self.own.hand_over(self.work.finish(), head.digest)
        assert claim is not None and self.own.ready is not None
        if self.bench.spec.sync.overlap:
            self.work.carry_on()
            while self.work.sequences < AHEAD:
                self.work.step(AHEAD - self.work.sequences)
        after = head.state.parameters.clone()
        step = self.own.ready.encoded.decode() * (0.1 if self.bench.spec.sync.method == "gradient" else 1.0)
        after[self.bench.spec.sync.fragment(head.round + 1, len(after))] -= step if counted else 0.5 * step
        state = SharedState(head.round + 1, head.state.names_shapes, after)
        self.commit(state, claim if counted else None)
        await asyncio.sleep(0.05)  # for the note on the disk
        return claim

    def commit(self, state: SharedState, claim: Signed[Claim] | None) -> None:
        head = self.shelf.head
        said = {"first_batch": 0, "batches": 4, "tokens": 10, "flops": 0, "round": state.round, "base": head.digest}
        assert self.own.ready is not None
        others = Claim(
            run=self.card.run,
            update=self.own.ready.encoded.digest,
            trajectory=Trajectory(precision="fp32", end="0" * 64),
            **said,
        ).sign(self.other)
        claims = (others,) if claim is None else (others, claim)
        vote = Vote(
            run=self.card.run,
            round=state.round,
            attempt=0,
            group=group_digest(claims),
            base=head.digest,
            state=state.digest,
        ).sign(self.other)
        agreement = Agreement(claims, (vote,), {}, Counts({made.by: made.value.tokens for made in claims}))
        self.states[state.digest] = state
        self.shelf.advance(Head(state, agreement))
        self.own.committed(Commit(agreement, claim is not None, 0, True, 1, 0.0, 1, ()))

    def replays(self, claim: Signed[Claim]) -> bool:
        trajectory = claim.value.trajectory
        assert trajectory is not None
        revealed = self.shown.reveal(claim.digest)
        found = replay(self.bench.model(), self.bench.dataset, self.bench.spec, revealed)
        return audit.passes(audit.in_ppm(found), audit.limit(trajectory))


def jumps(claim: Signed[Claim]) -> bool:
    """Whether its work began before its base was agreed."""
    start = claim.value.trajectory.start if claim.value.trajectory is not None else None
    return start is not None and start.jump is not None


def ends(claim: Signed[Claim]) -> tuple[str | None, str]:
    trajectory = claim.value.trajectory
    assert trajectory is not None
    return trajectory.start.own if trajectory.start is not None else None, trajectory.end


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_hang_together_over_a_missed_one_and_a_restart(
    tmp_path: Path, glass_dir: Path, plays: Path, kind: str
) -> None:
    member = Member(tmp_path / "home", Bench(tmp_path, glass_dir, plays, audit={"share": 0.1}, **KINDS[kind]))

    async def main() -> None:
        first, second = await member.round(), await member.round()
        missed = await member.round(counted=False)
        third = await member.round()
        assert not member.own.waiting_tokens, "what missed its round is dropped"
        assert ends(first)[0] is None and ends(second)[0] == ends(first)[1]
        assert ends(missed)[0] == ends(third)[0] == ends(second)[1]
        member.restart()
        fourth = await member.round()
        assert ends(fourth)[0] == ends(third)[1]
        assert fourth.value.late is None and third.value.late is None
        claims = (first, second, missed, third, fourth)
        ahead = member.bench.spec.sync.overlap
        assert list(map(jumps, claims)) == [False, ahead, ahead, False, False]
        assert all(map(member.replays, claims))
        audit.check_start(second.value, first.value, 0)
        audit.check_start(fourth.value, third.value, 0)

    asyncio.run(main())
    member.folder.close()


def test_what_cannot_be_kept_is_not_claimed(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Member(tmp_path / "home", Bench(tmp_path, glass_dir, plays, audit={"share": 0.1}))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShownWork, "keep", full)

    async def main() -> None:
        member.own.begin(member.work, member.shelf.head)
        member.work.step()
        assert await member.own.hand_over(member.work.finish(), member.shelf.head.digest) is None
        assert member.own.ready is None

    asyncio.run(main())
    member.folder.close()
