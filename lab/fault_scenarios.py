"""The fault table: stage x kind, each played in a community of real processes, with what came of it as a row.

    with fault_community(folder, inputs, starter) as community:
        for scenario in SCENARIOS:
            print(community.play(scenario))

`test_faults.py` plays them and asserts the rows; `scripts/bench faults` prints them. A scenario names one fault or
several; the rest of a row is measured: what the survivors' logs say of it, attempts at a round that came to nothing,
seconds to the next agreed round, bytes of state that had to be handed over, and when the victim took part again.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.faults import Fault, Faults, Happened
from lab.outcomes import divergences
from lab.processes import Community, LabProcess
from lab.small_community import Inputs, run_config
from lab.wan.community import WanCommunity
from lab.wan.lab import WanLab
from lab.warm_start import WarmStart
from protocol.keys import PeerIdentity

NAMES = ("alice", "bob", "carol", "dave", "erin")
LAB_NAMES = NAMES[:3]
TOKENS_PER_S = 600.0  # of each peer: five fit on a core
ROUND_S = 1.5  # whoever is late on a busy machine misses one round, not two
LAB_ROUND_S = 3.0  # over home lines a peer that is behind needs more than a second to catch up
FROZEN_S = 14.0  # longer than any deadline of a round of this size
BACK_S = 120.0
COMMIT_S = 120.0


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Args:
        faults: that come together.
        does: what the test itself does: "join" (a newcomer comes, whom the peers hand their state), or once the first
            fault has come about "kill the coordinator", "cut" (the victim's cable), "cut all".
        lab: whether it needs cables that can be cut.
        quick: whether the test suite plays it; the others are of the same kind, or take longer.
        slow: whether its slow tests do.
    """

    stage: str
    kind: str
    faults: tuple[Fault, ...]
    does: str = ""
    lab: bool = False
    quick: bool = False
    slow: bool = False


def _kill(*stages: str, **played: bool) -> list[Scenario]:
    return [Scenario(stage, "kill", (Fault("kill", stage),), **played) for stage in stages]


def _corrupt(what: str, stage: str, does: str = "", **played: bool) -> Scenario:
    return Scenario(stage, f"corrupt {what}", (Fault("corrupt", stage, what=what),), does, **played)


def _freeze(stage: str) -> Scenario:
    return Scenario(stage, "freeze", (Fault("freeze", stage, seconds=FROZEN_S),))


SCENARIOS = (
    *_kill("reduce", "voted", quick=True),
    *_kill("work", slow=True),
    *_kill("promise", "group", "send", "averaged", "commit"),
    Scenario("propose", "kill the leader", (Fault("kill", "propose"),), quick=True),
    Scenario("reduce", "kill two at once", (Fault("kill", "reduce", "alice"), Fault("kill", "reduce", "bob"))),
    Scenario("send", "kill p2pd alone", (Fault("kill p2pd", "send"),)),
    _freeze("reduce"),
    _freeze("voted"),
    _corrupt("part", "send", slow=True),
    _corrupt("result", "reduce", quick=True),
    _corrupt("vote", "vote", slow=True),
    _corrupt("state", "serve", does="join", quick=True),
    Scenario("serve", "kill the source", (Fault("kill", "serve"),), "join", quick=True),
    Scenario("vote", "delay", (Fault("delay", "vote", seconds=2.0),), slow=True),
    Scenario("reduce", "kill the coordinator", (Fault("cut", "reduce"),), "kill the coordinator", quick=True),
    Scenario("reduce", "cut", (Fault("cut", "reduce"),), "cut", lab=True, quick=True),
    Scenario("reduce", "cut all", (Fault("cut", "reduce"),), "cut all", lab=True),
)


