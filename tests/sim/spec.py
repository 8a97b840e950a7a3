"""The run that is simulated."""

from __future__ import annotations

from protocol.run_spec import RunSpec
from tests.kit.builders import make_spec

VALUES, CHUNK_VALUES = 36, 1 << 16
ROUND_TICKS = 3  # of work, from one agreement to the next proposal


def spec(**sync: object) -> RunSpec:
    """The spec of a run whose members average 36 values."""
    base = make_spec(rules=3)
    fields = {"round_tokens": None, "round_seconds": float(ROUND_TICKS), "min_peers": 1, "max_group": 64} | sync
    return base.model_copy(update={"sync": base.sync.model_copy(update=fields)})


SPEC = spec()
RUN = SPEC.digest
