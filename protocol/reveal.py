"""What the author of a claim shows when it is drawn: the head of it, as JSON, before the bytes.

    {"base":<state manifest>,"before":<state manifest> | null,"end":<own manifest>,"start":<own manifest> | null}

The bytes follow in this order: the base's parameters; those of `before`, the base that the work began on where rounds
overlap; the vectors of `start` and of `end` by their names; the chunks of the update, and where there is a `before`
those of the update before. Each has a length that the run fixes, so nothing else need be said of them.
"""

from __future__ import annotations

from pydantic import ValidationError

from protocol import canonical
from protocol.errors import FormatError, VerificationError
from protocol.fields import Fields
from protocol.own_state import OwnManifest
from protocol.state import MAX_MANIFEST_BYTES, StateManifest
from protocol.statements import Claim

MAX_REVEAL_HEAD_BYTES = 2 * MAX_MANIFEST_BYTES + 65536
_BYTES_EACH = {  # bytes of a vector for N parameters; all that optimizers here are known to remember
    "left": lambda count: 4 * count,
    "exp_avg": lambda count: 4 * count,
    "exp_avg_sq": lambda count: 4 * count,
    "offset": lambda count: 4 * count,
    "exp_avg_8bit": lambda count: count,
    "exp_avg_sq_8bit": lambda count: count,
    "exp_avg_scales": lambda count: 4 * -(-count // 256),
    "exp_avg_sq_scales": lambda count: 4 * -(-count // 256),
}


class RevealHead(Fields):
    """What is revealed of one claim."""

    base: StateManifest
    before: StateManifest | None = None
    start: OwnManifest | None
    end: OwnManifest

    def to_bytes(self) -> bytes:
        return canonical.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, claim: Claim) -> RevealHead:
        """Read one, and check that it is what the claim names. Raises: FormatError, VerificationError."""
        try:
            head = cls.model_validate(canonical.loads(data, max_bytes=MAX_REVEAL_HEAD_BYTES))
        except ValidationError as error:
            raise FormatError(f"not the head of a reveal: {error.errors()[0]['msg']}") from error
        trajectory = claim.trajectory
        assert trajectory is not None, "only such claims are drawn"
        began = trajectory.start
        jump = began.jump if began is not None else None
        named = (claim.base, jump and jump.base, began and began.own, trajectory.end)
        if (head.base.digest, *(part and part.digest for part in (head.before, head.start, head.end))) != named:
            raise VerificationError("what is revealed is not what the claim names")
        updates = (claim.update, jump.update) if jump is not None else (claim.update,)
        count = head.base.parameter_count
        if (head.before or head.base).tensors != head.base.tensors or any(each.values > count for each in updates):
            raise VerificationError("what is revealed is of different models")
        return head

    @property
    def vectors(self) -> list[tuple[str, str, int, str]]:
        """(own state, name, bytes, Merkle root) of each vector, in order. Raises: FormatError: an unknown one."""
        found = []
        for which, own in (("start", self.start), ("end", self.end)):
            for name, root in sorted(own.vectors.items()) if own is not None else ():
                if name not in _BYTES_EACH:
                    raise FormatError(f"an own state with {name[:32]!r}, which no optimizer here remembers")
                found.append((which, name, _BYTES_EACH[name](self.base.parameter_count), root))
        return found
