"""The attackers of `scripts/bench attackers` do what they say, and nothing in their form gives them away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.attack_rows import Row
from lab.attack_scenarios import AUDITED, SCENARIOS, Scenario, Terms, play
from lab.attackers import ATTACKS, LONGER, MADE_UP_TOKENS, MORE, TOLD_TOKENS, environment, install
from lab.small_community import real_inputs
from lab.training_fixtures import Bench
from lab.warm_start import WarmStart
from peer import participation
from peer.limits.watch import Gate
from peer.net.opening import Opening
from peer.round import group as groups
from peer.sync.contribution import Contribution
from peer.training.codecs.codec import CHUNK_VALUES, verify_chunk
from peer.training.state import SharedState
from peer.training.update import Update
from peer.training.work import LocalWork
from protocol import certificate
from protocol.errors import FormatError, VerificationError
from protocol.keys import PeerIdentity
from protocol.statements import Claim, open_claim
from protocol.succession import Last
from tests.kit.builders import fixed_ed25519

ME = PeerIdentity(fixed_ed25519("attacker"))
WIRES = ("fp32", "fp16", "int8", "int4", "int2", "topk")


@pytest.fixture
def bench(tmp_path: Path, glass_dir: Path, plays: Path) -> Bench:
    return Bench(tmp_path, glass_dir, plays, sync={"wire": "int4"})


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this process an attacker until the test is over."""

    def patch(attack: str) -> None:
        for patch in ATTACKS[attack]():
            monkeypatch.setattr(*patch)

    return patch


def update_of(bench: Bench) -> Update:
    """One micro-batch of work."""
    work = bench.work(ME.peer_id)
    work.step()
    return work.finish()


def contribution_of(bench: Bench, update: Update) -> Contribution:
    spec, base = bench.spec, bench.genesis.digest
    return Contribution.make(update, spec, spec.digest, 1, base, ME, (), 0.0)


def claim_of(bench: Bench) -> tuple[Claim, Contribution]:
    """What the others read of it, once the signature is checked."""
    made = contribution_of(bench, update_of(bench))
    signed = open_claim(made.claim.data)
    peer_id, claim = signed.by, signed.value
    assert peer_id == ME.peer_id
    return claim, made


def check(bench: Bench, made: Contribution) -> None:
    """As each member of its group does."""
    key, spec = fixed_ed25519("membership"), bench.spec
    token = certificate.issue(key, run=spec.digest, peer_id=ME.peer_id, lifetime_s=3600)
    opening = Opening(spec.digest, key.public_key())
    claim = opening.statement(Claim, made.claim.data)
    opening.member_is(token, claim.by)
    last = Last(0, bench.genesis.digest)
    groups.Terms(spec.digest, spec, spec.model.trainable, CHUNK_VALUES, last).check_claim(claim)


def test_negated_update_points_the_other_way_and_is_ten_times_as_long(
    bench: Bench, become: Callable[[str], None]
) -> None:
    honest = update_of(bench)
    become("negated-x10")
    hostile = update_of(bench)
    assert honest.vector.any() and hostile.vector.equal(-LONGER * honest.vector)
    assert (hostile.tokens, hostile.batches, hostile.flops) == (honest.tokens, honest.batches, honest.flops)
    check(bench, contribution_of(bench, hostile))


def test_noise_is_ten_times_as_long_as_the_work_and_the_same_each_time(
    bench: Bench, become: Callable[[str], None]
) -> None:
    honest = update_of(bench)
    become("noise-x10")
    hostile = update_of(bench)
    assert hostile.vector.norm().item() == pytest.approx(LONGER * honest.vector.norm().item(), rel=1e-5)
    assert abs(torch.cosine_similarity(hostile.vector, honest.vector, dim=0)) < 0.05
    assert torch.cosine_similarity(hostile.vector, update_of(bench).vector, dim=0) > 0.9999
    check(bench, contribution_of(bench, hostile))


def test_attacker_that_changes_its_update_begins_each_round_at_the_agreed_state(
    bench: Bench, become: Callable[[str], None]
) -> None:
    become("negated-x10")
    work = bench.work(ME.peer_id)
    work.step()
    sent = contribution_of(bench, work.finish()).encoded
    agreed = SharedState(1, bench.genesis.names_shapes, bench.genesis.parameters - 0.01)
    work.rebase(agreed, sent)
    assert work.model.read().equal(agreed.parameters) and work.tokens == 0


