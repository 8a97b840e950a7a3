"""What is said of a round to people: where a member is in it, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

# as they come; "send" and "reduce" are those of the all-reduce
STAGES = ("work", "propose", "promise", "group", "send", "reduce", "averaged", "vote", "voted", "commit", "kept")


@dataclass(frozen=True)
class RoundReport:
    """What became of a round."""

    round: int
    members: int
    tokens: int
    waited_s: float  # from the end of one's own work to the new state
    attempts: int
    took_part: bool
    left_out: tuple[tuple[str, str], ...] = ()  # (peer id, why) of those that the round was made without
    waits: bool = False  # there was no place for this member: its work counts when its turn comes
