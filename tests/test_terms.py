"""What an owner is told before anything is downloaded: figures that follow from the run, in both languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.run_config import RunConfig
from peer.link.answers import RemoteFile, RunDescription
from peer.link.estimate import terms_of
from peer.screen.json_lines import JsonScreen
from peer.screen.terminal import TerminalScreen
from peer.screen.terms import JoinTerms
from protocol import canonical
from protocol.data_manifest import MAX_SHARD_BYTES
from protocol.invite import Invite
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.status import EvaluatedRound, LedgerStatus, PeerStatus, RunStatus
from tests.test_words import check_chinese

MILLION = 10**6
INVITE = Invite(addresses=("host.example:4700",), run="a" * 64, tls="b" * 64, root="c" * 64)


def description(kind: str = "lora", rounds: int = 100, **sync: Any) -> RunDescription:
    """A run over a model of 500 M parameters, in 2 GB, with 100 MB of data."""
    config = RunConfig.model_validate(
        {
            "run": {"name": "plays", "rounds": rounds},
            "model": {"path": "x", "license": "apache-2.0"},
            "data": {"path": "y", "license": "CC0-1.0", "kind": "chat"},
            "method": {"kind": kind},
            "sync": {"wire": "int8", "round_seconds": "auto"} | sync,
        }
    )
    spec = config.pin(
        model_digest="d" * 64,
        model_name="tiny-chat",
        parameters=500 * MILLION,
        trainable=10 * MILLION if kind == "lora" else 500 * MILLION,
        data_digest="e" * 64,
        data_size_bytes=100 * MILLION,
    )
    card = RunCard.model_construct(
        run=spec.digest, spec=spec, genesis="f" * 64, ledger_key="k", membership_key="0" * 64
    )
    genesis = (RemoteFile("model/weights.safetensors", "1" * 64, 40 * MILLION),)
    return RunDescription(card, b"", b"", genesis, (RemoteFile("model.safetensors", "2" * 64, 2000 * MILLION),))


def prepared(manifest_bytes: int) -> RunDescription:
    """The same run with data that were prepared."""
    run = description()
    data = {"digest": "e" * 64, "size_bytes": manifest_bytes, "sources": [{"name": "a", "license": "CC0-1.0"}]}
    value = run.card.spec.model_dump(mode="json") | {"data": data}
    card = run.card.model_copy(update={"spec": RunSpec.model_validate(value)})
    return run._replace(card=card)


def status(*at: tuple[int, float], **values: Any) -> RunStatus:
    evaluations = tuple(EvaluatedRound(round=round, held_out_loss=3.0, tokens=1, time=time) for round, time in at)
    now = {"round": at[-1][0] if at else 0} | values
    return RunStatus(
        name="plays",
        run="a" * 64,
        rounds=100,
        evaluations=evaluations,
        ledger=LedgerStatus(size=1, root="b" * 64),
        **now,
    )


def test_the_download_is_what_is_not_here_yet(tmp_path: Path) -> None:
    run = description()
    assert terms_of(INVITE, run, None, tmp_path).download_bytes == 2140 * MILLION
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.part").write_bytes(bytes(3 * MILLION))
    (tmp_path / "base-model").mkdir()
    (tmp_path / "base-model" / "model.safetensors").write_bytes(bytes(MILLION))
    here = terms_of(INVITE, run, None, tmp_path)
    assert (here.here_bytes, here.download_bytes) == (4 * MILLION, 2136 * MILLION)
    assert terms_of(INVITE, run, None, tmp_path, reduce_only=True).download_bytes == 40 * MILLION
    assert here.disk_bytes > 2140 * MILLION + 8 * 10 * MILLION, "states and what the optimizer remembers come to it"


def test_prepared_data_take_no_more_of_the_disk_than_there_are(tmp_path: Path) -> None:
    def cached(manifest_bytes: int, cache_bytes: int) -> int:
        without, with_cache = (
            terms_of(INVITE, prepared(manifest_bytes), None, tmp_path, cache_bytes=size).disk_bytes
            for size in (0, cache_bytes)
        )
        return with_cache - without

    assert cached(10_000, 5000 * MILLION) == 5000 * MILLION
    two = canonical.dumps([["e" * 64, 300 * MILLION, 1000, 10**6]] * 2)
    assert 2 * MAX_SHARD_BYTES <= cached(len(two), 5000 * MILLION) < 3 * MAX_SHARD_BYTES, "two shards and no more"


def test_traffic_and_length_follow_from_how_the_run_goes(tmp_path: Path) -> None:
    slow = terms_of(INVITE, description(), status((20, 1000.0), (30, 1600.0)), tmp_path)
    assert (slow.round_s, slow.left_s) == (60.0, 70 * 60.0)
    fast = terms_of(INVITE, description(), status((20, 1000.0), (30, 1100.0)), tmp_path)
    assert slow.traffic_bytes_per_hour is not None and fast.traffic_bytes_per_hour is not None
    assert 60 * 20 * MILLION < slow.traffic_bytes_per_hour < 60 * 21 * MILLION, "two updates of 10 MB a minute"
    assert fast.traffic_bytes_per_hour > 5 * slow.traffic_bytes_per_hour
    parts = terms_of(INVITE, description(fragments=5), status((20, 1000.0), (30, 1600.0)), tmp_path)
    assert parts.round_bytes == slow.round_bytes // 5


@pytest.mark.parametrize(
    ("sync", "now", "round_s"),
    [
        ({"round_seconds": "auto"}, None, None),
        ({"round_seconds": "auto"}, status((5, 100.0)), None),
        ({"round_seconds": "auto"}, status((5, 100.0), (5, 90.0)), None),
        ({"round_seconds": 30.0}, None, 30.0),
        ({"round_seconds": None, "round_tokens": 5000}, status(tokens_per_s=100.0), 50.0),
        ({"round_seconds": None, "round_tokens": 5000}, status(), None),
        ({"round_seconds": 30.0, "round_tokens": 5000}, status(tokens_per_s=100.0), 30.0),
    ],
)
def test_what_nobody_knows_is_not_made_up(
    sync: dict[str, Any], now: RunStatus | None, round_s: float | None, tmp_path: Path
) -> None:
    terms = terms_of(INVITE, description(**sync), now, tmp_path)
    assert terms.round_s == round_s
    assert (terms.traffic_bytes_per_hour is None) == (round_s is None)
    assert (terms.left_s is None) == (round_s is None or now is None)
    assert terms_of(INVITE, description(rounds=0, **sync), now, tmp_path).left_s is None


def test_who_only_reduces_sends_to_all(tmp_path: Path) -> None:
    peers = tuple(PeerStatus(peer_id=f"peer{number}", last_seen_s=1.0) for number in range(8))
    now = status((20, 1000.0), (30, 1600.0), peers=(*peers, PeerStatus(peer_id="gone")))
    member = terms_of(INVITE, description(), now, tmp_path)
    reducer = terms_of(INVITE, description(), now, tmp_path, reduce_only=True)
    assert member.members == 8
    assert reducer.round_bytes == 4 * member.round_bytes


def test_moments_in_8_bits_are_told_in_memory_and_on_disk(tmp_path: Path) -> None:
    run = description("full")
    plain, small = (terms_of(INVITE, run, None, tmp_path, moments=moments) for moments in ("fp32", "8bit"))
    saved = 5.96 * run.card.spec.model.trainable
    assert plain.memory_bytes - small.memory_bytes == pytest.approx(saved, rel=1e-6)
    assert plain.disk_bytes - small.disk_bytes == pytest.approx(saved, rel=1e-6)


def shown(terms: JoinTerms, language: str, capsys: pytest.CaptureFixture[str], **options: bool) -> str:
    screen = TerminalScreen(language, yes=True, **options)
    screen._console.width = 200
    assert screen.agree(terms)
    return capsys.readouterr().err


CASES = {
    "known": (description(), status((20, 1000.0), (30, 1600.0))),
    "unknown": (description("full", rounds=0), None),
    "new": (description("full"), status()),
}


@pytest.mark.parametrize("case", CASES)
def test_an_owner_reads_what_matters_and_no_jargon(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = terms_of(INVITE, *CASES[case], tmp_path)
    english = shown(terms, "en", capsys)
    for what in (
        "host.example:4700",
        "c" * 16,
        "licence apache-2.0",
        "licence CC0-1.0",
        "2.1 GB",
        "each way",
        "will last",
    ):
        assert what in english, what
    for what in ("to download", "disk needed", "memory needed", "traffic", "is sent", "never sent", "your files"):
        assert what in english, what
    assert not [word for word in ("diloco", "int8", "lora", "full", "spec", "auto") if word in english]
    assert "diloco" in shown(terms, "en", capsys, details=True)
    chinese = shown(terms, "zh", capsys)
    assert len(chinese.splitlines()) == len(english.splitlines())
    check_chinese(
        chinese.replace("plays", "")
        .replace("host.example", "")
        .replace("apache-2.0", "")
        .replace("MB", "")
        .replace("GB", "")
    )


def test_the_length_is_told_as_far_as_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {case: shown(terms_of(INVITE, *CASES[case], tmp_path), "en", capsys) for case in CASES}
    assert "about 1.2 h more, for 100 rounds in all (an estimate); it is at round 30 now" in said["known"]
    assert "until the host ends it" in said["unknown"]
    assert "100 rounds; it is at round 0 now" in said["new"]


def test_scripts_are_told_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terms = terms_of(INVITE, *CASES["known"], tmp_path)
    assert JsonScreen().agree(terms)
    told = json.loads(capsys.readouterr().out)
    assert told["download_bytes"] == terms.download_bytes and told["left_s"] == terms.left_s
    assert told["spec"]["sync"]["wire"] == "int8", "and the technical ones"
