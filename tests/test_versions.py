"""An older Potluck meets a newer run, and the other way round: who must upgrade is said before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import coordinator.service
from coordinator.service import CoordinatorService, Desks
from peer.disk.peer_folder import PeerFolder
from peer.link.client import CoordinatorClient
from peer.link.newcomer import Newcomer
from peer.screen.json_lines import JsonScreen
from protocol import coordinator_pb2, envelope, words
from protocol.errors import CoordinatorAway, FormatError, PotluckError, RefusedError, UnsupportedError
from protocol.installed import this_installation
from protocol.keys import PeerIdentity, RootKey, fingerprint, public_pem
from protocol.release import this_release
from protocol.rpc import SWARM_VERSION
from protocol.run_card import RUN_CARD_TYPE, RunCard
from tests.kit.builders import make_spec
from tests.kit.command_line import an_invite
from tests.test_words import check_chinese

ROOT = RootKey(ec.generate_private_key(ec.SECP256R1()))
SPEC = make_spec()
CARD = RunCard(run=SPEC.digest, spec=SPEC, genesis="f" * 64, ledger_key="k", membership_key="0" * 64)


class FakeHost:
    """In place of the connection to a host: it describes its run, and notes what else it is asked for."""

    def __init__(self, version: int, release: str, card: dict[str, Any]) -> None:
        self.asked: list[str] = []
        self._reply = coordinator_pb2.GetRunReply(
            run_card=envelope.sign(card, RUN_CARD_TYPE, ROOT).to_bytes(),
            root_public_key=public_pem(ROOT.public_key),
            version=version,
            release=release,
        )

    def call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        self.asked.append(method)
        if method == "GetRun":
            return self._reply
        raise CoordinatorAway(f"{method} is not answered here")


def met(
    folder: Path,
    *,
    version: int = SWARM_VERSION,
    release: str = "potluck 9.9.9, commit ab12cd34ab12",
    agreeing: bool = False,
    **of_spec: Any,
) -> tuple[PotluckError, list[str]]:
    """What a newcomer is told by such a run, and what it asked for before."""
    spec = SPEC.model_dump(mode="json")
    spec = {name: spec[name] | of_spec.get(name, {}) if isinstance(spec[name], dict) else spec[name] for name in spec}
    host = FakeHost(version, release, CARD.model_dump(mode="json") | {"spec": spec})
    invite = an_invite("127.0.0.1:1", root=fingerprint(ROOT.public_key), run=SPEC.digest)
    client = CoordinatorClient(invite)
    client.connection = host  # type: ignore[assignment]
    peer_folder = PeerFolder(folder, invite.run)
    newcomer = Newcomer(invite, client, PeerIdentity.generate(), peer_folder, Agrees())
    try:
        with pytest.raises(PotluckError) as caught:
            newcomer.agree() if agreeing else newcomer.admit()
    finally:
        peer_folder.close()
    return caught.value, host.asked


class Agrees(JsonScreen):
    def problem(self, key: str, **values: str) -> None:
        """It is told to wait: this run is one to join."""
        raise Waits(values["reason"])


class Waits(PotluckError):
    """The newcomer went on past the description."""


def test_an_older_potluck_is_told_to_upgrade_before_anything_else(tmp_path: Path) -> None:
    error, asked = met(tmp_path, version=SWARM_VERSION + 1)
    assert isinstance(error, RefusedError) and asked == ["GetRun"]
    assert error.message == (
        "this run needs a newer Potluck: its host has potluck 9.9.9, commit ab12cd34ab12 "
        f"(protocol {SWARM_VERSION + 1}), this is {this_release()} (protocol {SWARM_VERSION})"
    )
    assert error.hint == this_installation().upgrade("peer")
    check_chinese(words.told(error.message, "zh").replace("Potluck", "").replace("commit", "").replace("checkout", ""))


@pytest.mark.parametrize("version", [SWARM_VERSION - 1, SWARM_VERSION + 1])
def test_no_service_is_agreed_to_that_could_not_take_part(version: int, tmp_path: Path) -> None:
    error, asked = met(tmp_path, version=version, agreeing=True)
    assert isinstance(error, RefusedError) and asked == ["GetRun"]


def test_a_newer_potluck_is_told_that_the_host_must_upgrade(tmp_path: Path) -> None:
    error, asked = met(tmp_path, version=SWARM_VERSION - 1)
    assert isinstance(error, RefusedError) and asked == ["GetRun"]
    assert error.message.startswith("this run's host must upgrade its Potluck: it has potluck 9.9.9")
    assert "ask the host to upgrade" in error.hint


@pytest.mark.parametrize("version", [0, SWARM_VERSION])
def test_those_that_speak_alike_go_on(version: int, tmp_path: Path) -> None:
    error, asked = met(tmp_path, version=version, release="")
    assert isinstance(error, Waits) and asked == ["GetRun", "GetStatus", "GetChallenge"]


def test_what_a_host_calls_its_release_stays_short(tmp_path: Path) -> None:
    error, _ = met(tmp_path, version=SWARM_VERSION + 1, release="x" * 10_000)
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("of_spec", "key"),
    [
        ({"inner": {"warmth": 3}}, "spec.inner.warmth"),
        ({"inner": {"optimizer": "muon"}}, "spec.inner.optimizer"),
        ({"sync": {"rules": 4}}, "spec.sync.rules"),
        ({"data": {"kind": "pictures"}}, "spec.data"),
    ],
)
def test_a_run_with_what_came_later_says_that_a_newer_potluck_is_needed(
    of_spec: dict[str, Any], key: str, tmp_path: Path
) -> None:
    error, asked = met(tmp_path, **of_spec)
    assert isinstance(error, UnsupportedError) and asked == ["GetRun"]
    assert error.message.startswith(f"a newer Potluck is needed: the run has {key}")
    assert error.hint == this_installation().upgrade("peer")


def test_a_run_card_that_is_merely_wrong_is_not_called_newer(tmp_path: Path) -> None:
    error, _ = met(tmp_path, inner={"lr": -1.0})
    assert isinstance(error, FormatError) and not isinstance(error, UnsupportedError)


# ---- the host's side -------------------------------------------------------------------------------------------------


def service(enroll: Any = None) -> CoordinatorService:
    board = SimpleNamespace(round=lambda: 0, finished=lambda: False)
    offer = SimpleNamespace(
        card=CARD, card_bytes=b"", root_public_pem=b"", genesis_files=[], model_files=[], model_config=b""
    )
    admission = SimpleNamespace(enroll=enroll, bans=SimpleNamespace(number=0, data=b"", why=lambda peer: None))
    roster = SimpleNamespace(addresses=lambda besides, now: [])
    nothing: Any = None
    desks = Desks(nothing, nothing)
    parts: list[Any] = [offer, admission, roster, nothing, nothing, desks, board, nothing]
    return CoordinatorService(*parts)


def test_a_host_says_which_protocol_and_which_potluck(tmp_path: Path) -> None:
    reply = service().GetRun(coordinator_pb2.GetRunRequest(), "network")
    assert (reply.version, reply.release) == (SWARM_VERSION, str(this_release()))


@pytest.mark.parametrize(("version", "later", "let_in"), [(0, 0, True), (3, 0, True), (0, 1, False), (3, 1, False)])
def test_a_member_of_an_older_protocol_gets_no_certificate_to_download_with(
    version: int, later: int, let_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator.service, "SWARM_VERSION", SWARM_VERSION + later)
    desk = service(enroll=lambda *given: "certificate")
    request = coordinator_pb2.EnrollRequest(version=version)
    if let_in:
        assert desk.Enroll(request, "network").certificate == "certificate"
    else:
        with pytest.raises(RefusedError, match=r"update it .*from where you got it"):
            desk.Enroll(request, "network")
