"""A member's own state: what it carries from one round's work into the next and nobody else has, by its digest.

    left       what its last update left out (a lossy codec, a fragment): the others do not have it yet
    others     what its optimizer remembers, by the optimizer's own names, and its numbers

A claim names the own state that its work began with and the one that it led to (`protocol.statements.Trajectory`), so
that the next claim's work begins where this one's ended. Each vector is bound by the Merkle root of its little-endian
bytes in chunks of 1 MiB, as the shared state is (`protocol.state`); the digest of an own state is

    SHA-256("potluck-own-v1\\n" + canonical JSON of {"numbers", "vectors"})

    >>> OwnManifest(numbers={"steps": "8"}, vectors={"exp_avg": "0" * 64}).digest[:8]
    '710acb51'
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol import canonical
from protocol.digests import Digest
from protocol.fields import Fields

LEFT = "left"
_DOMAIN = b"potluck-own-v1\n"
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
Number = Annotated[str, Field(pattern=r"^[-+.e0-9]{1,40}$")]


class OwnManifest(Fields):
    """What the digest of an own state stands for."""

    numbers: dict[Name, Number] = Field(max_length=16)  # of the optimizer, as it writes them
    vectors: dict[Name, Digest] = Field(max_length=16)  # name -> Merkle root of its bytes

    @property
    def digest(self) -> Digest:
        return canonical.sha256_hex(_DOMAIN + canonical.dumps(self.model_dump(mode="json")))
