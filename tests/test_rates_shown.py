"""The learning rates of the round, where people and scripts read them."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from coordinator import model_card
from coordinator.host_screen import run_view
from peer.limits.gate import Readings
from peer.link.client import CoordinatorClient
from peer.screen import messages
from peer.screen.json_lines import JsonScreen
from peer.screen.view import view
from peer.trainer import WorkReport
from peer.training.genesis import load_state
from potluck import app
from protocol.checkpoint import Evaluation
from protocol.invite import Invite
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.schedule import Rates
from protocol.status import LedgerStatus, RunStatus
from tests.kit.coordinator import Swarm, start_host, write_run
from tests.kit.standings import OnePeer, picture
from tests.test_schedule import scheduled
from tests.test_words import check_chinese

LEDGER = LedgerStatus(size=0, root="b" * 64)
STATUS = RunStatus(name="tiny", run="a" * 64, round=3, rounds=9, ledger=LEDGER, inner_lr=5e-05, outer_lr=0.7)


@pytest.mark.parametrize(
    ("language", "rates", "told"),
    [
        ("en", Rates(5e-05, 1.0), "5e-05, outer 1"),
        ("zh", Rates(5e-05, 0.7), "5e-05，外层 0.7"),
        ("en", Rates(None, 1.25e-4), "0.000125"),
        ("zh", Rates(None, 1.25e-4), "0.000125"),
    ],
)
def test_a_volunteer_reads_the_rates_of_the_round(language: str, rates: Rates, told: str) -> None:
    peer = OnePeer(Readings(now=datetime.datetime.now().astimezone()))
    peer.standing_now.working(WorkReport(3, 100, 10.0, 3.5, rates))
    (row,) = (
        row
        for row in picture(lambda: view(peer.status(), 100, 40, language, details=True), 100)
        if row.startswith(messages.text("rate", language))
    )
    assert row.endswith(f"  {told}")


def test_scripts_hear_of_them_with_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    JsonScreen().working(WorkReport(3, 100, 10.0, 3.5, Rates(5e-05, 0.7)))
    told = json.loads(capsys.readouterr().out)
    assert (told["round"], told["inner_lr"], told["outer_lr"]) == (3, 5e-05, 0.7)


def test_a_status_carries_them_and_an_older_one_has_none() -> None:
    assert RunStatus.from_bytes(STATUS.to_bytes()).rates == Rates(5e-05, 0.7)
    old = json.loads(STATUS.to_bytes())
    del old["inner_lr"], old["outer_lr"]
    assert RunStatus.from_bytes(json.dumps(old, separators=(",", ":"), sort_keys=True).encode()).rates is None


def test_the_host_s_screen_and_potluck_status_show_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for status, shown in ((STATUS, True), (STATUS.model_copy(update={"outer_lr": None}), False)):
        console = Console(width=200)
        console.print(run_view(status))
        assert ("learning rate 5e-05, outer 0.7" in capsys.readouterr().out) == shown
        monkeypatch.setattr(CoordinatorClient, "get_run", lambda client: None)
        monkeypatch.setattr(CoordinatorClient, "status", lambda client, status=status: status)
        invite = str(Invite(addresses=("127.0.0.1:1",), run="a" * 64, tls="b" * 64, root="c" * 64))
        done = CliRunner().invoke(app, ["status", invite, "--lang", "en"])
        assert ("learning rate 5e-05, outer 0.7" in done.output) == shown
        chinese = CliRunner().invoke(app, ["status", invite, "--lang", "zh"]).output
        assert ("学习率 5e-05，外层 0.7" in chinese) == shown
        check_chinese(chinese.replace("tiny", ""))


def test_a_host_says_the_rates_of_the_round_that_is_being_made_and_in_the_end_of_the_last(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source", rounds=3, every=3)
    text = config.read_text().replace("[publish]", "[inner]\nlr = 8e-4\nschedule = {warmup_rounds = 1}\n[publish]")
    config.write_text(text + '[outer]\nlr = 0.8\nschedule = {kind = "linear", min_factor = 0.5}\n')
    host = start_host(config, tmp_path / "run")
    try:
        seen = [host.status().rates]
        with CoordinatorClient(host.invite) as client:
            swarm = Swarm.joined(client, client.get_run(), load_state(host.folder / "checkpoints/step-000000/model"))
            for number in range(1, 4):
                client.report(swarm.members[0].certificate, swarm.round(seed=number).to_bytes())
                seen.append(host.status().rates)
    finally:
        host.stop()
    assert seen == [pytest.approx(rates) for rates in [(4e-4, 0.8), (8e-4, 0.6), (8e-4, 0.4), (8e-4, 0.4)]]


def card_of(spec: RunSpec, round: int) -> list[str]:
    """The rows of a model card that are about optimizers."""
    card = RunCard.model_construct(
        run=spec.digest, spec=spec, genesis="f" * 64, ledger_key="k", membership_key="0" * 64
    )
    evaluation = Evaluation(held_out_loss=3.0, sequences=1, tokens=1)
    text = model_card.readme(
        card,
        round_number=round,
        evaluation=evaluation,
        genesis_loss=None,
        contributors=(),
        parent=None,
        fingerprint="f",
    )
    return re.findall(r"^\| ((?:inner|outer) optimizer \| .*) \|$", text, re.MULTILINE)


def test_a_model_card_says_how_it_was_trained() -> None:
    wsd = {"kind": "wsd", "warmup_rounds": 2, "decay_rounds": 4, "min_factor": 0.25}
    assert card_of(scheduled(inner={"lr": 4e-4, "schedule": wsd}), 8) == [
        "inner optimizer | AdamW, learning rate 0.0004, wsd: 2 rounds of warm-up, the last 4 of 8 rounds fall to 0.25 "
        "of it; 0.0001 in this round",
        "outer optimizer | SGD, learning rate 1, constant; 1 in this round",
    ]
    free = scheduled(inner={"optimizer": "schedule-free-adamw", "schedule": {"warmup_rounds": 3}})
    assert "schedule-free AdamW, learning rate 0.0001, constant: 3 rounds of warm-up; 5e-05" in card_of(free, 2)[0]
    gradient = scheduled(sync={"method": "gradient"}, outer={"lr": 1e-4, "schedule": {"kind": "cosine"}})
    (row,) = card_of(gradient, 8)
    assert row.endswith("AdamW, learning rate 0.0001, cosine: falls to 0.1 of it until round 8; 1e-05 in this round")
    assert len(card_of(scheduled(), 0)) == 2, "at genesis, too"