def test_claim_of_a_hundred_times_the_tokens_is_well_formed_and_does_not_fit_its_batches(
    bench: Bench, become: Callable[[str], None]
) -> None:
    honest, _ = claim_of(bench)
    become("tokens-x100")
    claim, made = claim_of(bench)
    assert (claim.tokens, claim.batches) == (MORE * honest.tokens, honest.batches)
    assert claim.update == honest.update, "its work is honest"
    with pytest.raises(VerificationError, match="more than fit"):
        check(bench, made)


def test_claim_of_a_hundred_times_the_batches_fits_by_its_form(bench: Bench, become: Callable[[str], None]) -> None:
    honest, _ = claim_of(bench)
    become("batches-x100")
    claim, made = claim_of(bench)
    assert (claim.tokens, claim.batches) == (MORE * honest.tokens, MORE * honest.batches)
    assert claim.tokens <= claim.batches * bench.spec.data.sequence_length
    assert claim.update == honest.update, "its work is honest"
    check(bench, made)


@pytest.mark.parametrize("wire", WIRES)
def test_nan_is_what_its_claim_binds_and_each_reducer_refuses_it(
    tmp_path: Path, glass_dir: Path, plays: Path, become: Callable[[str], None], wire: str
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"wire": wire})
    become("nan")
    claim, made = claim_of(bench)
    check(bench, made)
    assert claim.update.root == made.encoded.root
    for index, chunk in enumerate(made.encoded.chunks):
        with pytest.raises(FormatError):  # and not that it is another part than was claimed
            verify_chunk(claim.update, index, chunk, made.encoded.proof(index))


def test_idle_member_watches_until_the_end_and_never_works(become: Callable[[str], None]) -> None:
    become("idle")
    looked = []

    class Swarm:
        """Two looks, and the run is over."""

        @property
        def head(self) -> Any:
            looked.append(True)
            return type("Head", (), {"round": len(looked)})

        def check(self) -> None: ...

    work = object()  # has no step to be called
    participation.train(Swarm(), work, 3, threading.Event(), object(), Gate())  # type: ignore[arg-type]
    assert len(looked) == 3


def test_made_up_claim_costs_no_work_and_its_update_is_zero(bench: Bench, become: Callable[[str], None]) -> None:
    become("claim-and-die")
    work = bench.work(ME.peer_id)
    before = work.model.read().clone()
    assert work.step().tokens == 0
    assert work.model.read().equal(before), "a step changed the model"
    assert work.tokens == TOLD_TOKENS
    made = contribution_of(bench, work.finish())
    assert made.claim.value.tokens == MADE_UP_TOKENS
    assert not made.encoded.decode().any()
    check(bench, made)


def test_process_without_an_attack_in_its_environment_is_honest() -> None:
    before = dict(vars(LocalWork))
    install({"POTLUCK_HOME": "/nowhere"})
    assert dict(vars(LocalWork)) == before


def test_attack_that_nobody_has_written_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="negated, negated-x10, noise"):
        environment("negated-x3")


def test_each_row_of_the_table_has_an_attack_that_exists_and_each_attack_a_row() -> None:
    assert {scenario.attack for scenario in (*SCENARIOS, *AUDITED)} - {""} == set(ATTACKS)


# ---- with real processes ---------------------------------------------------------------------------------------------

TERMS = Terms(round_tokens=24_000)  # half of the bench's


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Scenario], Row]]:
    """Plays a row."""
    inputs = real_inputs(tmp_path_factory.mktemp("inputs"))
    with WarmStart() as starter:
        yield lambda scenario: play(scenario, tmp_path_factory.mktemp("row"), inputs, starter, TERMS)


@pytest.fixture(scope="module")
def clean(table: Callable[[Scenario], Row]) -> Row:
    return table(SCENARIOS[0])


@pytest.mark.slow
@pytest.mark.swarm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", SCENARIOS[1:], ids=lambda scenario: scenario.name)
def test_run_goes_on_and_loses_little_by_an_attacker(
    clean: Row, table: Callable[[Scenario], Row], scenario: Scenario
) -> None:
    row = table(scenario)
    print("\n" + Row.header() + "\n" + row.to_markdown(clean))
    assert row.one_state
    assert (row.rounds, row.ended) == (TERMS.rounds, "all rounds")
    assert row.loss <= 1.1 * clean.loss
    assert all(share < 1 / 2 for share in row.shares.values())
