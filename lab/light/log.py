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
    handed: dict[int, dict[str, Any]]  # round -> what it said when it handed its work over

    @classmethod
    def read(cls, plan: Plan, index: int, folder: Path) -> MemberLog:
        with (folder / f"member-{index:02}.jsonl").open() as lines:
            events = [json.loads(line) for line in lines]
        committed, handed = (
            {event["round"]: event for event in events if event["event"] == kind} for kind in ("committed", "handed")
        )
        return cls(index, plan.identity(index).peer_id, committed, handed)

    @property
    def taken(self) -> list[int]:
        """Rounds that it was in."""
        return sorted(number for number, event in self.committed.items() if event["took_part"])

    def within(self, first: int, last: int) -> tuple[int, int]:
        """Its first and its last round of these: it may have passed over some, in catching up."""
        found = [number for number in self.committed if first <= number <= last]
        return min(found), max(found)


Pair = tuple[dict[str, Any], dict[str, Any]]  # what a member had used at two moments


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
    exchange_s: float  # of both, between the hand-over and the agreement
    sent: float  # bytes of control
    received: float
    exchange_bytes: float  # sent and received between the hand-over and the agreement
    by_kind: dict[str, float]  # bytes sent and received, bulk too
    opened: dict[str, float]  # streams to others

    @classmethod
    def between(cls, logs: list[MemberLog], first: int, last: int) -> Cost:
        """The mean over all members, from the end of round `first` to the end of round `last`."""
        numbers = range(first + 1, last + 1)
        bounds = [log.within(first, last) for log in logs]
        whole: list[Pair] = [(log.committed[a], log.committed[b]) for log, (a, b) in zip(logs, bounds, strict=True)]
        each = sum(b - a for a, b in bounds)
        taken = [(log, number) for log in logs for number in log.taken if number in numbers]
        exchange: list[Pair] = [(log.handed[number], log.committed[number]) for log, number in taken]
        kinds = sorted({kind for _, end in whole for name in ("sent", "received") for kind in end[name]})

        def mean(name: str, pairs: list[Pair] = whole) -> float:
            return sum(later[name] - earlier[name] for earlier, later in pairs) / each

        def of_kind(name: str, kind: str) -> float:
            return sum(later[name].get(kind, 0) - earlier[name].get(kind, 0) for earlier, later in whole) / each

        return cls(
            members=len(logs),
            rounds=len(numbers),
            round_s=mean("time"),
            group=sum(len(end["weights"]) for _, end in exchange) / len(taken),
            attempts=sum(end["attempts"] for _, end in exchange) / len(taken),
            python_s=mean("cpu_s"),
            p2pd_s=mean("p2pd_cpu_s"),
            exchange_s=mean("cpu_s", exchange) + mean("p2pd_cpu_s", exchange),
            sent=mean("control_sent"),
            received=mean("control_received"),
            exchange_bytes=mean("control_sent", exchange) + mean("control_received", exchange),
            by_kind={kind: of_kind("sent", kind) + of_kind("received", kind) for kind in kinds},
            opened={kind: of_kind("opened", kind) for kind in kinds},
        )


@dataclass(frozen=True)
class Turn:
    """How one member fared."""

    index: int
    taken: int  # rounds that it was in
    due: float  # its share of all seats
    done: int  # tokens that it handed over, up to the last round that it was in
    counted: int  # of them, as its claims in the agreements say
    waiting: int  # tokens handed over since
    weight: int  # that the agreements gave it

    @property
    def off(self) -> float:
        """By which part of its share it was in more rounds than that, or in fewer (< 0)."""
        return self.taken / self.due - 1


@dataclass(frozen=True)
class Turns:
    """How all fared."""

    turns: list[Turn]
    groups: dict[int, int]  # round -> members
    attempts: float  # in each round that a member was in
    round_s: float
    states: dict[int, set[str]]  # round -> digests that members hold for it
    last: dict[int, int]  # member -> its last round

    @classmethod
    def of(cls, logs: list[MemberLog]) -> Turns:
        weights: dict[int, dict[str, int]] = {}
        states: dict[int, set[str]] = {}
        for log in logs:
            for number, event in log.committed.items():
                weights[number] = event["weights"]
                states.setdefault(number, set()).add(event["state"])
        groups = {number: len(found) for number, found in sorted(weights.items())}
        due = sum(groups.values()) / len(logs)
        taken = [event for log in logs for event in log.committed.values() if event["took_part"]]
        times = sorted(event["time"] for event in logs[0].committed.values())
        return cls(
            turns=[_turn(log, due, weights) for log in logs],
            groups=groups,
            attempts=sum(event["attempts"] for event in taken) / len(taken),
            round_s=(times[-1] - times[0]) / max(len(times) - 1, 1),
            states=states,
            last={log.index: max(log.committed, default=0) for log in logs},
        )

    @property
    def lost(self) -> float:
        """Which part of the work was never counted, nor waits to be."""
        return 1 - sum(turn.counted for turn in self.turns) / sum(turn.done for turn in self.turns)

    @property
    def worst(self) -> float:
        """How far the member that fared worst is from its share, as a part of it."""
        return max(abs(turn.off) for turn in self.turns)

    @property
    def divided(self) -> list[int]:
        """Rounds for which members hold more than one state: none, or the protocol is broken."""
        return [number for number, found in self.states.items() if len(found) > 1]


def _turn(log: MemberLog, due: float, weights: dict[int, dict[str, int]]) -> Turn:
    last = max(log.taken, default=0)
    own = [log.committed[number] for number in log.taken]
    return Turn(
        index=log.index,
        taken=sum(log.peer_id in found for found in weights.values()),
        due=due,
        done=sum(event["tokens"] for number, event in log.handed.items() if number <= last),
        counted=sum(event["tokens"] + event["late_counted"] for event in own),
        waiting=sum(event["tokens"] for number, event in log.handed.items() if number > last),
        weight=sum(found.get(log.peer_id, 0) for found in weights.values()),
    )
