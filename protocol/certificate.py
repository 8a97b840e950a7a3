"""Membership certificates: JWTs, EdDSA, bound to one peer id and one run, checked offline by every peer.

    header  {"alg":"EdDSA","typ":"potluck-member+jwt"}
    payload {"sub":"12D3KooW…","aud":"<run digest>","iat":1763769600,"exp":1763784000}

    "reducer":true                                for those that the host trusts to reduce for the others

The key that signs them is named by the run card; a certificate is useless to anyone but the holder of the peer key,
because libp2p authenticates the peer id on every connection.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.errors import FormatError, RefusedError

MAX_CERTIFICATE_BYTES = 1024
CLOCK_LEEWAY_S = 60
_TYPE = "potluck-member+jwt"


@dataclass(frozen=True)
class Membership:
    """What a checked certificate says."""

    peer_id: str
    run: str  # run digest
    expires: int  # Unix seconds
    reducer: bool = False  # trusted by the host to reduce alone for the others


def issue(
    key: Ed25519PrivateKey,
    *,
    run: str,
    peer_id: str,
    lifetime_s: int,
    now: float | None = None,
    reducer: bool = False,
) -> str:
    """Make a certificate that holds from now for `lifetime_s` seconds."""
    issued = int(time.time() if now is None else now)
    claims = {"sub": peer_id, "aud": run, "iat": issued, "exp": issued + lifetime_s}
    if reducer:
        claims["reducer"] = True
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": _TYPE})


def check(token: str, key: Ed25519PublicKey, *, run: str, accept_expired: bool = False) -> Membership:
    """Check a certificate.

    Args:
        token: the JWT.
        key: the run's membership key, from the run card.
        run: the run digest it must name.
        accept_expired: for agreements of the past, where it only matters that it was issued.

    Raises:
        FormatError: not a certificate.
        RefusedError: expired, not yet valid, of another run, or not signed by `key`.
    """
    if len(token) > MAX_CERTIFICATE_BYTES:
        raise FormatError(f"a certificate has at most {MAX_CERTIFICATE_BYTES} bytes, got {len(token)}")
    try:
        if jwt.get_unverified_header(token).get("typ") != _TYPE:
            raise FormatError("not a membership certificate")
        claims = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=run,
            leeway=CLOCK_LEEWAY_S,
            options={"require": ["sub", "aud", "iat", "exp"], "verify_exp": not accept_expired},
        )
    except jwt.ExpiredSignatureError as error:
        raise RefusedError(
            "the membership certificate has expired", "it is renewed when the coordinator is back"
        ) from error
    except jwt.InvalidAudienceError as error:
        raise RefusedError("the membership certificate is for another run") from error
    except jwt.InvalidSignatureError as error:
        raise RefusedError("the membership certificate was not issued by this run's coordinator") from error
    except jwt.ImmatureSignatureError as error:
        raise RefusedError("the membership certificate is not valid yet", "set this machine's clock") from error
    except (jwt.PyJWTError, OverflowError) as error:
        raise FormatError(f"not a membership certificate: {error}") from error
    peer_id, expires = claims["sub"], claims["exp"]
    if not isinstance(peer_id, str) or not isinstance(expires, int) or isinstance(expires, bool):
        raise FormatError("not a membership certificate: sub is a string and exp a whole number of seconds")
    return Membership(peer_id=peer_id, run=run, expires=expires, reducer=claims.get("reducer") is True)
