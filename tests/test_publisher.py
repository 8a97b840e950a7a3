"""Published checkpoints: signed, entered and verified; a worse one is held back; a kill leaves nothing half done."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from coordinator_kit import Swarm, start_host, write_run

from coordinator import publisher
from coordinator.checkpoints import Checkpoints
from coordinator.host import Host
from peer.coordinator_client import CoordinatorClient
from peer.training.genesis import load_state
from peer.training.state import SharedState
from protocol import checkpoint
from protocol.errors import InputError, PartFailed
from protocol.keys import fingerprint, load_public_pem
from protocol.status import CheckpointStatus
from protocol.verify import verify_checkpoint


@dataclass
class Site:
    host: Host
    client: CoordinatorClient
    swarm: Swarm

    @property
    def folder(self) -> Path:
        return self.host.folder

    def commit(self, seed: int, scale: float = 0.001) -> SharedState:
        agreement = self.swarm.round(seed=seed, scale=scale)
        assert self.client.report(self.swarm.members[0].certificate, agreement.to_bytes()).accepted
        return self.swarm.state

    def deliver(self, round_number: int) -> CheckpointStatus:
        """Announce as a peer does, upload what is wanted, and wait until the checkpoint of a round is decided."""
        member = self.swarm.members[0]
        offered = {state.digest: state for state in self.swarm.states.values()}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for item in self.host.status().checkpoints:
                if item.round == round_number:
                    return item
            if wanted := self.client.announce(member.certificate, states=offered).want_state:
                state = offered[wanted]
                pieces = (state.chunk(index) for index in range(state.chunk_count))
                self.client.upload_state(member.certificate, state.manifest(), pieces)
            time.sleep(0.05)
        raise AssertionError(f"no checkpoint of round {round_number}")


@contextmanager
def site_of(config: Path, folder: Path, swarm: Swarm | None = None) -> Iterator[Site]:
    host = start_host(config, folder)
    try:
        with CoordinatorClient(host.invite) as client:
            if swarm is None:
                genesis = load_state(folder / "checkpoints" / "step-000000" / "model")
                swarm = Swarm.joined(client, client.get_run(), genesis)
            yield Site(host, client, swarm)
    finally:
        host.stop()


def verified(folder: Path, round_number: int) -> bool:
    checkpoints = folder / "checkpoints"
    root = (folder / "coordinator.pub").read_bytes()
    trusted = {fingerprint(load_public_pem(root))}
    report = verify_checkpoint(
        checkpoints / checkpoint.step_name(round_number), trusted=trusted, checkpoints_dir=checkpoints
    )
    assert report.ok, report.to_text()
    return report.ok


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_checkpoint_is_signed_linked_and_loads_by_itself(tmp_path: Path, lora: bool) -> None:
    with site_of(write_run(tmp_path / "source", rounds=2, every=1, lora=lora), tmp_path / "run") as site:
        for number in (1, 2):
            state = site.commit(number)
            assert site.deliver(number).published
        assert site.host.wait(10) and site.client.announce(site.swarm.members[0].certificate).finished
        folder = site.folder
    assert all(verified(folder, number) for number in (0, 1, 2))
    model = folder / "checkpoints" / "step-000002" / "model"
    assert torch.equal(load_state(model).parameters, state.parameters)
    info = checkpoint.read_info(model.parent)
    assert [item.rounds for item in info.contributors] == [2, 2, 2]
    card = (model / "README.md").read_text()
    assert all(member.peer_id in card for member in site.swarm.members) and "CC0-1.0" in card
    assert (model / "base-model-LICENSE").read_text() == "as free as air\n"
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")] == []
    assert not (folder / "incoming").exists()


def test_stock_tool_verifies_a_checkpoint_and_refuses_a_changed_copy(tmp_path: Path) -> None:
    with site_of(write_run(tmp_path / "source"), tmp_path / "run") as site:
        genesis, key = site.folder / "checkpoints" / "step-000000", site.folder / "coordinator.pub"
    copy = tmp_path / "copy"
    shutil.copytree(genesis, copy)
    weights = copy / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert stock_verdict(genesis, key) == 0
    assert stock_verdict(copy, key) != 0


def stock_verdict(step: Path, key: Path) -> int:
    command = [sys.executable, "-m", "model_signing", "verify", "key", "model", "--signature", "model.sig"]
    command += ["--public_key", str(key), "--no-ignore-git-paths"]
    return subprocess.run(command, cwd=step, capture_output=True, timeout=60).returncode


def test_checkpoint_that_is_clearly_worse_is_held_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write_run(tmp_path / "source", rounds=3, every=1, max_worse=0.05)
    with site_of(config, tmp_path / "run") as site:
        before = site.swarm.state
        site.commit(1, scale=3.0)
        held = site.deliver(1)
        assert not held.published and "worse by more than" in held.reason and held.folder == ""
        assert "held back" in caplog.text
        better = SharedState(2, before.names_shapes, before.parameters + 1e-4)
        agreement = site.swarm.agree(better.digest, site.swarm.members)
        site.client.report(site.swarm.members[0].certificate, agreement.to_bytes())
        site.swarm.previous, site.swarm.state = dict(agreement.weights), better
        site.swarm.states[2] = better
        assert site.deliver(2).published
        folder = site.folder
    info = checkpoint.read_info(folder / "checkpoints" / "step-000002")
    assert info.parent == checkpoint.payload_digest(folder / "checkpoints" / "step-000000")
    assert verified(folder, 2) and not (folder / "checkpoints" / "step-000001").exists()


def test_later_state_will_do_when_nobody_has_the_one_that_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the coordinator was away for longer than peers keep a state."""
    monkeypatch.setattr(publisher, "FALL_BACK_S", 0.0)
    with site_of(write_run(tmp_path / "source", rounds=5, every=2), tmp_path / "run") as site:
        for number in range(1, 6):
            site.commit(number)
        for lost in (1, 2, 3, 5):
            del site.swarm.states[lost]
        assert site.deliver(4).published and not site.host.status().finished
        site.swarm.states[5] = site.swarm.state
        assert site.deliver(5).published and site.host.wait(10)
        assert [item.round for item in site.host.status().checkpoints] == [0, 4, 5]
        folder = site.folder
    assert verified(folder, 4) and verified(folder, 5)


