"""Agreements: what is checked of a committed round without the round before it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol import succession
from protocol.agreement import Agreement, Counts, group_digest
from protocol.errors import FormatError, RefusedError, SignatureError, VerificationError
from protocol.succession import Last
from tests.kit.builders import Run, build_run, fixed_ed25519

STATE = "d" * 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"), rounds=1)


def agreement_of(run: Run, tokens: list[int], voters: int | None = None) -> dict[str, Any]:
    claims = run.make_claims(1, run.card.genesis, tokens)
    value = run.agreement_json(claims, run.make_votes(claims, 1, run.card.genesis, STATE), 1)
    value["votes"] = value["votes"][:voters]
    return value


def test_the_group_digest_depends_on_members_claims_and_order(run: Run) -> None:
    claims = run.agreements[1].claims
    digests = {group_digest(group) for group in (claims, claims[::-1], claims[:2])}
    assert len(digests) == 3


def test_an_agreement_reads_back(run: Run) -> None:
    agreed = run.open_agreement(agreement_of(run, [100, 200, 300]))
    assert (agreed.round, agreed.base, agreed.state) == (1, run.card.genesis, STATE)
    assert agreed.weights == {peer.peer_id: 100 * (index + 1) for index, peer in enumerate(run.peers)}
    again = Agreement.from_bytes(agreed.to_bytes(), run=agreed.run, membership_key=run.membership_key.public_key())
    assert again == agreed


def test_a_heavy_majority_is_enough_and_a_light_one_is_not(run: Run) -> None:
    assert run.open_agreement(agreement_of(run, [1000, 200, 300], voters=1)).state == STATE
    with pytest.raises(VerificationError, match="majority"):
        run.open_agreement(agreement_of(run, [100, 200, 400], voters=2))


def test_an_even_split_goes_to_one_side_only(run: Run) -> None:
    value = agreement_of(run, [300, 200, 100])
    outcomes = []
    for votes in (value["votes"][:1], value["votes"][1:]):
        try:
            run.open_agreement(value | {"votes": votes})
            outcomes.append(True)
        except VerificationError:
            outcomes.append(False)
    assert sorted(outcomes) == [False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value, run: value["weights"].popitem(), "other peers"),
        (lambda value, run: value["weights"].update({run.peers[0].peer_id: 0}), "between 1 and"),
        (lambda value, run: value["weights"].update({run.peers[0].peer_id: True}), "whole number"),
        (lambda value, run: value["weights"].update({run.peers[0].peer_id: 1e9}), "whole number"),
        (lambda value, run: value["certificates"].popitem(), "no membership certificate"),
        (lambda value, run: value["claims"].reverse(), "another state, group"),
        (lambda value, run: value["claims"].pop(), "other peers"),
        (lambda value, run: value.pop("votes"), "not an agreement"),
        (lambda value, run: value.update(claims=[1]), "envelope"),
    ],
)
def test_a_changed_agreement_is_refused(run: Run, change, words: str) -> None:
    value = agreement_of(run, [100, 200, 300])
    change(value, run)
    with pytest.raises((RefusedError, FormatError), match=words):
        run.open_agreement(value)


def test_a_vote_for_another_state_does_not_join_a_majority(run: Run) -> None:
    value = agreement_of(run, [100, 200, 300])
    claims = run.make_claims(1, run.card.genesis, [100, 200, 300])
    other = run.make_votes(claims, 1, run.card.genesis, "e" * 64)
    value["votes"][1] = json.loads(other[1].data)
    with pytest.raises(VerificationError, match="voted for another state"):
        run.open_agreement(value)


def test_a_vote_by_someone_outside_the_group_is_refused(run: Run, tmp_path: Path) -> None:
    value = agreement_of(run, [100, 200, 300])
    value["claims"].pop()
    value["weights"].pop(run.peers[2].peer_id)
    with pytest.raises(VerificationError, match=r"not in the group|another state, group"):
        run.open_agreement(value)


def test_a_claim_in_anothers_name_is_refused(run: Run) -> None:
    value = agreement_of(run, [100, 200, 300])
    value["claims"][0]["signatures"][0]["keyid"] = run.peers[1].peer_id
    with pytest.raises(SignatureError):
        run.open_agreement(value)


def test_an_agreement_under_another_membership_key_is_refused(run: Run) -> None:
    value = agreement_of(run, [100, 200, 300])
    with pytest.raises(RefusedError, match="not issued by this run's coordinator"):
        Agreement.from_json(value, run=run.spec.digest, membership_key=fixed_ed25519("other").public_key())


def test_weights_that_do_not_follow_from_the_round_before_are_noticed(run: Run) -> None:
    agreed = run.open_agreement(agreement_of(run, [160, 320, 480]))
    succession.check_follows(agreed, Last(0, run.card.genesis), run.spec)
    other = Counts({**agreed.weights, run.peers[0].peer_id: 99})
    with pytest.raises(VerificationError, match="do not follow"):
        succession.check_follows(replace(agreed, counts=other), Last(0, run.card.genesis), run.spec)
