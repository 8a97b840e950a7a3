"""One core in memory, spoken to by hand: what the others say and ask is given by the test, and nothing waits.

    lone = Lone("me", "abc")            # it and three others have made round 1 together
    lone.hears("abc", tokens=100)
    lone.step(lone.proposed("a"))       # -> what it does, promises and votes having come to its disk

`tests/table_kit.py` has several that talk to each other.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from peer.round import actions as a
from peer.round import events as e
from peer.round.box import Box
from peer.round.core import Core
from peer.round.group import Group, Member
from peer.round.state import Config, Timing
from protocol import canonical
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim, UpdateDigest
from protocol.succession import Last
from tests.kit.builders import make_spec

VALUES, CHUNK_VALUES = 36, 1 << 16
TIMING = Timing()
BASE, GENESIS = "1" * 64, "0" * 64
_numbers = itertools.count()


def spec_of(**sync: Any) -> RunSpec:
    base = make_spec(rules=2)
    fields = {"round_tokens": None, "round_seconds": 1.0, "min_peers": 1, "max_group": 64} | sync
    return base.model_copy(update={"sync": base.sync.model_copy(update=fields)})


def signed(name: str, statement: Any) -> Signed[Any]:
    """As if `name` had signed it; no two have the same digest."""
    return Signed(statement, name, b"", canonical.sha256_hex(f"{name} {next(_numbers)}".encode()))


def after_round_1(weights: dict[str, int]) -> Last:
    return Last(1, BASE, weights, base=GENESIS)


def claim_of(
    name: str, spec: RunSpec, round: int = 2, base: str = BASE, tokens: int = 100, **fields: Any
) -> Signed[Any]:
    update = UpdateDigest(root="0" * 64, values=VALUES, chunk_values=CHUNK_VALUES, codec=spec.sync.wire)
    found = {"run": spec.digest, "round": round, "base": base, "tokens": tokens, "flops": 1} | fields
    return signed(name, Claim(**({"first_batch": 0, "batches": 10**6, "update": update} | found)))


def make_core(name: str, spec: RunSpec, last: Last, box: Box | None = None, now: float = 0.0, **config: Any) -> Core:
    made = Config(name, spec.digest, spec, lambda said: signed(name, said), VALUES, CHUNK_VALUES, **config)
    return Core(made, last, box or Box(), now)


class Lone:
    """One member, and names for the others.

    Args:
        others: letters; each has a weight of 100 in the last agreement, as this member has, unless `weights` is given.
    """

    def __init__(
        self,
        me: str = "me",
        others: Iterable[str] = "abc",
        *,
        weights: dict[str, int] | None = None,
        last: Last | None = None,
        box: Box | None = None,
        timing: Timing = TIMING,
        reachable: bool = True,
        **sync: Any,
    ) -> None:
        self.me, self.now, self.spec = me, 0.0, spec_of(**sync)
        last = last or after_round_1(weights or dict.fromkeys((me, *others), 100))
        self.core = make_core(me, self.spec, last, box, timing=timing, reachable=reachable)
        self.state = self.core.state
        self.saves: Callable[[Box], None] = lambda box: None  # may raise OSError

    def step(self, *events: e.Event, after_s: float = 0.0) -> list[Any]:
        """What it does, one event after the other."""
        self.now += after_s
        done: list[Any] = []
        pending = deque(events)
        while pending:
            for action in self.core.step(pending.popleft(), self.now):
                if isinstance(action, a.SaveBox):
                    pending.appendleft(saved(self.saves, action.box))
                else:
                    done.append(action)
        return done

    def wait(self, seconds: float) -> list[Any]:
        """What it does by itself meanwhile."""
        done, end = self.step(), self.now + seconds
        while self.state.wake_at <= end:
            self.now = max(self.now, self.state.wake_at)
            done += self.step(e.Tick())
        self.now = end
        return done + self.step(e.Tick())

    def hears(self, names: Iterable[str], **said: Any) -> list[Any]:
        """Others say where they stand: by default where this member does."""
        fields = {"round": self.state.round, "base": self.state.last.state} | said
        return [action for name in names for action in self.step(e.Heard(name, e.Said(**fields)))]

    def works(self, tokens: int = 100) -> list[Any]:
        """It has work, and has handed it over."""
        claim = claim_of(self.me, self.spec, self.state.round, self.state.last.state, tokens)
        return self.step(e.Worked(tokens, 0.1), e.Ready(claim))

    def proposed(self, by: str, attempt: int = 0, call: object = "proposal") -> e.Proposed:
        others = [name for name in self.state.last.weights if name != by]
        return e.Proposed(call, by, self.state.round, self.state.last.state, attempt, 3.0, [by, *others])

    def claim(self, name: str, **fields: Any) -> Signed[Any]:
        return claim_of(name, self.spec, self.state.round, self.state.last.state, **fields)

    def member(self, name: str, **fields: Any) -> Member:
        return Member(name, self.claim(name, **fields), "", True)

    def mine(self) -> Member:
        claim = self.state.own.claim
        assert claim is not None
        return Member(self.me, claim, "", True)

    def group(self, leader: str, *members: Member, **fields: Any) -> Group:
        found = {"attempt": 0} | fields
        return Group(self.state.round, self.state.last.state, found.pop("attempt"), leader, members, **found)


def of(kind: type, actions: Sequence[Any]) -> list[Any]:
    """Those of one kind."""
    return [action for action in actions if isinstance(action, kind)]


def saved(saves: Callable[[Box], None], box: Box) -> e.Event:
    try:
        saves(box)
    except OSError as error:
        return e.BoxNotSaved(str(error))
    return e.BoxSaved()