def test_agreed_state_that_is_not_finite_is_held_back(tmp_path: Path) -> None:
    """The members' signatures do not make a broken model a good one."""
    with site_of(write_run(tmp_path / "source", rounds=1, every=1), tmp_path / "run") as site:
        state = site.swarm.next_state(1)
        state.parameters[3] = float("nan")
        agreement = site.swarm.agree(state.digest, site.swarm.members)
        assert site.client.report(site.swarm.members[0].certificate, agreement.to_bytes()).accepted
        site.swarm.states[1] = state
        held = site.deliver(1)
        assert not held.published and "not finite" in held.reason
        assert site.host.wait(10), "the run ends all the same"


class Killed(BaseException):
    """Stands for a SIGKILL at one exact point."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the publisher's, which is killed
@pytest.mark.parametrize("point", ["before the ledger", "after the ledger"])
@pytest.mark.parametrize("when", ["genesis", "later"])
def test_kill_while_publishing_is_made_good_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, when: str
) -> None:
    config, folder = write_run(tmp_path / "source", rounds=1, every=1), tmp_path / "run"

    def kill(*_: object, **__: object) -> None:
        raise Killed

    def arm() -> None:
        if point == "before the ledger":
            monkeypatch.setattr(checkpoint, "entry", kill)
        else:
            monkeypatch.setattr(Checkpoints, "_finish", kill)

    swarm = None
    if when == "genesis":
        arm()
        with pytest.raises(Killed):
            start_host(config, folder)
        assert not (folder / "checkpoints" / "step-000000").exists()
    else:
        with site_of(config, folder) as site:
            arm()
            site.commit(1)
            member, state = site.swarm.members[0], site.swarm.state
            while not site.client.announce(member.certificate, states=[state.digest]).want_state:
                time.sleep(0.05)
            site.client.upload_state(member.certificate, state.manifest(), [state.chunk(0)])
            deadline = time.monotonic() + 60
            with pytest.raises(PartFailed, match="publisher, has stopped: Killed"):
                while time.monotonic() < deadline:
                    site.host.wait(timeout_s=0.1)
            swarm = site.swarm
    monkeypatch.undo()
    with site_of(config, folder, swarm) as site:
        if when == "genesis":
            site.commit(1)
        assert site.deliver(1).published
        assert [item.round for item in site.host.status().checkpoints] == [0, 1]
    assert verified(folder, 0) and verified(folder, 1)
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_missing_genesis_folder_is_said_plainly(tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    with site_of(config, folder):
        pass
    shutil.rmtree(folder / "checkpoints" / "step-000000")
    with pytest.raises(InputError, match="its folder is gone") as caught:
        start_host(config, folder)
    assert "backup" in caught.value.hint


def test_changed_genesis_is_not_served(tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    with site_of(config, folder):
        pass
    (folder / "checkpoints" / "step-000000" / "model" / "LICENSE").write_text("mine, all mine\n")
    with pytest.raises(InputError, match="LICENSE: changed since it was signed"):
        start_host(config, folder)
