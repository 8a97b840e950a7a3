"""Certificates are renewed in the background while their holders train."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest

from coordinator.run_config import HostConfig
from lab.processes import CARD_TOKENS_PER_S, WAIT_S, Community
from lab.training_fixtures import write_tiny_llama
from lab.warm_start import WarmStart
from peer.link.client import CoordinatorClient
from peer.link.held_certificate import RENEW_SHARE, HeldCertificate
from protocol import certificate as certificates
from protocol.errors import RefusedError
from protocol.keys import PeerIdentity
from tests.kit.coordinator import start_host, write_run

pytestmark = pytest.mark.swarm
ME = PeerIdentity.generate()


def test_certificates_are_renewed_while_the_peers_train(
    tmp_path: Path, glass_dir: Path, plays: Path, starter: WarmStart
) -> None:
    model = write_tiny_llama(tmp_path / "tiny", glass_dir)
    config = {
        "run": {"name": "renewed"},
        "model": {"path": str(model), "license": "MIT"},
        "data": {"path": str(plays), "license": "CC0-1.0", "sequence_length": 32, "held_out_sequences": 16},
        "sync": {"round_tokens": 3000, "min_peers": 2},
        "inner": {"micro_batch": 4, "batch": 4},
        "host": {"certificate_hours": 10 / 3600},  # ten seconds: renewed after two and a half
    }
    with Community(tmp_path, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as community:
        community.host()
        peers = [community.peer(name) for name in ("ann", "bob")]
        for peer in peers:
            peer.wait_round(1)
        first = {peer.name: certificate(community, peer.name) for peer in peers}
        deadline = time.monotonic() + WAIT_S
        while any(expiry(certificate(community, peer.name)) <= expiry(first[peer.name]) for peer in peers):
            assert time.monotonic() < deadline, "no certificate was renewed"
            time.sleep(0.2)
        now = max(peer.round for peer in peers)
        events = [peer.wait_round(now + 3) for peer in peers]
        assert all(event["members"] == 2 for event in events)


def test_a_run_outlives_a_coordinator_that_is_away_for_half_a_day() -> None:
    lifetime_s = HostConfig().certificate_hours * 3600
    held = HeldCertificate(ME, "a token", time.time() + lifetime_s)
    left_s = lifetime_s * (1 - RENEW_SHARE)  # the least that a certificate has left when the coordinator goes away
    assert left_s >= 18 * 3600
    assert not held.is_due
    held.renew_soon()
    assert held.is_due


@pytest.mark.parametrize("clock", ["time", "monotonic"])
def test_a_certificate_is_renewed_by_whichever_clock_says_so_first(clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, real = HeldCertificate(ME, "a token", time.time() + 1000), getattr(time, clock)
    monkeypatch.setattr(time, clock, lambda: real() + 240)
    assert not held.is_due
    monkeypatch.setattr(time, clock, lambda: real() + 260)
    assert held.is_due


def certificate(community: Community, name: str) -> str:
    return (community.run_folder(name) / "certificate").read_text()


def expiry(token: str) -> int:
    return int(jwt.decode(token, options={"verify_signature": False})["exp"])


def test_a_reducer_keeps_its_role_while_somebody_at_its_address_guesses_at_the_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = start_host(write_run(tmp_path / "source", reducer_code="a friend"), tmp_path / "run")
    me = PeerIdentity.generate()
    try:
        guess = host.invite.model_copy(update={"code": "a fiend"})
        with CoordinatorClient(host.reducer_invite) as client, CoordinatorClient(guess) as guesser:
            card, first = client.get_run().card, client.enroll(me)
            assert first.reducer
            held = HeldCertificate(me, first.certificate, first.expires, reducer=True)
            with pytest.raises(RefusedError):
                guesser.enroll(PeerIdentity.generate())
            held.renew_soon()
            assert not held.renew(client) and held.token == first.certificate and not held.is_due
            assert "guessed at it a moment ago" in caplog.text
            time.sleep(1.1)  # that the first wrong code at an address costs
            held.renew_soon()
            assert held.renew(client) and held.token != first.certificate
            assert certificates.check(held.token, card.member_key, run=card.run).reducer
    finally:
        host.stop()