@dataclass
class Row:
    """What came of a scenario."""

    stage: str
    kind: str
    victims: list[str]
    seen: str  # by the others, in their own words
    attempts_lost: int
    commit_s: float  # from the fault to the next agreed round
    repair_bytes: int  # of states handed over until the victim took part again
    back_s: float | None  # from the fault, or from when it was started again; None: not in time
    restarted: bool
    one_state: bool  # every round committed so far has one state on all peers
    work_kept: (
        str  # of those not hit whose attempt came to nothing: in the next agreed round "yes", one later "late", or "no"
    )
    notes: list[str] = field(default_factory=list)

    @classmethod
    def header(cls) -> str:
        names = ("stage", "what is done", "what the others saw", "attempts lost", "next round, s", "repair, kB")
        names = (*names, "victim back, s", "one state", "others' work kept")
        return "| " + " | ".join(names) + " |\n|" + " --- |" * len(names)

    def to_markdown(self) -> str:
        back = "no" if self.back_s is None else f"{self.back_s:.1f}{' (started again)' if self.restarted else ''}"
        seen = "; ".join([self.seen, *self.notes]).replace("|", "/")
        one_state = "yes" if self.one_state else "no"
        values = (
            self.stage,
            self.kind,
            seen,
            self.attempts_lost,
            f"{self.commit_s:.1f}",
            f"{self.repair_bytes / 1e3:.0f}",
        )
        return "| " + " | ".join(map(str, (*values, back, one_state, self.work_kept))) + " |"


class FaultCommunity:
    """A host and peers that can be broken; use as a context manager.

    Args:
        lab: that the community lives in; its hosts are "host" and one for each of `LAB_NAMES`.
        names: of the peers; with two killed at once, five.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Inputs,
        starter: WarmStart | None,
        lab: WanLab | None = None,
        names: tuple[str, ...] = NAMES,
    ) -> None:
        sync = {"round_seconds": LAB_ROUND_S if lab else ROUND_S, "min_peers": 2}
        config = run_config(inputs, sync=sync)
        self.lab, self.names = lab, LAB_NAMES if lab else names
        self.faults = Faults(folder / "faults")
        if lab is None:
            self.run: Community = Community(
                folder, config, starter=starter, fixed_ports=True, tokens_per_s=TOKENS_PER_S
            )
        else:
            self.run = WanCommunity(folder, config, lab, starter=starter, tokens_per_s=TOKENS_PER_S)
        for name in (*self.names, *(f"late{number}" for number in range(9))):
            self.run.more_environment[name] = self.faults.environment(name)
        self.peers: dict[str, LabProcess] = {}
        self._late = 0

    def __enter__(self) -> FaultCommunity:
        with ExitStack() as undo:
            undo.enter_context(self.run)
            self.host = self.run.host()
            for name in self.names:
                self._start(name)
            self.wait_all_together(0.0)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.run.__exit__()

    @property
    def every_part(self) -> list[LabProcess]:
        """All peers that ever were."""
        return [part for part in self.run.parts if part.name != "host"]

    def wait_all_together(self, since: float) -> None:
        """Wait for a round in which all peers took part."""
        for part in self.peers.values():
            part.wait_for(
                "committed", lambda e: e["time"] > since and e["members"] == len(self.peers) and e["took_part"]
            )

    def play(self, scenario: Scenario) -> Row:
        """Do it, measure, and bring everyone back together."""
        numbers = [self.faults.order(fault) for fault in scenario.faults]
        late = self._join_late() if scenario.does == "join" else None
        happened = [self.faults.wait(number) for number in numbers]
        first = min(event.time for event in happened)
        victims = [event.peer for event in happened]
        self._do(scenario, numbers[0], victims)
        others = {name: part for name, part in self.peers.items() if name not in (*victims, late)}
        if scenario.does == "cut all":
            others = dict(self.peers)
        watched = list(others.values())
        commits = [_committed_after(part, first, happened[0].round) for part in watched]
        restarted = self._bring_back(scenario, victims)
        back_s = self._wait_back([late] if late else victims, first if late else restarted or first, BACK_S)
        if late:
            others |= {late: self.peers[late]}
        row = Row(
            scenario.stage,
            scenario.kind,
            victims,
            seen=self._seen(others, first, commits),
            attempts_lost=len(_lost(others.values(), first, min(commit["time"] for commit in commits))),
            commit_s=min(commit["time"] for commit in commits) - first,
            repair_bytes=self.faults.state_bytes(first),
            back_s=back_s,
            restarted=bool(restarted),
            one_state=not divergences(self.every_part),
            work_kept=_kept(watched, first, commits),
        )
        if late:
            row.notes.append("the newcomer took part in time" if back_s is not None else "the newcomer was lost")
            self.peers.pop(late).stop()
        self.wait_all_together(time.time())
        return row

    # ---- what is done, and undone ------------------------------------------------------------------------------------

    def _start(self, name: str) -> LabProcess:
        self.peers[name] = self.run.peer(name, "--verbose")
        return self.peers[name]

    def _join_late(self) -> str:
        name = f"late{self._late}"
        self._late += 1
        self._start(name)
        return name

    def _do(self, scenario: Scenario, number: int, victims: list[str]) -> None:
        """What a process cannot do to itself."""
        if scenario.does == "kill the coordinator":
            self.host.kill()
        elif scenario.does.startswith("cut"):
            assert self.lab is not None
            self.lab.cut(*(victims if scenario.does == "cut" else self.names))
        self.faults.done(number)
        if scenario.does == "cut all":
            time.sleep(FROZEN_S)
            self.lab.restore(*self.names)  # type: ignore[union-attr]

    def _bring_back(self, scenario: Scenario, victims: list[str]) -> float:
        """Undo it; when a process had to be started again, returns when that was."""
        if scenario.does == "kill the coordinator":
            self.host = self.run.host()
        elif scenario.does == "cut":
            assert self.lab is not None
            self.lab.restore(*victims)
        if not any(fault.kind == "kill" for fault in scenario.faults):
            return 0.0
        again = time.time()
        for name in victims:
            self._start(name)
        return again

    def _wait_back(self, names: list[str], since: float, timeout_s: float) -> float | None:
        """Seconds until all of these have taken part in a round again; None: one has not, and was started again now."""
        try:
            events = [
                self.peers[name].wait_for(
                    "committed", lambda e: e["time"] > since and e["took_part"], timeout_s=timeout_s
                )
                for name in names
            ]
        except AssertionError:
            for name in names:
                self.peers[name].kill()
                self._start(name)
            return None
        return max(event["time"] for event in events) - since

    # ---- what was seen -----------------------------------------------------------------------------------------------

    def _seen(self, others: dict[str, LabProcess], since: float, commits: list[dict[str, Any]]) -> str:
        """The others' first words about it, peer ids replaced by names."""
        told = [line for part in others.values() for line in log_lines(part, since) if _TELLING.search(line.text)]
        left_out = [
            f"left out {peer[-8:]}, {why}" for commit in commits for peer, why in commit["left_out"] if why != "left"
        ]
        if told:
            text = min(told, key=lambda line: line.time).text
        else:
            text = left_out[0] if left_out else f"nothing; the next round had {commits[0]['members']} members"
        for pattern in (r"came to nothing: (.*); the work is kept", r"^round \d+: (.*)"):
            if found := re.search(pattern, text):
                text = found[1]
        for name in (*self.names, *(f"late{number}" for number in range(self._late))):
            path = self.run.home(name) / "identity"
            if path.exists():
                text = text.replace(PeerIdentity.load_or_create(path).peer_id[-8:], name)
        return text


