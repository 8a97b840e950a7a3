"""Schedules in run.toml and in the run spec: older specs keep their digests, and what does not fit a run is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from protocol.errors import RunSpecError
from protocol.run_spec import RunSpec
from protocol.schedule import Schedule
from tests.kit.builders import make_spec
from tests.test_run_spec import TOML, load
from tests.test_schedule import COSINE, scheduled


def test_a_spec_that_was_pinned_before_has_its_digest_and_a_constant_rate() -> None:
    data = (Path(__file__).parent / "vectors" / "run-spec.json").read_bytes()
    spec = RunSpec.from_bytes(data)
    assert spec.to_bytes() == data and b"schedule" not in data and b"optimizer" not in data
    assert {spec.rates(round) for round in (1, 7, 10**9)} == {(spec.inner.lr, spec.outer.lr)}


def test_a_schedule_is_pinned_whole_and_one_that_says_nothing_not_at_all(tmp_path: Path) -> None:
    spec = scheduled(inner={"schedule": COSINE})
    assert RunSpec.from_bytes(spec.to_bytes()) == spec and b'"kind":"cosine"' in spec.to_bytes()
    said = scheduled(inner={"optimizer": "adamw", "schedule": {"kind": "constant"}}, outer={"schedule": {}})
    assert said.digest == scheduled().digest
    text = TOML.replace('name = "tiny"', 'name = "tiny"\nrounds = 50')
    written = load(tmp_path, text + '[outer.schedule]\nkind = "wsd"\ndecay_rounds = 10\nwarmup_rounds = 5\n')
    assert written.outer.schedule == Schedule(kind="wsd", decay_rounds=10, warmup_rounds=5)


@pytest.mark.parametrize(
    ("rounds", "extra", "words"),
    [
        (0, "[inner]\nschedule = {kind = 'cosine'}", "inner.schedule: kind cosine falls until the run's last round"),
        (0, "[outer]\nschedule = {kind = 'linear'}", "outer.schedule: kind linear falls until the run's last round"),
        (0, "[outer]\nschedule = {kind = 'wsd', decay_rounds = 5}", "run.rounds = 0"),
        (9, "[inner]\nschedule = {kind = 'wsd', decay_rounds = 6, warmup_rounds = 3}", "more than the run's 9"),
        (9, "[inner]\nschedule = {kind = 'cosine', warmup_rounds = 8}", "8 rounds of warm-up"),
        (9, "[inner]\nschedule = {warmup_rounds = 9}", "9 rounds of warm-up"),
        (9, "[inner]\nschedule = {kind = 'wsd'}", "inner.schedule: kind wsd needs decay_rounds"),
        (9, "[inner]\nschedule = {kind = 'linear', decay_rounds = 2}", "no other kind has them"),
        (9, "[inner]\nschedule = {min_factor = 0.5}", "inner.schedule: min_factor goes with kind linear"),
        (9, "[inner]\nschedule = {kind = 'linear', min_factor = 0.0}", "inner.schedule.min_factor"),
        (9, "[inner]\nschedule = {kind = 'linear', min_factor = 1.5}", "inner.schedule.min_factor"),
        (9, "[inner]\nschedule = {kind = 'sine'}", "inner.schedule.kind"),
        (9, "[inner]\nschedule = {warmup_steps = 5}", "unknown key 'inner.schedule.warmup_steps'"),
        (9, "[inner]\nschedule = 'cosine'", "inner.schedule"),
        (9, "method = 'gradient'\n[inner]\nschedule = {kind = 'cosine'}", "go with method diloco; give outer.schedule"),
        (9, "method = 'gradient'\n[inner]\noptimizer = 'schedule-free-adamw'", "go with method diloco"),
        (9, "[inner]\noptimizer = 'schedule-free-adamw'\nschedule = {kind = 'cosine'}", "averages instead of a decay"),
        (9, "[inner]\noptimizer = 'schedule-free-adamw'\nbetas = [0.0, 0.99]", "needs betas with a first one above 0"),
        (9, "[inner]\noptimizer = 'adam'", "inner.optimizer"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_when_run_toml_is_read(
    tmp_path: Path, rounds: int, extra: str, words: str
) -> None:
    with pytest.raises(RunSpecError) as caught:
        load(tmp_path, TOML.replace('name = "tiny"', f'name = "tiny"\nrounds = {rounds}') + extra)
    assert words in caught.value.message


def test_a_pinned_spec_of_a_host_that_let_it_pass_is_refused_as_well() -> None:
    spec = make_spec()
    inner = spec.inner.model_copy(update={"schedule": Schedule(kind="cosine")})
    data = spec.model_copy(update={"inner": inner}).to_bytes()
    with pytest.raises(RunSpecError, match=r"run\.rounds = 0"):
        RunSpec.from_bytes(data)
    with pytest.raises(ValidationError):
        Schedule(kind="wsd")
