"""The shelf: a member's newest committed state, and the states that it can still give to others.

Beside the head, one state is kept: the one before, which others may be fetching, or, once room was made for it, the
candidate that is being voted on. The last rounds' averages are kept as they travelled, as far as they are small: who
missed a round needs no more (`peer.sync.averages`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from peer.sync.averages import Average
from peer.training.state import SharedState
from protocol.agreement import Agreement
from protocol.succession import Last

CHAIN_ROUNDS = 512  # of which the agreements are kept, as far as they fit, to show others how the run got here
MAX_CHAIN_BYTES = 4 << 20
MOST_CANDIDATES = 2


@dataclass(frozen=True)
class Head:
    """The newest committed state, and what committed it (nothing, for genesis)."""

    state: SharedState
    agreement: Agreement | None = None

    @property
    def round(self) -> int:
        return self.state.round

    @property
    def digest(self) -> str:
        return self.state.digest

    @property
    def last(self) -> Last:
        """This round, as far as the next one hangs on it."""
        return Last.of(self.agreement) if self.agreement else Last(self.round, self.digest)

    @property
    def weights(self) -> dict[str, int]:
        """What each member of the last agreement counts for; empty at genesis."""
        return dict(self.agreement.weights) if self.agreement else {}


class Shelf:
    """The head, and the states around it."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._previous: SharedState | None = None
        self._candidates: list[SharedState] = []  # that may be agreed on: the group's, and one that was fetched
        self._averages: dict[str, Average] = {}  # digest of the state that each led to -> it, the oldest first
        self._agreements: deque[tuple[int, bytes]] = deque(maxlen=CHAIN_ROUNDS)  # MAX_CHAIN_BYTES at most

    def make_room(self) -> None:
        """A new state is about to be computed: stop keeping the one before."""
        self._previous = None

    def propose(self, candidate: SharedState) -> None:
        """Keep a state that may be agreed on."""
        others = [state for state in self._candidates if state.digest != candidate.digest]
        self._candidates = [*others, candidate][-MOST_CANDIDATES:]

    def advance(self, head: Head) -> None:
        before = self.head.agreement
        self._previous, self._candidates, self.head = self.head.state, [], head
        if head.agreement is not None:
            if before is not None and head.agreement.base != before.state:  # rounds are missing, or were undone
                self._agreements.clear()
            self._agreements.append((head.round, head.agreement.to_bytes()))
            while sum(len(data) for _, data in self._agreements) > MAX_CHAIN_BYTES:
                self._agreements.popleft()

    def keep_average(self, state: str, average: Average) -> None:
        """Keep what led to a state, and of the older ones what fits into half a copy of the parameters."""
        self._averages.pop(state, None)
        self._averages[state] = average
        room = 2 * self.head.state.parameters.numel()  # bytes
        while self._averages and sum(item.size_bytes for item in self._averages.values()) > room:
            del self._averages[next(iter(self._averages))]

    def average(self, state: str) -> Average | None:
        """What led to a state, when it is still here."""
        return self._averages.get(state)

    def chain_since(self, round: int) -> list[bytes]:
        """The agreements of the rounds after this one, up to the one before the head's; empty when some are gone."""
        wanted = range(round + 1, self.head.round)
        found = dict(self._agreements)
        chain = [found[number] for number in wanted if number in found] if len(wanted) < CHAIN_ROUNDS else []
        return chain if len(chain) == len(wanted) else []

    def chain_to_head(self, round: int) -> list[bytes]:
        """The agreements of the rounds after this one, up to the head's; empty when some are gone or there are none."""
        before, agreement = self.chain_since(round), self.head.agreement
        is_whole = agreement is not None and round + 1 + len(before) == self.head.round
        return [*before, agreement.to_bytes()] if agreement is not None and is_whole else []

    def held(self) -> list[SharedState]:
        """The states that are here."""
        return [state for state in (*self._candidates, self.head.state, self._previous) if state is not None]

    def find(self, digest: str) -> SharedState | None:
        """The state with this digest, if it is still here."""
        return next((state for state in self.held() if state.digest == digest), None)
