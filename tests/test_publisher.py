"""Published checkpoints: signed, entered and verified; a worse one is held back; a kill leaves nothing half done."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import potluck
from coordinator import publisher
from coordinator.evaluator import Evaluator
from coordinator.host_screen import HostScreen, run_view
from lab.processes import eventually
from peer.training.genesis import load_state
from peer.training.state import SharedState
from protocol import checkpoint
from protocol.checkpoint import Evaluation
from protocol.errors import InputError, PartFailed
from protocol.keys import fingerprint, load_public_pem
from protocol.status import Alarm, CheckpointStatus, RunStatus, alarm_of
from protocol.succession import Last
from protocol.verify import verify_checkpoint
from tests.kit.coordinator import site_of, start_host, write_run


def potluck_verify(folder: Path, round_number: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    step = folder / "checkpoints" / checkpoint.step_name(round_number)
    command = [sys.executable, "-m", "potluck", "verify", step, "--key", folder / "coordinator.pub", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)


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
        assert site.host.wait(60) and site.client.announce(site.swarm.members[0].certificate).finished
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
        site.swarm.last, site.swarm.state = Last.of(agreement), better
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
        assert site.deliver(5).published and site.host.wait(60)
        assert [item.round for item in site.host.status().checkpoints] == [0, 4, 5]
        folder = site.folder
    assert verified(folder, 4) and verified(folder, 5)


def test_the_last_state_is_taken_while_an_earlier_one_is_still_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members leave a minute after the last round; an evaluation may take longer."""
    begun, go_on, evaluate = threading.Event(), threading.Event(), Evaluator.evaluate

    def slow(evaluator: Evaluator) -> Evaluation:
        begun.set()
        assert go_on.wait(60)
        return evaluate(evaluator)

    with site_of(write_run(tmp_path / "source", rounds=3, every=1), tmp_path / "run") as site:
        monkeypatch.setattr(Evaluator, "evaluate", slow)
        site.commit(1)
        eventually(lambda: site.upload_wanted() == 1)
        assert begun.wait(60)
        site.commit(2)
        assert site.upload_wanted() is None, "that of a round between can wait"
        site.commit(3)
        assert site.upload_wanted() == 3
        assert site.upload_wanted() is None, "it is here"
        del site.swarm.states[3]
        go_on.set()
        assert site.deliver(2).published
        assert site.host.wait(60), "nobody had it any more, and the host had kept it"
        assert [item.round for item in site.host.status().checkpoints] == [0, 1, 2, 3]
        assert not (site.folder / "incoming").exists()


def test_all_that_is_published_is_whole_also_after_a_restart(tmp_path: Path) -> None:
    """Every second round, and the last one, which is none; the host's rounds/ are lost in between."""
    config, folder = write_run(tmp_path / "source", rounds=5, every=2), tmp_path / "run"
    with site_of(config, folder) as site:
        for number in (1, 2, 3):
            site.commit(number)
        assert site.deliver(2).published
        swarm = site.swarm
    assert verified(folder, 2) and verified(folder, 0)
    shutil.rmtree(folder / "checkpoints" / "rounds")
    assert potluck_verify(folder, 2).returncode == 3
    with site_of(config, folder, swarm) as site:
        assert potluck_verify(folder, 2).returncode == 0, "the next start publishes them again"
        for number in (4, 5):
            site.commit(number)
        assert site.deliver(4).published and site.deliver(5).published
        invite = site.host.invite
        done = potluck_verify(folder, 5, "--newest-by", invite)
        assert done.returncode == 0 and "the newest that the coordinator has published" in done.stdout, done.stdout
        done = potluck_verify(folder, 2, "--newest-by", invite)
        newest = checkpoint.payload_digest(folder / "checkpoints" / "step-000005")
        said = f"outdated: there is a newer one: round 5, payload {newest}"
        assert (done.returncode, done.stdout.splitlines()[-1]) == (4, said), done.stderr
    assert sorted(path.name for path in (folder / "checkpoints" / "rounds").iterdir()) == [
        checkpoint.round_name(number) for number in range(1, 6)
    ]
    assert [potluck_verify(folder, number).returncode for number in (0, 2, 4, 5)] == [0, 0, 0, 0]
    done = potluck_verify(folder, 5, "--newest-by", invite)
    assert done.returncode == 3 and "the coordinator could not be asked" in done.stdout, "it has gone"


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
        assert site.host.wait(60), "the run ends all the same"


