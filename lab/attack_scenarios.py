"""Six honest members and an attacker, in real processes: what the run came to, what the attacker got, who said what.

    for scenario in SCENARIOS:
        print(play(scenario, folder, inputs, starter, Terms()).to_markdown(clean))

`scripts/bench attackers` prints the table; `test_attackers.py` plays rows of it (slow). An attacker is the real client
with one thing changed (`attackers.py`). All members that are there from the start begin at the same moment, so that
they are in round 1 together; a row in which nobody makes a round any more ends and says so.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import attackers, pacing
from lab.attack_rows import Row
from lab.outcomes import credited_to, divergences, ledger_entries
from lab.processes import Community, LabProcess
from lab.small_community import Inputs, run_config
from lab.warm_start import WarmStart
from protocol.keys import PeerIdentity

HONEST = 6
START_S = 180.0
MEET_S = 8.0  # to hear each other before anyone works
TRIES = 3  # a machine that is too busy does not start libp2p in time
ENOUGH_S = 120.0  # for the host to evaluate what it has, and to leave
LOOK_S = 0.2


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Args:
        attack: a key of `attackers.ATTACKS`; empty: there is no attacker.
        count: of attackers, each with an identity of its own.
        after_round: they come when this round is made, and begin all at the same moment; 0: from the start.
        killed_after: the attacker is killed when this round is made; 0: it is not.
        die_counted: the attackers are killed as soon as all of them have been in an agreed round, or one of them two
        rounds ago.
        speeds: of the honest members, tokens/s; empty: as fast as they can, which is alike.
    """

    name: str
    attack: str = ""
    count: int = 1
    after_round: int = 0
    killed_after: int = 0
    die_counted: bool = False
    speeds: tuple[float, ...] = ()


ONE_STRONG = (1200.0, *(HONEST - 1) * (500.0,))  # a newcomer's weight may hang on the strongest member's
SCENARIOS = (
    Scenario("clean", count=0),
    Scenario("negated x10", "negated-x10"),
    Scenario("noise x10", "noise-x10"),
    Scenario("tokens x100", "tokens-x100"),
    Scenario("batches x100", "batches-x100"),
    Scenario("batches x100 and killed after round 3", "batches-x100", killed_after=3),
    Scenario("NaN", "nan"),
    Scenario("five idle", "idle", count=5),
    Scenario(
        "five that claim a million each and die", "claim-and-die", 5, after_round=2, die_counted=True, speeds=ONE_STRONG
    ),
)


AUDITED = (
    *SCENARIOS[:2],
    *(
        Scenario(attack.replace("-", " "), attack)
        for attack in (
            "negated", "noise", "noise-x10", "zeros", "huge", "nan", "stale", "label-flip", "other-data",
            "made-up-moments", "tokens-x2", "batches-x100", "shows-nothing",
        )
    ),
    Scenario("two, negated", "negated", count=2),
    Scenario("two, tokens x2", "tokens-x2", count=2),
)  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """What all rows have in common."""

    wire: str = "int4"
    rounds: int = 10
    round_tokens: int = 48_000  # of all members together
    stall_s: float = 120.0  # without a round: then the row ends
    limit_s: float = 600.0  # of the row, from the first micro-batch on
    audit: float = 0.0  # share of the claims that are replayed, after each member's first three; 0: none are


def play(scenario: Scenario, folder: Path, inputs: Inputs, starter: WarmStart, terms: Terms) -> Row:
    """Run one community in an empty folder, to its end or until it makes no round any more."""
    config = run_config(
        inputs,
        data={"sequence_length": 128, "held_out": 0.02, "held_out_sequences": 64},
        run={"rounds": terms.rounds},
        sync={"round_tokens": terms.round_tokens, "min_peers": 3, "wire": terms.wire},
        inner={"lr": 4e-3, "micro_batch": 16, "batch": 16},
        publish={"every_rounds": 1},
        **({"credit": {"hold_rounds": 4}, "audit": {"share": terms.audit, "reveal_rounds": 4}} if terms.audit else {}),
        host={"reveal_minutes": 1.0},
    )
    with Community(folder, config, starter=starter) as run:
        return _Play(scenario, run, terms).whole()


