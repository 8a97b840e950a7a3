"""The coordinator's service over real sockets, with real keys: what members get, and what everybody else does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.host import Host
from coordinator.service import CoordinatorService
from peer.link.answers import RunDescription
from peer.link.channel import CoordinatorOlder, open_channel, translate
from peer.link.client import CoordinatorClient
from peer.link.line import measure_line
from peer.training.genesis import load_state
from protocol import certificate, coordinator_pb2, coordinator_pb2_grpc
from protocol.epoch import open_word
from protocol.errors import CoordinatorAway, FormatError, RefusedError, SignatureError
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.rpc import MAX_ADDRESSES, MAX_MESSAGE_BYTES, SWARM_VERSION, enroll_message
from tests.kit.builders import fixed_ed25519
from tests.kit.coordinator import Member, Swarm, start_host, write_run


@dataclass
class Site:
    """A running host with members."""

    host: Host
    client: CoordinatorClient
    run: RunDescription
    swarm: Swarm

    @property
    def member(self) -> Member:
        return self.swarm.members[0]

    def stub(self) -> coordinator_pb2_grpc.CoordinatorStub:
        return self.client.connection.stub()

    def membership_key(self) -> Ed25519PrivateKey:
        key = load_pem_private_key((self.host.folder / "membership.key").read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        return key


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    host = start_host(write_run(folder / "source", rounds=0, every=2), folder / "run")
    try:
        with CoordinatorClient(host.invite) as client:
            run = client.get_run()
            state = load_state(host.folder / "checkpoints" / "step-000000" / "model")
            yield Site(host, client, run, Swarm.joined(client, run, state))
    finally:
        host.stop()


def status_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    assert isinstance(error.value, grpc.Call)
    return error.value.code()


def test_every_call_of_the_protocol_is_answered() -> None:
    """The generated base class refuses whatever its subclass forgets."""
    calls = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods_by_name
    assert calls and set(calls) <= set(vars(CoordinatorService))


def test_run_description_is_the_one_in_the_invite(site: Site) -> None:
    assert site.run.card.run == site.host.invite.run
    assert site.run.card.spec.run.name == "campfire"
    assert "model/model.safetensors" in [file.path for file in site.run.genesis_files]
    assert site.run.model_files == ()


def test_invite_for_another_root_or_run_is_refused(site: Site) -> None:
    for changed in ({"root": "0" * 64}, {"run": "0" * 64}):
        invite = site.host.invite.model_copy(update=changed)
        with CoordinatorClient(invite) as client, pytest.raises(SignatureError, match="invite"):
            client.get_run()


def test_wrong_admission_code_is_refused_with_a_hint(site: Site) -> None:
    invite = site.host.invite.model_copy(update={"code": "stone"})
    with CoordinatorClient(invite) as client, pytest.raises(RefusedError, match="admission code is wrong") as caught:
        client.enroll(PeerIdentity.generate())
    assert "invite with the code" in caught.value.hint


def test_member_renews_its_certificate(site: Site) -> None:
    again = site.client.enroll(site.member.identity)
    assert again.expires > time.time()
    assert site.client.announce(again.certificate).round >= 0


def bad_certificates(site: Site) -> dict[str, str]:
    key, me = site.membership_key(), site.member.peer_id
    return {
        "none": "",
        "garbage": "a.b.c",
        "oversize": "x" * 5000,
        "expired": certificate.issue(key, run=site.run.card.run, peer_id=me, lifetime_s=60, now=time.time() - 3600),
        "of another run": certificate.issue(key, run="0" * 64, peer_id=me, lifetime_s=60),
        "by another key": certificate.issue(
            Ed25519PrivateKey.generate(), run=site.run.card.run, peer_id=me, lifetime_s=60
        ),
    }


@pytest.mark.parametrize("kind", ["none", "garbage", "oversize", "expired", "of another run", "by another key"])
def test_without_a_good_certificate_nothing_is_answered(site: Site, kind: str, tmp_path: Path) -> None:
    token = bad_certificates(site)[kind]
    data = site.run.card.spec.data
    calls = [
        lambda: site.client.announce(token),
        lambda: site.client.report(token, b"{}"),
        lambda: site.client.receipts(token),
        lambda: site.client.fetch_file(token, data.digest, data.size_bytes, tmp_path / "x"),
        lambda: site.client.upload_state(token, site.swarm.state.manifest(), []),
    ]
    for call in calls:
        with pytest.raises(RefusedError) as caught:
            call()
        assert caught.value.hint


def test_enrolling_with_a_stolen_challenge_is_refused(site: Site) -> None:
    victim, thief = PeerIdentity.generate(), PeerIdentity.generate()
    challenge = (
        site.stub().GetChallenge(coordinator_pb2.GetChallengeRequest(peer_id=victim.peer_id), timeout=60).challenge
    )
    request = coordinator_pb2.EnrollRequest(
        peer_id=thief.peer_id,
        challenge=challenge,
        signature=thief.sign(enroll_message(site.run.card.run, challenge)),
        code="wood",
    )
    with pytest.raises(grpc.RpcError) as caught:
        site.stub().Enroll(request, timeout=60)
    assert status_of(caught) == grpc.StatusCode.PERMISSION_DENIED


def test_members_learn_where_the_others_are(site: Site) -> None:
    first, second = site.swarm.members[:2]
    address = f"/ip4/203.0.113.7/tcp/4701/p2p/{first.peer_id}"
    site.client.announce(first.certificate, swarm_addresses=[address], tokens_per_s=12.5)
    assert address in site.client.announce(second.certificate).swarm_addresses
    assert address not in site.client.announce(first.certificate, swarm_addresses=[address]).swarm_addresses
    assert address in site.client.enroll(second.identity).swarm_addresses


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/203.0.113.7/tcp/4701",
        "http://example.org",
        "/ip4/203.0.113.7/tcp/4701/p2p/" + PeerIdentity(fixed_ed25519("a stranger")).peer_id,
        "/ip4/203.0.113.7/tcp/4701/p2p/" + "1" * 300,
        "/ip4/203.0.113.7/tcp/4701\n/p2p/{me}",
    ],
)
def test_odd_or_foreign_address_is_refused(site: Site, address: str) -> None:
    with pytest.raises(FormatError):
        site.client.announce(site.member.certificate, swarm_addresses=[address.replace("{me}", site.member.peer_id)])


def test_odd_announcements_are_refused(site: Site) -> None:
    address = f"/ip4/203.0.113.7/tcp/4701/p2p/{site.member.peer_id}"
    with pytest.raises(FormatError):
        site.client.announce(site.member.certificate, swarm_addresses=[address] * (MAX_ADDRESSES + 1))
    for number in (float("nan"), float("inf"), -1.0):
        with pytest.raises(FormatError):
            site.client.announce(site.member.certificate, tokens_per_s=number)
    for states in (["x"], ["0" * 64] * 65):
        with pytest.raises(FormatError):
            site.client.announce(site.member.certificate, states=states)


def test_oversize_message_is_refused_before_it_is_read(site: Site) -> None:
    with pytest.raises(CoordinatorAway, match="larger than max"):
        site.client.report(site.member.certificate, b"x" * (MAX_MESSAGE_BYTES + 1))
    channel = open_channel(site.host.invite.addresses[0], site.host.invite.tls, 5.0)
    with channel:
        send = channel.unary_unary("/potluck.v1.Coordinator/Report")
        with pytest.raises(grpc.RpcError) as caught:
            send(b"x" * (MAX_MESSAGE_BYTES - 10), timeout=20)
    assert status_of(caught) != grpc.StatusCode.OK
    assert site.client.status().name == "campfire"


def test_agreement_over_the_limit_is_refused(site: Site) -> None:
    with pytest.raises(FormatError, match="at most"):
        site.client.report(site.member.certificate, b"x" * (MAX_MESSAGE_BYTES - 100_000))


def test_state_that_nobody_asked_for_is_not_taken(site: Site) -> None:
    assert site.client.upload_state(site.member.certificate, site.swarm.next_state(5).manifest(), []) is False
    assert not list((site.host.folder / "incoming").glob("*"))


def test_health_service_says_serving(site: Site) -> None:
    with open_channel(site.host.invite.addresses[0], site.host.invite.tls, 5.0) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_reported_round_becomes_credit_receipts_and_status(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    agreement = site.swarm.round(seed=1)
    for member in [*site.swarm.members, site.member]:
        assert site.client.report(member.certificate, agreement.to_bytes()).accepted
    assert site.client.report(site.member.certificate, b"{}") == (
        False,
        "not an agreement: expected claims, votes, certificates, weights",
    )
    (receipt,) = site.client.receipts(site.member.certificate)
    assert site.member.peer_id.encode() in receipt
    assert site.client.receipts(site.member.certificate, after_round=1) == []
    time.sleep(1.1)  # strangers see a status that is at most a second old
    status = site.client.status()
    assert status.round == 1 and status.tokens == sum(agreement.weights.values())
    assert {peer.peer_id for peer in status.peers if peer.credit_tokens} == {m.peer_id for m in site.swarm.members}


def test_forged_report_is_refused_with_a_reason(site: Site) -> None:
    swarm = site.swarm
    answer = site.client.report(
        site.member.certificate, swarm.agree("ab" * 32, swarm.members, voters=swarm.members[:1]).to_bytes()
    )
    assert not answer.accepted and "majority" in answer.reason


def test_upload_with_a_flipped_byte_is_refused_and_the_next_member_is_asked(site: Site) -> None:
    while site.swarm.state.round < 2:
        assert site.client.report(site.member.certificate, site.swarm.round(seed=7).to_bytes()).accepted
    state = site.swarm.states[2]
    liar, honest = site.swarm.members[:2]
    assert wanted_of(site, liar, state.digest) == state.digest
    assert site.client.announce(honest.certificate, states=[state.digest]).want_state == "", "one at a time"
    chunk = bytearray(state.chunk(0))
    chunk[5] ^= 1
    with pytest.raises(RefusedError, match="has root"):
        site.client.upload_state(liar.certificate, state.manifest(), [bytes(chunk)])
    for pieces in ([state.chunk(0)[:-4]], [state.chunk(0), b"more"], [b""]):
        assert wanted_of(site, honest, state.digest) == state.digest
        with pytest.raises((FormatError, RefusedError)):
            site.client.upload_state(honest.certificate, state.manifest(), pieces)
    assert wanted_of(site, liar, state.digest) == state.digest
    assert site.client.upload_state(liar.certificate, state.manifest(), [state.chunk(0)])
    deadline = time.monotonic() + 60
    while not any(item.round == 2 for item in site.host.status().checkpoints):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wanted_of(site: Site, member: Member, state: str) -> str:
    """What a member that offers `state` is asked for, once the publisher has looked."""
    deadline = time.monotonic() + 60
    while not (wanted := site.client.announce(member.certificate, states=[state]).want_state):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return wanted


def test_member_of_an_older_potluck_is_told_in_one_line_what_to_do(site: Site) -> None:
    """It is let in, for how should it know; it is told where it would begin to take part."""
    for version in (0, SWARM_VERSION - 1):
        old = coordinator_pb2.AnnounceRequest(certificate=site.member.certificate, version=version)
        with pytest.raises(grpc.RpcError) as caught:
            site.stub().Announce(old, timeout=10)
        assert status_of(caught) == grpc.StatusCode.PERMISSION_DENIED
        assert isinstance(caught.value, grpc.Call)
        told = caught.value.details() or ""
        assert "newer protocol" in told and "git pull" in told and "\n" not in told


def test_newcomer_is_told_who_began_and_who_was_there_is_not_told_again(site: Site) -> None:
    word = site.client.announce(site.member.certificate, round=0).beginners
    named = open_word(word, site.run.card.member_key, run=site.run.card.run)
    assert named.value.peers == (site.swarm.members[0].peer_id,), "one was enough for min_peers, and came first"
    while site.swarm.state.round < 1:
        assert site.client.report(site.member.certificate, site.swarm.round(seed=7).to_bytes()).accepted
    assert site.client.announce(site.swarm.members[1].certificate, round=0).beginners == word
    assert site.client.announce(site.member.certificate, round=1).beginners == b""


def test_host_that_is_gone_is_away(tmp_path: Path) -> None:
    invite = Invite(addresses=("127.0.0.1:1", "127.0.0.1:2"), run="a" * 64, tls="b" * 64, root="c" * 64)
    with CoordinatorClient(invite, timeout_s=3) as client, pytest.raises(CoordinatorAway) as caught:
        client.get_run()
    assert "training goes on" in caught.value.hint


def test_a_line_is_measured_without_a_certificate_and_only_so_often(site: Site) -> None:
    with CoordinatorClient(site.host.invite) as stranger:
        line = measure_line(stranger, port=4710)
        assert min(line.up_bytes_s, line.down_bytes_s, line.round_trip_s) > 0
        assert (line.seen, line.reached, line.clock.is_wrong) == ("127.0.0.1", None, False)
        with pytest.raises(CoordinatorAway, match="too many measurements"):
            for _ in range(8):
                measure_line(stranger)


def test_a_call_that_a_host_is_too_old_for_is_told_from_one_that_fails(site: Site) -> None:
    with open_channel(site.host.invite.addresses[0], site.host.invite.tls, 5.0) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/potluck.v1.Coordinator/OfTomorrow")(b"", timeout=10)
        assert isinstance(translate(caught.value), CoordinatorOlder)
