"""A host that has members measure: it publishes by their word, and holds no model; or by its own, when none answers."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator import evaluator, publisher
from coordinator.host import Host
from lab.processes import eventually
from peer.measuring import Measuring
from peer.training.data import load_dataset
from peer.training.evaluate import held_out_loss
from peer.training.model import TrainableModel, load_trainable
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol import checkpoint
from protocol.errors import InputError
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.verify import verify_checkpoint
from tests.kit.coordinator import Site, site_of, write_run

AT_ONCE = "evaluation_minutes = 1e-6"


class Kept(dict[str, SharedState]):
    """The states of a member."""

    def load(self, digest: str) -> SharedState:
        if digest not in self:
            raise InputError("not kept any more")
        return self[digest]


def member(site: Site, identity: PeerIdentity, states: Kept) -> tuple[Measuring, LocalWork]:
    """A member that trains, in the middle of its work."""
    spec, genesis = site.swarm.spec, site.folder / "checkpoints" / "step-000000" / "model"
    model = load_trainable(spec, genesis)
    work = LocalWork(model, load_dataset(spec, model.tokenizer, site.folder.parent / "text.txt"), spec, "anyone")
    work.begin(site.swarm.state)
    work.step()
    return Measuring(work, states, identity, lambda key: None), work


def asked_for(site: Site, token: str, state: SharedState) -> str:
    """What the host asks a member about when the state has been given to it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = site.client.announce(token, states=[state.digest], tokens_per_s=1.0)
        if answer.want_loss:
            return answer.want_loss
        giver = site.swarm.members[0].certificate
        if site.client.announce(giver, states=[state.digest]).want_state:
            site.client.upload_state(giver, state.manifest(), map(state.chunk, range(state.chunk_count)))
        time.sleep(0.05)
    raise AssertionError("no held-out loss was asked for")


