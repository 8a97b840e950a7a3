"""Membership certificates: for one peer and one run, while they last."""

from __future__ import annotations

import time

import jwt
import pytest

from protocol import certificate
from protocol.errors import FormatError, RefusedError
from protocol.keys import PeerIdentity
from tests.kit.builders import fixed_ed25519

KEY = fixed_ed25519("membership")
PEER = PeerIdentity(fixed_ed25519("peer")).peer_id
RUN = "a" * 64


def issue(**changes) -> str:
    return certificate.issue(KEY, **({"run": RUN, "peer_id": PEER, "lifetime_s": 60} | changes))


def check(token: str, **changes) -> certificate.Membership:
    return certificate.check(token, KEY.public_key(), **({"run": RUN} | changes))


def encode(claims: dict, kind: str = "potluck-member+jwt") -> str:
    now = int(time.time())
    full = {"sub": PEER, "aud": RUN, "iat": now, "exp": now + 60} | claims
    return jwt.encode(
        {key: value for key, value in full.items() if value is not ...}, KEY, algorithm="EdDSA", headers={"typ": kind}
    )


def test_an_issued_certificate_names_its_peer_run_and_end() -> None:
    before = int(time.time())
    member = check(issue())
    assert (member.peer_id, member.run) == (PEER, RUN)
    assert before + 60 <= member.expires <= int(time.time()) + 60


def test_an_expired_certificate_is_refused_unless_the_past_is_asked_about() -> None:
    token = issue(now=time.time() - 3600)
    with pytest.raises(RefusedError, match="expired"):
        check(token)
    assert check(token, accept_expired=True).peer_id == PEER


def test_a_certificate_from_the_future_is_refused() -> None:
    with pytest.raises(RefusedError, match="not valid yet"):
        check(issue(now=time.time() + 3600))


def test_a_small_difference_between_clocks_is_forgiven() -> None:
    half = certificate.CLOCK_LEEWAY_S / 2
    assert check(issue(now=time.time() + half)).peer_id == PEER
    assert check(issue(now=time.time() - 60 - half)).peer_id == PEER


def test_a_certificate_for_another_run_is_refused() -> None:
    with pytest.raises(RefusedError, match="another run"):
        check(issue(), run="b" * 64)


def test_a_certificate_by_another_coordinator_is_refused() -> None:
    with pytest.raises(RefusedError, match="not issued by this run's coordinator"):
        certificate.check(issue(), fixed_ed25519("another").public_key(), run=RUN)


@pytest.mark.parametrize("missing", ["sub", "aud", "iat", "exp"])
def test_a_certificate_that_leaves_something_open_is_refused(missing: str) -> None:
    with pytest.raises(FormatError, match="not a membership certificate"):
        check(encode({missing: ...}))


@pytest.mark.parametrize("claims", [{"sub": 5}, {"exp": "soon"}, {"exp": 1e400}, {"exp": 2.5e9}, {"exp": True}])
def test_a_certificate_with_a_claim_of_another_kind_is_refused(claims: dict) -> None:
    for accept_expired in (False, True):
        with pytest.raises((FormatError, RefusedError)):
            check(encode(claims), accept_expired=accept_expired)


def test_a_jwt_made_for_something_else_is_refused() -> None:
    with pytest.raises(FormatError, match="not a membership certificate"):
        check(encode({}, kind="JWT"))


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_a_certificate_without_a_real_signature_is_refused(algorithm: str) -> None:
    secret = "" if algorithm == "none" else "a secret that is known to everybody"
    now = int(time.time())
    claims = {"sub": PEER, "aud": RUN, "iat": now, "exp": now + 60}
    token = jwt.encode(claims, secret, algorithm=algorithm, headers={"typ": "potluck-member+jwt"})
    with pytest.raises(FormatError, match="not a membership certificate"):
        check(token)


def test_an_oversize_certificate_is_refused_unread() -> None:
    with pytest.raises(FormatError, match="at most 1024"):
        check("a" * 1025)
