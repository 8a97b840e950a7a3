"""The run card: the root key's signed statement of what a run is and which other keys speak for it.

    {"genesis":"<state digest>","ledger_key":"potluck/…+…+…","membership_key":"<hex>","run":"<digest>","spec":{…}}

Whoever trusts the root key (by invite or by `--key`) trusts, through the card, the ledger's note key and the key that
signs membership certificates. The card travels inside receipts and checkpoints, so that they can be checked offline.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError

from protocol import envelope
from protocol.digests import Digest, Hex64
from protocol.envelope import Envelope
from protocol.errors import FormatError, UnsupportedError, VerificationError
from protocol.fields import Fields
from protocol.keys import RootKey
from protocol.run_spec import RunSpec

RUN_CARD_TYPE = "application/vnd.potluck.run.v1+json"
MAX_RUN_CARD_BYTES = 256 * 1024
_OF_A_NEWER = ("extra_forbidden", "literal_error", "union_tag_invalid")  # what pydantic calls it


class RunCard(Fields):
    """What the root key says of its run."""

    later: ClassVar[frozenset[str]] = frozenset({"audit_chain"})
    run: Digest  # digest of spec
    spec: RunSpec
    genesis: Digest  # state digest of round 0
    ledger_key: Annotated[str, Field(max_length=512)]  # C2SP verifier key: name+hash+base64
    membership_key: Hex64  # raw Ed25519 public key
    audit_chain: Digest | None = None  # link 0 of `protocol.audit`, where work is audited

    @property
    def member_key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.membership_key))

    def sign(self, root: RootKey) -> Envelope:
        return envelope.sign(self.model_dump(mode="json"), RUN_CARD_TYPE, root)

    @classmethod
    def open(cls, data: bytes, public_key: ec.EllipticCurvePublicKey) -> RunCard:
        """Check a signed card.

        Raises:
            FormatError: not a run card.
            UnsupportedError: one with fields or choices that came later than this Potluck.
            SignatureError: not signed by `public_key`.
            VerificationError: the spec inside has another digest than the card says, or the card lacks a lot for it.
        """
        value = envelope.open_by_root(data, RUN_CARD_TYPE, public_key, MAX_RUN_CARD_BYTES)
        try:
            card = cls.model_validate(value)
        except ValidationError as error:
            unknown = [".".join(map(str, one["loc"])) for one in error.errors() if one["type"] in _OF_A_NEWER]
            if unknown:
                raise UnsupportedError(
                    f"a newer Potluck is needed: the run has {unknown[0]}, which this one does not know"
                ) from error
            first = error.errors()[0]
            raise FormatError(f"not a run card: {first['loc']}: {first['msg']}") from error
        if card.spec.digest != card.run:
            raise VerificationError("the run card's spec does not have the run digest that the card states")
        if (card.audit_chain is None) != (card.spec.audit.share == 0):
            raise VerificationError("the run card fixes no lots for the audits that its spec wants, or some for none")
        return card
