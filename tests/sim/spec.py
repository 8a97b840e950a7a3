"""The run that is simulated."""

from __future__ import annotations

from functools import cache

from protocol.run_spec import RunSpec
from tests.kit.builders import make_spec

VALUES, CHUNK_VALUES = 36, 1 << 16
ROUND_TICKS = 3  # of work, from one agreement to the next proposal


@cache
def spec_of(max_group: int) -> RunSpec:
    """The spec of a run whose members average 36 values."""
    base = make_spec(rules=3)
    fields = {"round_tokens": None, "round_seconds": float(ROUND_TICKS), "min_peers": 1, "max_group": max_group}
    return base.model_copy(update={"sync": base.sync.model_copy(update=fields)})


RUN, WIRE = spec_of(64).digest, spec_of(64).sync.wire  # the run's digest is only a name here
