"""Work that is done once more from what its author reveals: honest claims are near, others far, in each kind of run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import Bench
from peer.sync.contribution import Contribution
from peer.training.codecs.codec import EncodedUpdate
from peer.training.inner_optimizer import InnerAdamW
from peer.training.own_state import OwnState
from peer.training.replay import Before, Revealed, replay
from peer.training.reveal import head_of, pieces_of, read_revealed, size_of
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol import audit
from protocol.errors import FormatError, InputError, VerificationError
from protocol.keys import PeerIdentity
from protocol.reveal import RevealHead
from protocol.statements import Jump, Start

INNER = {"lr": 2e-3, "micro_batch": 4, "batch": 4}
AUDITED: dict[str, Any] = {"audit": {"share": 0.1}, "inner": INNER}
KINDS: dict[str, dict[str, Any]] = {
    "gradient by fp16": {"sync": {"method": "gradient", "wire": "fp16"}},
    "gradient by int4": {"sync": {"method": "gradient", "wire": "int4"}},
    "gradient by topk": {"sync": {"method": "gradient", "wire": "topk"}},
    "steps by fp32": {"sync": {"wire": "fp32"}},
    "steps by int8": {"sync": {"wire": "int8"}},
    "steps by int4": {"sync": {"wire": "int4"}},
    "fragments by int2": {"sync": {"wire": "int2", "fragments": 3}},
    "schedule-free by int4": {"sync": {"wire": "int4"}, "inner": INNER | {"optimizer": "schedule-free-adamw"}},
    "overlap by int4": {"sync": {"wire": "int4", "overlap": True}},
    "overlap of fragments by int2": {"sync": {"wire": "int2", "fragments": 3, "overlap": True}},
    "overlap of schedule-free by int2": {
        "sync": {"wire": "int2", "overlap": True},
        "inner": INNER | {"optimizer": "schedule-free-adamw"},
    },
    "lora by int2": {"sync": {"wire": "int2"}, "method": {"kind": "lora", "rank": 4}},
}
STEPS = 5  # and a part of one, in a round
AHEAD = 10  # sequences, two steps and a half, where rounds overlap


class Member:
    """One member alone, round after round: what it has is the run's next state."""

    def __init__(self, bench: Bench, **options: Any) -> None:
        self.bench, self.identity = bench, PeerIdentity.generate()
        self.work = LocalWork(bench.model(), bench.dataset, bench.spec, self.identity.peer_id, **options)
        self.base = bench.genesis
        self.own: OwnState | None = None
        self.before: Before | None = None  # where the work in hand began, if it was begun before its base was there
        self.work.go_on_from(self.base, None)

    def round(self) -> Revealed:
        """One round's work, as its author would reveal it."""
        work, spec, start = self.work, self.bench.spec, self.own
        batches = STEPS * spec.inner.batch + 2
        while work.sequences < batches:
            work.step(batches - work.sequences)
        made, before = self._made(start), self.before
        assert made.own is not None
        if (trajectory := made.claim.value.trajectory) is None or trajectory.start is None or not trajectory.start.jump:
            before = None  # it began on the base
        self.own = made.own
        if spec.sync.overlap:
            self.before = Before(self.base, made.encoded)
            work.carry_on()
            while work.sequences < AHEAD:
                work.step(AHEAD - work.sequences)
        decoded, base = made.encoded.decode(), self.base
        after = base.parameters.clone()
        after[spec.sync.fragment(base.round + 1, len(after))] -= decoded * (
            0.1 if spec.sync.method == "gradient" else 1.0
        )
        self.base = SharedState(base.round + 1, base.names_shapes, after)
        self.work.rebase(self.base, made.encoded)
        return Revealed(made.claim.value, self.identity.peer_id, base, start, made.own, made.encoded, before)

    def _made(self, start: OwnState | None) -> Contribution:
        update, base = self.work.finish(), self.base
        feedback = start.left.clone() if start is not None and start.left is not None else None
        jump = None
        if update.jump:
            assert update.jump == AHEAD and self.before is not None
            jump = Jump(after=AHEAD, base=self.before.base.digest, update=self.before.update.digest)
        began = Start(round=base.round, own=start.digest, jump=jump) if start is not None else None
        arguments = (self.bench.spec, "ab" * 32, base.round + 1, base.digest, self.identity, (), 0.0)
        if self.bench.spec.sync.method == "diloco":
            feedback = None
        return Contribution.make(update, *arguments, feedback, began)