def test_a_host_publishes_by_the_word_of_a_member_that_it_named_and_holds_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for that word, however late it is, since it was told to measure nothing itself."""
    ann, loads = PeerIdentity.generate(), []
    host = f'evaluators = ["{ann.peer_id}"]\nevaluate_on = "none"\n{AT_ONCE}'
    with site_of(write_run(tmp_path, rounds=1, every=1, host=host), tmp_path / "run") as site:
        monkeypatch.setattr(evaluator, "load_trainable", lambda *_: loads.append(1))
        token, state, stranger = site.client.enroll(ann).certificate, site.commit(1), site.swarm.members[0].certificate
        measuring, work = member(site, ann, Kept({state.digest: state}))
        measuring.asked(asked_for(site, token, state))
        eventually(lambda: "the checkpoint of round 1 waits" in caplog.text)
        before = work.model.flat_N.clone()
        assert measuring.between_rounds(lambda: False) and not measuring.between_rounds(lambda: False), "once"
        assert torch.equal(work.model.flat_N, before), "its own work goes on where it was"
        said = measuring.measured()
        assert said is not None and measuring.measured() is None
        assert "not named" in site.client.report_loss(stranger, said).reason
        assert site.client.report_loss(token, said).accepted
        assert site.host.wait(60) and loads == []
        folder = site.folder
    step = folder / "checkpoints" / "step-000001"
    model = load_trainable(site.swarm.spec, step / "model")
    assert torch.equal(model.read(), state.parameters)
    found = checkpoint.read_info(step).evaluation
    assert found.held_out_loss == pytest.approx(held_out_loss(model, work.dataset).loss, rel=1e-6)
    trusted = {fingerprint(load_public_pem((folder / "coordinator.pub").read_bytes()))}
    report = verify_checkpoint(step, trusted=trusted, checkpoints_dir=folder / "checkpoints")
    assert report.ok and f"measured by member {ann.peer_id}, whom the host named" in report.to_text()
    assert f"measured by member `{ann.peer_id}`" in (step / "model" / "README.md").read_text()


def test_what_nobody_measures_waits_and_a_later_round_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "FALL_BACK_S", 0.0)
    ann = PeerIdentity.generate()
    host = f'evaluators = ["{ann.peer_id}"]\nevaluate_on = "none"\n{AT_ONCE}'
    with site_of(write_run(tmp_path, rounds=2, every=1, host=host), tmp_path / "run") as site:
        token, first = site.client.enroll(ann).certificate, site.commit(1)
        assert asked_for(site, token, first) == first.digest, "and no answer comes"
        second = site.commit(2)
        assert asked_for(site, token, second) == second.digest
        assert not (site.folder / "incoming" / first.digest).exists() and not site.host.status().finished
        measuring, _ = member(site, ann, Kept({second.digest: second}))
        measuring.asked(second.digest)
        measuring.between_rounds(lambda: False)
        assert site.client.report_loss(token, measuring.measured() or b"").accepted
        assert site.host.wait(60)
        assert [item.round for item in site.host.status().checkpoints] == [0, 2]


def test_a_host_measures_where_it_was_told_when_no_named_member_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def load(*arguments: Any) -> TrainableModel:
        devices.append(arguments[-1])
        return load_trainable(*arguments[:-1])

    monkeypatch.setattr(evaluator, "load_trainable", load)
    host = f'evaluators = ["{PeerIdentity.generate().peer_id}"]\nevaluate_on = "cpu:0"\n{AT_ONCE}'
    config = write_run(tmp_path, rounds=1, every=1, host=host)
    with site_of(config, tmp_path / "run") as site:
        swarm = site.swarm
    assert devices == ["cpu:0"], "the genesis"
    with site_of(config, tmp_path / "run", swarm) as site:
        site.commit(1)
        assert site.deliver(1).published and devices == ["cpu:0", "cpu:0"]
    assert checkpoint.read_info(tmp_path / "run" / "checkpoints" / "step-000001").evaluation.measured is None


def test_a_member_answers_again_what_was_lost_and_nothing_that_it_cannot_stand_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with site_of(write_run(tmp_path, rounds=1), tmp_path / "run") as site:
        good, bad = site.swarm.next_state(1), site.swarm.next_state(2)
        bad.parameters[0] = float("nan")
        measuring, _ = member(site, PeerIdentity.generate(), Kept({good.digest: good, "bad": bad}))
    measuring.asked("")
    assert not measuring.between_rounds(lambda: False)
    measuring.asked("gone")
    assert measuring.between_rounds(lambda: False) and measuring.measured() is None
    measuring.asked("bad")
    measuring.between_rounds(lambda: False)
    measuring.asked("bad")
    assert measuring.measured() is None and "of round 1 is nan" in caplog.text
    measuring.asked(good.digest)
    assert measuring.between_rounds(lambda: True) and measuring.measured() is None, "its owner wants to stop"
    assert measuring.between_rounds(lambda: False)
    said = measuring.measured()
    measuring.asked(good.digest)
    assert not measuring.between_rounds(lambda: False) and said is not None and measuring.measured() == said
    measuring.asked(good.digest)
    measuring.asked("")
    assert measuring.measured() is None, "nobody waits for it any more"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('evaluate_on = "cuda:7"', "evaluate_on = cuda:7: "),
        ('evaluate_on = "toaster"', "evaluate_on = toaster: "),
        ('evaluate_on = "none"', "nobody would measure"),
        ('evaluators = ["me"]', "host.evaluators"),
    ],
)
def test_what_cannot_evaluate_is_told_in_one_line_and_nothing_is_built(tmp_path: Path, line: str, why: str) -> None:
    config = write_run(tmp_path / "source", host=line)
    with pytest.raises(InputError, match=why) as refused:
        Host(config, tmp_path / "run", rendezvous=False).start()
    assert "\n" not in refused.value.message and not (tmp_path / "run").exists()


def test_the_command_line_wins_over_run_toml(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source", host='evaluate_on = "cpu"')
    with pytest.raises(InputError, match="evaluate_on = cuda:7"):
        Host(config, tmp_path / "run", rendezvous=False, evaluate_on="cuda:7").start()