def test_another_run_may_start_from_a_checkpoint_that_came_alone(tmp_path: Path) -> None:
    """Its spec pins the weights; how the first run came to them is no promise of the second."""
    with site_of(write_run(tmp_path / "source", rounds=1, every=1), tmp_path / "run") as site:
        state = site.commit(1)
        assert site.deliver(1).published
        key = site.host.invite.root
    config = write_run(tmp_path / "second")
    shutil.copytree(tmp_path / "run" / "checkpoints" / "step-000001", config.parent / "step-000001")
    config.write_text(config.read_text().replace('path = "model"', f'checkpoint = "step-000001"\nkey = "{key}"', 1))
    with site_of(config, tmp_path / "run-2") as second:
        assert torch.equal(second.swarm.state.parameters, state.parameters)


class Killed(SystemExit):
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
            monkeypatch.setattr(checkpoint, "write_log_proof", kill)

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


def test_a_run_that_stays_worse_than_its_last_checkpoint_is_said_so_until_it_is_not(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write_run(tmp_path / "source", rounds=4, every=1, max_worse=0.05)
    with site_of(config, tmp_path / "run") as site:
        before, member = site.swarm.state, site.swarm.members[0]
        site.commit(1, scale=3.0)
        assert not site.deliver(1).published and site.host.status().alarm is None, "one may be a bad moment"
        assert site.client.announce(member.certificate).alarm is None
        site.commit(2)
        assert not site.deliver(2).published
        status = site.host.status()
        assert status.alarm is not None and RunStatus.from_bytes(status.to_bytes()).alarm == status.alarm
        assert (status.alarm.round, status.alarm.published_round, status.alarm.held_back) == (2, 0, 2)
        first, worse = status.alarm.published_loss, status.alarm.held_out_loss
        assert first is not None and worse is not None and worse > first + 0.05
        assert site.client.announce(member.certificate).alarm == status.alarm
        loud = [record for record in caplog.records if "the run is getting worse" in record.getMessage()]
        assert [record.levelno for record in loud] == [logging.WARNING] and "step-000000/model" in caplog.text
        said = CliRunner().invoke(potluck.app, ["status", str(site.host.invite)])
        assert f"ALARM: {status.alarm}" in said.stdout
        monkeypatch.setenv("COLUMNS", "200")
        screen = HostScreen(as_json=False)
        screen.status(status)
        screen.status(status)
        assert capsys.readouterr().err.count(f"ALARM: {status.alarm}") == 1
        assert str(status.alarm) in "".join(str(part) for part in run_view(status).renderables)
        better = SharedState(3, before.names_shapes, before.parameters + 1e-4)
        site.client.report(member.certificate, site.swarm.agree(better.digest, site.swarm.members).to_bytes())
        site.swarm.states[3] = better
        assert site.deliver(3).published
        assert site.host.status().alarm is None and site.client.announce(member.certificate).alarm is None


def test_two_checkpoints_held_back_in_a_row_are_an_alarm_and_a_status_from_before_there_was_one_is_read() -> None:
    def decided(*published: bool) -> list[CheckpointStatus]:
        return [CheckpointStatus(round=10 * i, held_out_loss=3.0 + i, published=p) for i, p in enumerate(published)]

    assert alarm_of([]) is None and alarm_of(decided(True, False)) is None
    assert alarm_of(decided(True, False, False, True)) is None
    alarm = alarm_of(decided(True, True, False, False, False))
    assert alarm == Alarm(round=40, held_out_loss=7.0, published_round=10, published_loss=4.0, held_back=3)
    lost = alarm_of([*decided(True, False), CheckpointStatus(round=20, published=False, reason="not finite")])
    assert lost is not None and lost.held_out_loss is None and "NaN at round 20" in str(lost)
    old = b'{"ledger":{"root":"%s","size":0},"name":"old","run":"%s"}' % (b"b" * 64, b"a" * 64)
    assert RunStatus.from_bytes(old).alarm is None