@pytest.fixture(scope="module", params=KINDS)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, glass_dir: Path, plays: Path
) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("replayed")
    yield Bench(folder, glass_dir, plays, base=glass_dir, **AUDITED | KINDS[request.param])


def distances(bench: Bench, revealed: Revealed) -> dict[str, float]:
    return replay(bench.model(), bench.dataset, bench.spec, revealed)


def judged(bench: Bench, revealed: Revealed) -> bool:
    """Whether it passes, by the rule that coordinator, ledger audit and evidence share."""
    assert revealed.claim.trajectory is not None
    return audit.passes(audit.in_ppm(distances(bench, revealed)), audit.limit(revealed.claim.trajectory))


def lies(member: Member, claimed: Revealed, **changes: Any) -> Revealed:
    """The claim with something else in it."""
    return replace(claimed, claim=claimed.claim.model_copy(update=changes))


@pytest.mark.parametrize("options", [{}, {"wanted": "bf16"}], ids=["fp32", "bf16"])
def test_honest_work_is_near_its_replay_in_each_round_of_a_chain(bench: Bench, options: dict[str, Any]) -> None:
    member, before = Member(bench, **options), None
    for _ in range(3):
        revealed = member.round()
        trajectory = revealed.claim.trajectory
        began = trajectory.start.own if trajectory is not None and trajectory.start is not None else None
        assert began == (before.digest if before is not None else None)
        assert judged(bench, revealed)
        before = revealed.end


def test_a_device_that_takes_fewer_sequences_at_once_passes_too(bench: Bench) -> None:
    member = Member(bench)
    member.round()
    revealed = member.round()
    small = bench.spec.model_copy(update={"inner": bench.spec.inner.model_copy(update={"micro_batch": 2})})
    found = replay(bench.model(), bench.dataset, small, revealed)
    assert found["update"] < 1e-3
    assert audit.passes(audit.in_ppm(found), audit.LIMITS_PPM["fp32"])


def test_work_that_was_not_done_as_claimed_is_far_away(bench: Bench) -> None:
    """More claimed than was done; another's draws; another round's; from another base; an update made larger."""
    member = Member(bench)
    member.round()
    revealed = member.round()
    claim = revealed.claim
    more = claim.batches + bench.spec.inner.batch
    assert not judged(bench, lies(member, revealed, batches=more))
    tokens = claim.tokens * more // claim.batches
    assert not judged(bench, lies(member, revealed, batches=more, tokens=tokens))
    assert not judged(bench, replace(revealed, by=PeerIdentity.generate().peer_id))
    assert not judged(bench, replace(revealed, base=replace_round(revealed.base, 7)))
    assert not judged(bench, replace(revealed, base=perturbed(revealed.base)))
    larger = EncodedUpdate.encode(revealed.update.decode() * 1.5, revealed.update.codec)
    assert not judged(bench, replace(revealed, update=larger))
    nothing = EncodedUpdate.encode(torch.zeros(revealed.update.values), revealed.update.codec)
    assert not judged(bench, replace(revealed, update=nothing))


