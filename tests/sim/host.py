"""The host of a simulated run: its ledger's tip, who announces itself, and its word on who goes on.

What enters the ledger says `coordinator.branch`, whether the run stands still and what the word is
`coordinator.standstill`. Only its owner is made up: who asks as soon as the host would say yes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.branch import Verdict, judge
from coordinator.roster import Presence
from coordinator.standstill import AWAY_S, Standing, named
from peer.round import events as e
from peer.round import follow
from protocol import canonical
from protocol.agreement import Agreement
from protocol.epoch import Epoch
from protocol.errors import RefusedError, VerificationError
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.succession import Last
from tests.sim.spec import RUN

if TYPE_CHECKING:
    from tests.sim.member import Member

HOST = "host"  # its name in a plan: who is cut off from it as from a member that is in no half
AWAY = 12  # ticks without a word, after which a member is taken for gone
PATIENCE = 50  # ticks from one word to the next: those who are named need some time
TICK_S = AWAY_S / AWAY


class Host:
    """The coordinator, as far as the rounds hang on it.

    Attributes:
        tip: the newest round in its ledger.
        word: the newest that it has given.
        owners: how many faults say at the moment that its owner lets whoever is there go on.
    """

    def __init__(self, first: Last, spec: RunSpec) -> None:
        self.tip, self.spec = first, spec
        self.newest: Agreement | None = None  # that the tip is of
        self.states = {first.round: first.state}
        self.seen: dict[str, Presence] = {}
        self.word: Signed[Epoch] | None = None
        self.owners, self.asks_at, self.moved_at = 0, 0.0, 0.0

    def announced(self, me: Member, now: float) -> list[e.Event]:
        """A member says that it is here, and shows the rounds that the ledger lacks; what the host answers."""
        assert me.core is not None
        leaving = me.core.state.leaving is not None
        self.seen[me.name] = Presence(
            me.name, (), me.last.round, 1.0, frozenset([me.last.state]), now * TICK_S, leaving=leaving
        )
        for agreement in me.chain_since(self.tip.round):
            self._take(agreement, now)
        said: list[e.Event] = [e.CoordinatorSaid(self.tip.round, self.word)]
        if self.newest is not None and follow.lacks_anchor(me.core.state):
            said.append(e.Anchored(self.newest))
        return said

    def _take(self, agreement: Agreement, now: float) -> None:
        committed = self.states.get(agreement.round)
        try:
            verdict = judge(agreement, self.tip, self.spec, committed_state=committed, named=self.word)
        except VerificationError:
            return
        if verdict is Verdict.COMMIT:
            self.newest, self.tip, self.moved_at = agreement, Last.of(agreement), now
            self.states[agreement.round] = agreement.state

    def go_on(self, now: float) -> Signed[Epoch] | None:
        """What comes of it when its owner lets whoever is there go on; None: nothing."""
        if now < self.asks_at:
            return None
        epoch = 1 + (self.word.value.epoch if self.word else 0)
        standing = Standing.of(self.tip, self.seen, now * TICK_S, (now - self.moved_at) * TICK_S)
        try:
            value = named(self.tip, standing, RUN, epoch)
        except RefusedError:
            return None
        self.asks_at = now + PATIENCE
        digest = canonical.sha256_hex(f"{HOST}/{epoch}".encode())
        self.word = Signed(value, HOST, digest.encode(), digest)
        return self.word