class _Play:
    """One row while it is played."""

    def __init__(self, scenario: Scenario, run: Community, terms: Terms) -> None:
        self.scenario, self.run, self.terms = scenario, run, terms
        self.begin, self.come, self.begin_late = (run.folder / name for name in ("begin", "come", "begin-late"))
        self.honest: list[LabProcess] = []
        self.attackers: list[LabProcess] = []
        self.over = False  # the attackers have been killed

    def whole(self) -> Row:
        host, scenario = self.run.host("--until-finished"), self.scenario
        self.honest = [self._start_honest(f"honest-{number}") for number in range(1, HONEST + 1)]
        self._wait_ready(self.honest)  # the first that came begin the run, and are honest
        self.attackers = [self._start_attacker(f"attacker-{number}") for number in range(1, scenario.count + 1)]
        self._wait_ready(self.attackers)
        self._settle(self.honest, self._start_honest)
        if not scenario.after_round:
            self._settle(self.attackers, self._start_attacker)
        self.begin.touch()
        began = time.time()
        ended = self._watch(began)
        said = self._said()
        self._end(host, ended)
        return self._measure(host, began, ended, said)

    def _start_honest(self, name: str) -> LabProcess:
        number, speeds = int(name.removeprefix("honest-")), self.scenario.speeds
        paced = pacing.environment(speeds[number - 1]) if speeds else {}
        self.run.more_environment[name] = pacing.beginning(self.begin) | paced
        return self.run.peer(name)

    def _start_attacker(self, name: str) -> LabProcess:
        hostile, late = attackers.environment(self.scenario.attack), self.scenario.after_round > 0
        held = pacing.beginning(self.begin_late) | pacing.coming(self.come) if late else pacing.beginning(self.begin)
        self.run.more_environment[name] = hostile | held
        return self.run.peer(name)

    def _settle(self, parts: list[LabProcess], start: Callable[[str], LabProcess]) -> None:
        """Give them time to hear of each other; start those again whose network did not come up."""
        for _ in range(TRIES if parts else 0):
            time.sleep(MEET_S)
            ended = [index for index, part in enumerate(parts) if part.ended]
            if not ended:
                return
            for index in ended:
                parts[index] = start(parts[index].name)
            self._wait_ready([parts[index] for index in ended])
        assert not parts, f"did not stay after {TRIES} starts: {[part.said[-500:] for part in parts if part.ended]}"

    @staticmethod
    def _wait_ready(parts: list[LabProcess]) -> None:
        for part in parts:
            part.wait_for("step", step="finding-members", timeout_s=START_S)

    # ---- while it runs -----------------------------------------------------------------------------------------------

    def _watch(self, began: float) -> str:
        """Until the end; returns what that was."""
        newest, since = 0, began
        while newest < self.terms.rounds:
            time.sleep(LOOK_S)
            now, round = time.time(), max(part.round for part in self.honest)
            if round > newest:
                newest, since = round, now
            self._act(newest)
            if now - since > self.terms.stall_s:
                return f"no round for {self.terms.stall_s:.0f} s"
            if now - began > self.terms.limit_s:
                return "out of time"
        return "all rounds"

    def _act(self, newest: int) -> None:
        scenario = self.scenario
        if 0 < scenario.after_round <= newest and not self.come.exists():
            self.come.touch()
            self._settle(self.attackers, self._start_attacker)
            self.begin_late.touch()
        dies = scenario.die_counted and self._are_counted(newest)
        if not self.over and (dies or 0 < scenario.killed_after <= newest):
            self.over = True
            for part in self.attackers:
                part.kill()

    def _are_counted(self, newest: int) -> bool:
        """Whether all attackers have been in a round that an honest member has committed, or one was two rounds ago."""
        events = [part.find("committed", took_part=True) for part in self.attackers]
        rounds = [event["round"] for event in events if event is not None and event["round"] <= newest]
        return bool(rounds) and (len(rounds) == len(events) or newest >= min(rounds) + 2)

    @staticmethod
    def _end(host: LabProcess, ended: str) -> None:
        """Have the host evaluate what it has, and say how the run stands."""
        if ended != "all rounds":
            host.send(signal.SIGINT)
        host.wait_for("ended", timeout_s=ENOUGH_S)

    # ---- what it came to ---------------------------------------------------------------------------------------------

    def _measure(self, host: LabProcess, began: float, ended: str, said: dict[str, int]) -> Row:
        mine, theirs = self._peer_ids()
        status = [event["status"] for event in host.events if "status" in event][-1]
        losses = [(item["round"], item["held_out_loss"]) for item in status["evaluations"]]
        credit = credited_to(self.run)
        commits = [(number, event["time"]) for part in self.honest for number, event in part.committed().items()]
        last = max((number for number, _ in commits), default=0)
        return Row(
            self.scenario.name,
            self.terms.wire,
            ended,
            rounds=last,
            seconds=min((at for number, at in commits if number == last), default=began) - began,
            loss=losses[-1][1],
            loss_round=losses[-1][0],
            losses=losses,
            shares=_shares(self.run, mine),
            credit=sum(credit.get(peer, 0) for peer in mine),
            credit_honest=sum(credit.get(peer, 0) for peer in theirs) / len(theirs),
            one_state=not divergences(self.honest),
            **self._audits(mine),
            said=said,
            host_said=_counted(_warnings(host), mine, theirs),
        )

    def _audits(self, mine: set[str]) -> dict[str, Any]:
        """What the ledger says of audits, as the fields of a row."""
        verdicts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        banned, tokens, drawn, farthest = dict[str, int](), dict[str, int](), set[str](), 0
        for entry in ledger_entries(self.run):
            kind, is_mine = entry["type"], entry.get("peer_id") in mine
            if kind == "claim":
                tokens[entry["claim"]] = entry["tokens"]
            elif kind == "audit":
                verdicts[is_mine][entry["verdict"]] += 1
                drawn |= {entry["claim"]} if entry["ppm"] else set()
                if not is_mine:
                    farthest = max(farthest, *(value for value in entry["ppm"].values()), 0)
            elif kind == "ban":
                who = "attacker" if is_mine else "honest"
                banned[f"{who} {entry['peer_id'][-8:]}"] = entry["round"]
        return {
            "verdicts": dict(verdicts[True]),
            "verdicts_honest": dict(verdicts[False]),
            "banned": banned,
            "replayed": sum(tokens[claim] for claim in drawn) / max(1, sum(tokens.values())),
            "farthest_ppm": farthest,
        }

    def _peer_ids(self) -> tuple[set[str], set[str]]:
        """The attackers', and the honest members'."""
        homes = [[self.run.home(part.name) for part in parts] for parts in (self.attackers, self.honest)]
        mine, theirs = ({PeerIdentity.load_or_create(home / "identity").peer_id for home in some} for some in homes)
        return mine, theirs

    def _said(self) -> dict[str, int]:
        """By the honest members: warnings, why they wait, whom a round was made without."""
        said: list[str] = []
        for part in self.honest:
            for event in list(part.events):
                if event["event"] in ("waiting", "paused") and event["reason"]:
                    said.append(f"{event['event']}: {event['reason']}")
                said += [f"left out {peer}: {why}" for peer, why in event.get("left_out", [])]
            said += _warnings(part)
        return _counted(said, *self._peer_ids())


