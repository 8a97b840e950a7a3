"""A group from a leader that is not believed: each check, with the attack it stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peer.net import wire
from peer.net.opening import Opening
from peer.round.group import Group, Member
from peer.training.codecs.codec import CHUNK_VALUES, EncodedUpdate
from protocol import swarm_pb2
from protocol.counting import MOST_TIMES
from protocol.envelope import Envelope
from protocol.errors import FormatError, RefusedError, SignatureError, VerificationError
from protocol.signed import Signed
from protocol.statements import Claim, Vote
from tests import swarm_kit
from tests.swarm_kit import World

VALUES = 40


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, values=VALUES, max_group=4)


def encoded(world: World, index: int) -> EncodedUpdate:
    return EncodedUpdate.encode(world.update(index), world.spec.sync.wire)


def signed(world: World, index: int, **changes: Any) -> Signed[Claim]:
    return world.claim(index, encoded(world, index), **changes).sign(world.identity(index))


def let_in(world: World, data: bytes, token: str) -> Member:
    """A member whose claim and certificate came with a group of it alone."""
    made = swarm_pb2.Group(round=1, base=world.genesis.digest, word=world.named.data)
    made.members.add(claim=data, certificate=token, can_reduce=True, share=1)
    return opened(world, made).members[0]


def member(world: World, index: int, **changes: Any) -> Member:
    return let_in(world, signed(world, index, **changes).data, world.certificate(index))


def told(world: World, index: int) -> Member:
    """A member as a leader tells of it."""
    claim = signed(world, index)
    return Member(claim.by, claim, world.certificate(index), True)


def built(world: World, members: list[Member]) -> Group:
    group = Group(1, world.genesis.digest, 0, "leader", tuple(members), word=world.named)
    return group.weighed(world.terms(word=world.named))


def message(world: World, *indices: int, **changes: Any) -> swarm_pb2.Group:
    """A group as an honest leader sends it, with fields replaced."""
    group = built(world, [told(world, index) for index in indices])
    made = wire.group_message(group, world.certificate(indices[0]))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def opened(world: World, made: swarm_pb2.Group) -> Group:
    """As each member takes it: signatures first, then the rules."""
    opening = Opening(world.card.run, world.card.member_key)
    return wire.group(made, world.identity(0).peer_id, opening).weighed(world.terms(word=world.named))


# ---- one member ------------------------------------------------------------------------------------------------------


def test_an_honest_claim_is_let_in(world: World) -> None:
    got = member(world, 1)
    assert (got.peer, got.claim.value.tokens, got.can_reduce) == (world.identity(1).peer_id, 320, True)


def test_a_changed_claim_is_refused(world: World) -> None:
    envelope = Envelope.from_bytes(signed(world, 1).data)
    payload = envelope.payload.replace(b'"tokens":320', b'"tokens":321')
    assert payload != envelope.payload
    changed = Envelope(envelope.payload_type, payload, envelope.keyid, envelope.signature)
    with pytest.raises(SignatureError):
        let_in(world, changed.to_bytes(), world.certificate(1))


def test_a_claim_under_another_members_name_is_refused(world: World) -> None:
    envelope = Envelope.from_bytes(signed(world, 1).data)
    stolen = Envelope(envelope.payload_type, envelope.payload, world.identity(2).peer_id, envelope.signature)
    with pytest.raises(SignatureError):
        let_in(world, stolen.to_bytes(), world.certificate(2))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"peer_id": "12D3KooWQoLoPq8kWPYEc5GXkSkTkEdpmh6p2ZWNdSA8wLMYrvrB"}, "another peer's"),
        ({"lifetime_s": -3600}, "expired"),
        ({"run": "f" * 64}, "another run"),
        ({"key": swarm_kit.fixed_ed25519("not the coordinator")}, "not issued"),
    ],
)
def test_a_claim_without_its_own_certificate_is_refused(world: World, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RefusedError, match=match):
        let_in(world, signed(world, 1).data, world.certificate(1, **changes))


def test_a_claim_with_no_certificate_is_refused(world: World) -> None:
    for token in ("", "a.b.c", "x" * 5000):
        with pytest.raises(FormatError):
            let_in(world, signed(world, 1).data, token)


@pytest.mark.parametrize("changes", [{"run": "f" * 64}, {"round": 2}, {"base": "e" * 64}])
def test_a_claim_for_another_run_round_or_base_is_refused(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="another run"):
        member(world, 1, **changes)


@pytest.mark.parametrize(
    "changes", [{"values": VALUES + 1}, {"chunk_values": CHUNK_VALUES // 2}, {"codec": "int8"}, {"codec": "pickle"}]
)
def test_a_claim_of_another_size_cut_or_codec_is_refused(world: World, changes: dict[str, Any]) -> None:
    update = encoded(world, 1).digest.model_copy(update=changes)
    with pytest.raises(VerificationError, match="another size, chunk size or codec"):
        member(world, 1, update=update)


def test_more_tokens_than_fit_in_the_sequences_are_refused(world: World) -> None:
    assert member(world, 1, tokens=160, batches=10)
    with pytest.raises(VerificationError, match="more than fit"):
        member(world, 1, tokens=161, batches=10)


def test_bytes_that_are_no_claim_are_refused(world: World) -> None:
    vote = Vote(run=world.card.run, round=1, attempt=0, group="0" * 64, base=world.genesis.digest, state="1" * 64)
    for data in (b"", b"{}", b"\xff" * 100, b"[" * 70_000, vote.sign(world.identity(1)).data):
        with pytest.raises(FormatError):
            let_in(world, data, world.certificate(1))


# ---- the whole group -------------------------------------------------------------------------------------------------


def test_a_group_reads_back_as_it_was_built(world: World) -> None:
    made = message(world, 0, 1, 2)
    group = opened(world, made)
    assert list(group.by_peer) == [world.identity(index).peer_id for index in (0, 1, 2)]
    assert group.digest == opened(world, wire.group_message(group, "")).digest
    assert dict(group.weights) == {world.identity(index).peer_id: 160 * (index + 1) for index in (0, 1, 2)}


def test_two_orders_are_two_groups(world: World) -> None:
    assert opened(world, message(world, 0, 1)).digest != opened(world, message(world, 1, 0)).digest


def test_weights_come_from_the_claims_and_the_round_before_whatever_the_leader_says(world: World) -> None:
    small, big = world.identity(0).peer_id, world.identity(2).peer_id
    made = message(world, 0, 2)
    made.members[1].claim = signed(world, 2, tokens=16_000, batches=1000).data
    assert dict(opened(world, made).weights) == {small: 160, big: MOST_TIMES * 160}


@pytest.mark.parametrize("changes", [{"round": 2}, {"round": 0}, {"base": "e" * 64}, {"base": ""}])
def test_a_group_for_another_round_or_base_is_refused(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="the group is for round"):
        opened(world, message(world, 0, 1, **changes))


def test_a_member_that_stands_twice_is_refused(world: World) -> None:
    made = message(world, 0, 1)
    made.members.append(made.members[1])
    with pytest.raises(VerificationError, match="each once"):
        opened(world, made)


def test_two_claims_of_one_member_are_refused(world: World) -> None:
    made = message(world, 0, 1)
    again = made.members.add(certificate=world.certificate(1), can_reduce=True)
    again.claim = signed(world, 1, first_batch=99).data
    with pytest.raises(VerificationError, match="each once"):
        opened(world, made)


def test_an_empty_or_too_large_group_is_refused(world: World) -> None:
    made = message(world, 0)
    del made.members[:]
    with pytest.raises(VerificationError, match="1 to 4 members"):
        opened(world, made)
    with pytest.raises(VerificationError, match="1 to 4 members"):
        message(world, 0, 1, 2, 3, 4)
    made = message(world, 0, 1, 2, 3)
    made.members.append(made.members[0])
    with pytest.raises(VerificationError, match="1 to 4 members"):
        opened(world, made)


def test_a_group_smaller_than_the_host_allows_is_refused(tmp_path: Path) -> None:
    strict = World(tmp_path, values=VALUES, min_peers=2)
    with pytest.raises(VerificationError, match="2 to"):
        message(strict, 0)
    assert message(strict, 0, 1)


def test_a_group_in_which_nobody_can_be_reached_is_refused(world: World) -> None:
    made = message(world, 0, 1)
    for item in made.members:
        item.can_reduce = False
    with pytest.raises(VerificationError, match="nobody in the group"):
        opened(world, made)


def test_one_bad_claim_spoils_the_group(world: World) -> None:
    made = message(world, 0, 1)
    made.members[1].certificate = world.certificate(1, lifetime_s=-3600)
    with pytest.raises(RefusedError, match="expired"):
        opened(world, made)


# ---- who reduces what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 7, 100])
def test_each_chunk_has_exactly_one_reducer(world: World, chunks: int) -> None:
    members = [member(world, 0), replace(member(world, 1), can_reduce=False, share=0), member(world, 2)]
    ranges = built(world, members).ranges(chunks)
    assert set(ranges) == {world.identity(0).peer_id, world.identity(2).peer_id}
    assert sorted(chunk for part in ranges.values() for chunk in part) == list(range(chunks))