_TELLING = re.compile(r"came to nothing|expected state|no group came|could not give chunks")
_LOST = re.compile(r"round (\d+), attempt (\d+) came to nothing")


@dataclass(frozen=True)
class Line:
    """One line of a peer's log."""

    time: float  # Unix seconds
    text: str


def log_lines(part: LabProcess, since: float) -> list[Line]:
    """What a peer that runs with --verbose has logged since then."""
    found = []
    for line in part.said.splitlines():
        if match := re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w+ [\w.]+: (.*)", line):
            at = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            if at >= since:
                found.append(Line(at, match[2]))
    return found


def _lost(parts: Any, since: float, until: float) -> set[tuple[str, str]]:
    """(round, attempt) that came to nothing in between, by anyone's word."""
    lines = [line for part in parts for line in log_lines(part, since) if line.time <= until]
    return {(found[1], found[2]) for line in lines if (found := _LOST.search(line.text))}


def _kept(parts: list[LabProcess], since: float, commits: list[dict[str, Any]]) -> str:
    """What became of the work whose attempt came to nothing: used at once "yes", a round later "late", or "no"."""
    found = "yes"
    for part, commit in zip(parts, commits, strict=True):
        if commit["took_part"] or not _lost([part], since, commit["time"]):
            continue
        later = part.wait_for("committed", lambda e, last=commit["round"]: e["round"] > last, timeout_s=COMMIT_S)
        found = "late" if later["took_part"] and found != "no" else "no"
    return found


def _committed_after(part: LabProcess, since: float, round: int) -> dict[str, Any]:
    """The first agreed round that was not agreed before the fault."""
    return part.wait_for("committed", lambda e: e["time"] > since and e["round"] >= round, timeout_s=COMMIT_S)


__all__ = ["LAB_NAMES", "NAMES", "SCENARIOS", "FaultCommunity", "Happened", "Row", "Scenario"]
