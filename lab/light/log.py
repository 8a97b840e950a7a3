"""What a light member wrote, read again and added up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.light.plan import Plan


@dataclass(frozen=True)
class MemberLog:
    """One member's rounds."""

    index: int
    peer_id: str
    committed: dict[int, dict[str, Any]]  # round -> what it said of it; a round that it skipped is not there
    handed: list[tuple[int, int]]  # (round, tokens) of the updates it handed over

    @classmethod
    def read(cls, plan: Plan, index: int, folder: Path) -> MemberLog:
        with (folder / f"member-{index:02}.jsonl").open() as lines:
            events = [json.loads(line) for line in lines]
        committed = {event["round"]: event for event in events if event["event"] == "committed"}
        handed = [(event["round"], event["tokens"]) for event in events if event["event"] == "handed"]
        return cls(index, plan.identity(index).peer_id, committed, handed)

    @property
    def taken(self) -> list[int]:
        """Rounds that it was in."""
        return sorted(number for number, event in self.committed.items() if event["took_part"])


@dataclass(frozen=True)
class Cost:
    """What a round costs one member, on average."""

    members: int
    rounds: int  # that were measured
    round_s: float  # from agreement to agreement
    group: float  # members in a round
    attempts: float  # in each round that a member was in
    python_s: float  # processor time of the member's own process …
    p2pd_s: float  # … and of its libp2p daemon
    sent: float  # bytes of control
    received: float
    by_kind: dict[str, float]  # bytes sent and received, bulk too
    opened: dict[str, float]  # streams to others

    @classmethod
    def between(cls, logs: list[MemberLog], first: int, last: int) -> Cost:
        """The mean over all members, from the end of round `first` to the end of round `last`."""
        ends = [(log.committed[first], log.committed[last]) for log in logs]
        each = len(logs) * (last - first)

        def mean(name: str, kind: str | None = None) -> float:
            values = ((a[name], b[name]) if kind is None else (a[name].get(kind, 0), b[name].get(kind, 0)) for a, b in ends)
            return sum(later - earlier for earlier, later in values) / each

        events = [log.committed[number] for log in logs for number in range(first + 1, last + 1) if number in log.committed]
        taken = [event["attempts"] for event in events if event["took_part"]]
        kinds = sorted({kind for _, end in ends for name in ("sent", "received") for kind in end[name]})
        return cls(
            members=len(logs),
            rounds=last - first,
            round_s=mean("time"),
            group=sum(len(event["weights"]) for event in events) / len(events),
            attempts=sum(taken) / len(taken),
            python_s=mean("cpu_s"),
            p2pd_s=mean("p2pd_cpu_s"),
            sent=mean("control_sent"),
            received=mean("control_received"),
            by_kind={kind: mean("sent", kind) + mean("received", kind) for kind in kinds},
            opened={kind: mean("opened", kind) for kind in kinds},
        )