def _shares(run: Community, peers: set[str]) -> dict[int, float]:
    """Round in the ledger in which one of these was -> their share of its weight."""
    with sqlite3.connect(f"file:{run.run / 'ledger.db'}?mode=ro", uri=True) as store:
        rows = store.execute("select round, agreement from rounds order by round").fetchall()
    store.close()
    found = {}
    for number, data in rows:
        weights: dict[str, int] = json.loads(data)["weights"]
        held = sum(weight for peer, weight in weights.items() if peer in peers)
        if held:
            found[number] = held / sum(weights.values())
    return found


def _warnings(part: LabProcess) -> list[str]:
    """What a process has logged: without --verbose that is what someone should act on."""
    line = r"^\d{4}-\d\d-\d\d \S+ (?:WARN|ERROR|CRITICAL)\w* (?:peer|coordinator|protocol)[\w.]*: (.*)"
    broken = [text for text in part.said.splitlines() if text.startswith(("Traceback", "error:"))]
    return re.findall(line, part.said, re.MULTILINE) + broken


def _counted(said: list[str], mine: set[str], theirs: set[str]) -> dict[str, int]:
    """What was said -> how often, the most frequent first; what differs in names and numbers alone is the same."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for text in said:
        for name, peers in (("the attacker", mine), ("a member", theirs)):
            for peer in peers:
                text = text.replace(peer, name).replace(f"…{peer[-8:]}", name).replace(peer[-8:], name)
        kind = re.sub(r"\d+(\.\d+)?", "0", re.sub(r"\b[0-9a-f]{8,64}\b", "", text))
        count[kind] += 1
        first.setdefault(kind, text)
    return {first[kind]: times for kind, times in count.most_common()}