def test_a_made_up_own_state_spares_no_work(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    """Moments beside which gradients do not count: where they lead is known without any work, and is where a replay is.

    What the work has added to them is lost beside them in fp32, to the bit, so such moments are refused as they are.
    """
    bench = Bench(tmp_path, glass_dir, plays, base=glass_dir, **AUDITED | KINDS["steps by fp32"])
    member = Member(bench)
    member.round()
    revealed = member.round()
    start, count = revealed.start, len(revealed.base.parameters)
    assert start is not None
    m = 1e6 * torch.randn(count, generator=torch.Generator().manual_seed(1))
    made_up = OwnState(start.numbers, {"exp_avg": m, "exp_avg_sq": torch.full((count,), 1e12)})
    idle, lr = bench.model(), bench.spec.rates(revealed.claim.round).inner
    assert lr is not None
    idle.write(revealed.base.parameters)
    optimizer = InnerAdamW(bench.spec.inner, idle.flat_N, idle.gradient_N)
    optimizer.take(made_up.numbers, made_up.vectors)
    for _ in range(int(start.numbers["steps"]), int(revealed.end.numbers["steps"])):
        optimizer.step(1.0, lr, revealed.claim.round)  # on a gradient of zero: nothing was trained on
    update = EncodedUpdate.encode(revealed.base.parameters - idle.read(), "fp32")
    found = distances(bench, replace(revealed, start=made_up, end=optimizer.remembered(), update=update))
    assert found["update"] < 1e-3, "it is where a replay leads"
    assert not audit.passes(audit.in_ppm(found), audit.LIMITS_PPM["bf16"])


def test_an_update_is_not_made_good_by_what_is_said_to_be_left_of_it(bench: Bench) -> None:
    """Another vector in the update, and its opposite in what was left out: together they are the honest work."""
    member = Member(bench)
    member.round()
    revealed = member.round()
    decoded, end = revealed.update.decode(), revealed.end
    noise = torch.randn(len(decoded), generator=torch.Generator().manual_seed(1))
    poison = EncodedUpdate.encode(decoded + 0.5 * noise * decoded.norm() / noise.norm(), revealed.update.codec)
    left = end.left.clone() if end.left is not None else torch.zeros(len(revealed.base.parameters))
    left[bench.spec.sync.fragment(revealed.claim.round, len(left))] += decoded - poison.decode()
    lie = replace(revealed, update=poison, end=end.with_left(left))
    if end.left is None:
        with pytest.raises(FormatError, match="an own state of"):
            judged(bench, lie)
    else:
        assert not judged(bench, lie)


def test_an_own_state_has_all_that_there_is_to_compare(bench: Bench) -> None:
    member = Member(bench)
    member.round()
    revealed = member.round()
    for missing in revealed.end.vectors:
        fewer = {name: vector for name, vector in revealed.end.vectors.items() if name != missing}
        with pytest.raises(FormatError, match="an own state of"):
            judged(bench, replace(revealed, end=OwnState(revealed.end.numbers, fewer)))
    start = revealed.start
    assert start is not None
    for numbers in ({"steps": "1e5"}, {"steps": "-3"}, {"steps": "9" * 40}, {"steps": "."}, {}):
        if start.numbers:
            with pytest.raises(FormatError, match=r"held otherwise|no numbers"):
                judged(bench, replace(revealed, start=OwnState(numbers, start.vectors)))


def test_a_reveal_is_read_only_if_it_is_what_the_claim_names(bench: Bench, tmp_path: Path) -> None:
    member = Member(bench)
    member.round()
    revealed = member.round()
    head = RevealHead.from_bytes(head_of(revealed).to_bytes(), revealed.claim)
    data = b"".join(pieces_of(revealed))
    assert len(data) == size_of(head, revealed.claim)
    path = tmp_path / "reveal.bin"
    path.write_bytes(data)
    again = read_revealed(head, path, revealed.claim, revealed.by)
    assert again.update.chunks == revealed.update.chunks and again.end.digest == revealed.end.digest
    assert judged(bench, again)
    places = [0, len(data) // 2, len(data) - 1]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((VerificationError, FormatError)):
            read_revealed(head, path, revealed.claim, revealed.by)
    for wrong in (data[:-1], data + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(FormatError, match="bytes, got"):
            read_revealed(head, path, revealed.claim, revealed.by)
    other = member.round()
    with pytest.raises(VerificationError, match="not what the claim names"):
        RevealHead.from_bytes(head_of(other).to_bytes(), revealed.claim)
    for garbage in (b"", b"{}", b"[]", b"\xff" * 50, head_of(revealed).to_bytes()[:-1]):
        with pytest.raises(FormatError):
            RevealHead.from_bytes(garbage, revealed.claim)


def replace_round(state: SharedState, round: int) -> SharedState:
    return SharedState(round, state.names_shapes, state.parameters)


def perturbed(state: SharedState) -> SharedState:
    noise = torch.randn(len(state.parameters), generator=torch.Generator().manual_seed(1))
    return SharedState(state.round, state.names_shapes, state.parameters + 0.05 * noise)


def test_work_goes_on_from_what_was_agreed_over_a_round_that_was_missed_and_a_restart(
    bench: Bench, tmp_path: Path
) -> None:
    member = Member(bench)
    member.round()
    kept, base = member.own, member.base
    assert kept is not None
    member.work.step()  # of a round that goes on without it
    kept.save(tmp_path / "own")
    loaded = OwnState.load(tmp_path / "own", kept.digest)
    for work in (member.work, LocalWork(bench.model(), bench.dataset, bench.spec, member.identity.peer_id)):
        work.go_on_from(base, loaded)
        member.work = work
        member.own, member.base = kept, base
        assert judged(bench, member.round())
    (tmp_path / "own").write_bytes((tmp_path / "own").read_bytes()[:-1])
    with pytest.raises(FormatError, match="damaged"):
        OwnState.load(tmp_path / "own", kept.digest)
    with pytest.raises(InputError, match="no such file"):
        OwnState.load(tmp_path / "none", kept.digest)
