"""A run that is over says so before anything is fetched; its checkpoint can be fetched; credit is the ledger's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import potluck
from peer.disk.outbox import Outbox
from peer.disk.own_identity import OwnIdentity
from peer.link.answers import Announcement
from peer.link.client import CoordinatorClient
from peer.link.notices import Notices
from peer.participation import PeerConfig
from peer.screen.json_lines import JsonScreen
from peer.stopping import OVER_S, Stopping
from peer.volunteer import Volunteer
from protocol.errors import InputError, NetworkError, RefusedError
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.leaving import LeaveSignals
from protocol.rpc import Twin, draw_session
from tests.kit.coordinator import Site, site_of, write_run


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A run that has had its two rounds, both published."""
    folder = tmp_path_factory.mktemp("over")
    with site_of(write_run(folder / "source", rounds=2, every=1), folder / "run") as site:
        for number in (1, 2):
            site.commit(seed=number)
            assert site.deliver(number).published
        assert site.host.wait(60)
        yield site


def join(site: Site, home: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What a peer that joins says."""
    capsys.readouterr()
    peer = Volunteer(site.host.invite, PeerConfig(home), JsonScreen(), LeaveSignals(lambda: None))
    assert peer.run()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def home_of(over: Site, index: int, home: Path) -> Path:
    """Make a home as one of its members has it; returns the run's folder."""
    (home / "identity").write_bytes(over.swarm.members[index].identity.to_bytes())
    folder = home / "runs" / over.host.invite.run[:16]
    (folder / "outbox").mkdir(parents=True)
    (folder / "run-card.json").write_bytes(b"it was here")
    return folder


def test_a_newcomer_is_told_before_it_agrees_to_anything_and_fetches_nothing(
    over: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = join(over, tmp_path, capsys)
    assert [event["event"] for event in events] == ["step", "over"]
    assert (events[1]["rounds"], events[1]["receipts"]) == (2, None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("identity", "lock")]


def test_a_member_that_comes_back_hands_in_what_waits_and_is_told_its_credit(
    over: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member, folder = over.swarm.members[1], home_of(over, 1, tmp_path)
    last = over.client.agreement(member.certificate)
    assert last is not None
    Outbox(folder / "outbox").put(2, last.to_bytes())
    credited, told = join(over, tmp_path, capsys)[-2:]
    assert (credited["event"], credited["tokens"], credited["rounds"]) == ("credited", 202, 2)
    assert told["event"] == "over" and Path(told["receipts"]) == folder / "receipts"
    assert len(list((folder / "receipts").glob("round-*.json"))) == 2
    assert not len(Outbox(folder / "outbox"))


def test_who_has_credit_and_no_copy_of_its_key_is_told_so_at_each_start_until_there_is_one(
    over: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = over.swarm.members[2]
    home_of(over, 2, tmp_path)
    for _ in range(2):
        reminded = [event for event in join(over, tmp_path, capsys) if event.get("key") == "identity-not-exported"]
        assert len(reminded) == 1
        assert f"potluck identity export FILE --home {tmp_path}" in reminded[0]["reason"]
    OwnIdentity(tmp_path).note_copy(member.peer_id)
    assert not [event for event in join(over, tmp_path, capsys) if event.get("key") == "identity-not-exported"]


def test_all_rounds_are_made_and_the_last_state_is_not_handed_in_only_who_has_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WentOn(Exception):
        pass

    def goes_on(*arguments: object, **options: object) -> None:
        raise WentOn

    monkeypatch.setattr(CoordinatorClient, "fetch_run_files", goes_on)
    with site_of(write_run(tmp_path / "source", rounds=2, every=2), tmp_path / "run") as site:
        site.commit(seed=1), site.commit(seed=2)
        assert not site.host.status().finished
        assert join(site, tmp_path / "new", capsys)[-1]["event"] == "over"
        states = tmp_path / "here" / "runs" / site.host.invite.run[:16] / "states"
        states.mkdir(parents=True)
        (states / "round-000001.json").touch()
        assert join(site, tmp_path / "here", capsys)[-1]["event"] == "over"
        (states / "round-000002.json").touch()
        with pytest.raises(WentOn):
            join(site, tmp_path / "here", capsys)


def test_the_status_of_a_run_that_is_over_says_so(over: Site) -> None:
    shown = CliRunner().invoke(potluck.app, ["status", str(over.host.invite)])
    assert "round 2 of 2" in shown.stdout and "this run is over" in shown.stdout


@pytest.mark.parametrize("chain", [False, True])
def test_the_newest_checkpoint_is_fetched_and_verified_by_whoever_has_the_invite(
    over: Site, tmp_path: Path, chain: bool
) -> None:
    arguments = ["fetch", str(over.host.invite), str(tmp_path / "here"), "--home", str(tmp_path / "home"), "--json"]
    done = CliRunner().invoke(potluck.app, arguments + (["--chain"] if chain else []))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["folder"], told["answer"]) == (str(tmp_path / "here" / "step-000002"), "verified")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == (
        ["rounds", "step-000000", "step-000001", "step-000002"] if chain else ["step-000002"]
    )
    alone = CliRunner().invoke(potluck.app, ["verify", told["folder"], "--home", str(tmp_path / "home")])
    assert alone.exit_code == (0 if chain else 3), "by the key that came with the invite, which is kept"


def test_a_run_that_has_published_nothing_says_so(tmp_path: Path) -> None:
    with site_of(write_run(tmp_path / "source"), tmp_path / "run") as site:
        done = CliRunner().invoke(potluck.app, ["fetch", str(site.host.invite), str(tmp_path), "--home", str(tmp_path)])
    assert isinstance(done.exception, InputError) and "no checkpoint yet" in done.exception.message


def test_a_peer_that_trains_while_the_run_ends_stops_but_not_before_the_others_can_have_handed_it_over() -> None:
    now, stop = [100.0], threading.Event()
    stopping = Stopping(stop, rounds=2, clock=lambda: now[0])
    all_made, finished = (Announcement((), "", 2, over, b"") for over in (False, True))
    stopping.heard(finished, round=1)
    assert not stop.is_set()
    now[0] += OVER_S
    stopping.heard(finished, round=2)
    assert not stop.is_set(), "it has made the last round itself"
    stopping.heard(all_made, round=1)
    assert not stop.is_set(), "the last state is not handed in yet: it may be about to fetch it"
    stopping.heard(finished, round=1)
    assert stop.is_set() and stopping.is_over and stopping.refusal is None


# ---- one identity on two computers -----------------------------------------------------------------------------------


def test_of_two_computers_with_one_identity_the_later_one_is_told_to_stop_and_the_first_hears_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with site_of(write_run(tmp_path / "source"), tmp_path / "run") as site:
        member = site.swarm.members[0]
        with CoordinatorClient(site.host.invite) as first, CoordinatorClient(site.host.invite) as copy:
            first.get_run(), copy.get_run()

            def told(client: CoordinatorClient, session: bytes) -> Twin:
                return client.announce(member.certificate, session=session).twin

            before, after, other = (draw_session(member.identity, site.host.invite.run) for _ in range(3))
            restarted = [told(first, before), told(first, after), told(first, after)]
            assert restarted == [Twin.NONE] * 3, "a restart is no copy"
            assert told(copy, other) is Twin.NONE, "it may be a restart, too"
            assert [told(first, after), told(copy, other)] == [Twin.CAME_LATER, Twin.CAME_FIRST]
            assert "two computers use this identity" in caplog.text


def test_who_has_only_seen_a_members_certificate_cannot_announce_as_that_member(tmp_path: Path) -> None:
    with site_of(write_run(tmp_path / "source"), tmp_path / "run") as site:
        victim, thief = site.swarm.members[:2]
        run = site.host.invite.run
        own, made_up = draw_session(victim.identity, run), draw_session(thief.identity, run)
        for session in (made_up, b"x" * len(own), b"short"):
            with pytest.raises((RefusedError, InputError)):
                site.client.announce(victim.certificate, session=session, leaving=True)
        assert site.client.announce(victim.certificate, session=own).twin is Twin.NONE
        for session in (made_up, b""):
            with pytest.raises(RefusedError):
                site.client.announce(victim.certificate, session=session, leaving=True)
        assert site.client.announce(victim.certificate, session=own).twin is Twin.NONE, "nobody made it a twin"


def test_the_later_one_stops_without_a_word_to_the_others_and_its_owner_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = (Announcement((), "", 0, False, b"", twin=twin) for twin in (Twin.CAME_LATER, Twin.CAME_FIRST))
    stopping, notices = Stopping(threading.Event(), rounds=0), Notices(JsonScreen().problem)
    stopping.heard(first, round=0), notices.twin(first.twin)
    assert "potluck identity new" in capsys.readouterr().out and stopping.refusal is None
    stopping.heard(second, round=0), notices.twin(second.twin)
    assert stopping.refusal is not None and not stopping.is_over and not capsys.readouterr().out


def test_a_new_identity_is_another_one_and_the_old_one_is_kept(tmp_path: Path) -> None:
    before = PeerIdentity.load_or_create(tmp_path / "identity").peer_id
    done = CliRunner().invoke(potluck.app, ["identity", "new", "--home", str(tmp_path)])
    assert done.exit_code == 0 and before not in done.stdout.splitlines()[-1]
    kept = tmp_path / f"identity.{before[-8:]}"
    assert PeerIdentity.load_or_create(kept).peer_id == before


# ---- what can be found before anything is fetched --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "announce", "error", "said"),
    [
        ("127.0.0.1:99999", None, InputError, "expected an address like"),
        ("localhost", None, InputError, "expected an address like"),
        ("127.0.0.1:0", "home.example", InputError, "needs a fixed port"),
        ("127.0.0.1:4790", "home example:4", InputError, "neither an address nor the name of a host"),
        ("192.0.2.1:4790", None, NetworkError, "cannot listen on 192.0.2.1:4790"),
    ],
)
def test_where_a_peer_cannot_listen_is_said_before_anything_is_loaded_or_asked(
    monkeypatch: pytest.MonkeyPatch, listen: str, announce: str | None, error: type[Exception], said: str
) -> None:
    invite = Invite(addresses=("127.0.0.1:1",), run="a" * 64, tls="b" * 64, root="c" * 64)
    monkeypatch.setattr("peer.screen.starting.starting", lambda *modules, quiet: pytest.fail("it went on"))
    options = ["--listen", listen] + (["--announce", announce] if announce else [])
    done = CliRunner().invoke(potluck.app, ["join", str(invite), *options])
    assert isinstance(done.exception, error) and said in done.exception.message  # type: ignore[attr-defined]
