"""The state of a member in the rounds: plain data, changed by `Core.step` alone; others look and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peer.round.actions import Action
from peer.round.blame import Blame
from peer.round.box import Ballot, Box
from peer.round.events import Proposed, Said
from peer.round.farewells import Farewells
from peer.round.group import Group, Member, Terms
from peer.round.length import RoundLength
from protocol.agreement import Agreement
from protocol.epoch import Word
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim, Promise, Vote
from protocol.succession import Last, decides_after, epoch_after

NEVER = float("inf")


@dataclass(frozen=True)
class Timing:
    """Deadlines and intervals of what is decided. The defaults are for lines and machines at home."""

    look_s: float = 0.05  # after something was heard that may change what is to be done
    poll_s: float = 0.25  # while somebody is waited for, who may be gone
    next_in_line_s: float = 1.5  # before the next in line proposes in place of a silent one
    hold_most_s: float = 3.0  # that a round which is due is held back, for one who may be gone: all work on
    propose_least_s: float = 3.0  # members have this long, or three micro-batches, to answer a proposal
    propose_most_s: float = 60.0
    retry_most_s: float = 5.0  # between two attempts at one round
    quick_s: float = 1.0  # whoever declines after longer than that has kept the others waiting for nothing
    look_while_busy_s: float = 3.0  # a group that takes longer is given up for a newer head that others stand on
    majority_s: float = 15.0  # from one's own vote to the majority, at most; more after an all-reduce that took long
    linger_s: float = 0.25  # for the votes that come after the majority
    vote_again_s: float = 1.0  # before a vote that was not answered is sent again
    relay_s: float = 5.0  # for votes that come through others
    behind_s: float = 0.6  # before fetching the next round: most of the time the missing vote is about to come
    head_soon_s: float = 2.0  # to answer with a head: first all are asked briefly, for one may never answer
    head_most_s: float = 20.0
    head_failed_s: float = 30.0  # that a member which could not give its head is not asked again
    search_again_s: float = 1.0  # after nobody could hand over a head
    leave_s: float = 5.0  # to finish a group that is under way
    gossip_s: float = 0.3  # between two progress messages to one member, at full pace
    alive_s: float = 3.0  # after nothing was heard for so long, a member is not counted on; more where all are slow
    call_s: float = 3.0  # for a small message and its answer, on a line that is not slow
    call_most_s: float = 20.0
    forget_s: float = 120.0


@dataclass(frozen=True)
class Config:
    """What does not change while a member takes part.

    Args:
        sign: signs a statement by this member's key.
        values: trainable parameters.
        chunk_values: of an encoded update.
        reachable: others can open streams to this member, so that it can reduce for them.
        reduce_only: it has no trainer, and its certificate says that it may reduce for all.
    """

    me: str
    run: str
    spec: RunSpec
    sign: Callable[[Any], Signed[Any]]
    values: int
    chunk_values: int
    certificate: Callable[[], str] = lambda: ""  # this member's own, of the moment
    certificate_of: Callable[[str], str] = lambda peer: ""  # that another member has shown
    reachable: bool = True
    reduce_only: bool = False
    timing: Timing = Timing()


@dataclass(slots=True)
class View:
    """One other member, as this one sees it."""

    peer: str
    said: Said
    heard: float  # when something last came from it
    patience_s: float  # for its answers: they queue behind bulk on a slow line
    alive_s: float  # after nothing was heard of it for so long, it is not counted on


@dataclass(slots=True)
class Own:
    """What this member brings to the round in hand."""

    tokens: int = 0
    step_s: float = 0.0
    is_called: bool = False  # the trainer was told to hand over
    claim: Signed[Claim] | None = None  # once the trainer has handed over
    since: float = 0.0  # when that was


# ---- phases ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Work:
    """In no attempt: the trainer works, the clock is watched."""


@dataclass(slots=True)
class Lead:
    """This member has asked the others for their claims."""

    attempt: int
    started: float
    timeout_s: float
    asked: tuple[str, ...]
    deciding: frozenset[str]  # those whose votes decide: they are waited for
    left_out: dict[str, str]  # peer id -> why
    members: dict[str, Member] = field(default_factory=dict)  # who joins
    cast: dict[str, Mapping[Ballot, Group]] = field(default_factory=dict)  # what each voted for before, in which group
    promises: dict[str, Signed[Promise]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)  # who was asked and kept the others waiting for nothing
    unheard: dict[str, frozenset[str]] = field(default_factory=dict)  # peer id -> whom it does not hear


@dataclass(slots=True)
class Bound:
    """This member has promised an attempt to another leader."""

    leader: str
    attempt: int
    call: object | None  # not answered yet
    asked: Sequence[str]
    ready_by: float
    until: float
    is_joined: bool = False  # the leader has this member's claim


@dataclass(slots=True)
class Averaging:
    group: Group
    since: float


@dataclass(slots=True)
class Fetching:
    """A state that the group completes, or that most of it has voted for, is not here yet."""

    group: Group
    state: str
    since: float
    then_commit: bool


@dataclass(slots=True)
class Voting:
    group: Group
    state: str
    since: float
    until: float
    vote: Signed[Vote]  # this member's
    through_others: frozenset[str]  # members that this one cannot reach: their votes come through others
    sent: float
    decided: str = ""
    decided_at: float = 0.0


@dataclass(slots=True)
class Keep:
    """A new head is being written down."""

    round: int


@dataclass(slots=True)
class Left:
    """Nothing is decided any more."""


_GROUPED = (Averaging, Fetching, Voting)
Phase = Work | Lead | Bound | Averaging | Fetching | Voting | Keep | Left


@dataclass(slots=True)
class Saving:
    """A box on its way to the disk, and what comes after."""

    box: Box
    phase: Phase | None  # then
    actions: list[Action]
    unless: list[Action]  # when it cannot be saved


@dataclass(slots=True)
class Search:
    """Looking for a later head: beside all that a member does otherwise."""

    behind_since: float | None = None
    asked: str = ""  # whose answer is awaited
    asked_at: float = 0.0
    queue: list[tuple[str, float]] = field(default_factory=list)  # who is still to be asked, and how patiently
    failed: dict[str, float] = field(default_factory=dict)  # peer id -> until when it is not asked
    retry_at: float = 0.0
    chain: list[Agreement] = field(default_factory=list)  # to the head that is being fetched
    source: str = ""  # who showed it
    anchor: Agreement | None = None  # as the coordinator's ledger has it
    wants_anchor: bool = False  # others are ahead, and cannot show all the way from here


@dataclass(slots=True)
class Leaving:
    until: float  # a group under way may take so long
    is_final: bool
    holders: frozenset[str]  # others that have this member's newest state
    rounds: list[int]  # for which farewells are still to be said
    told: bool = False


@dataclass(slots=True)
class State:
    """All that a member's decisions hang on."""

    config: Config
    last: Last
    box: Box
    now: float
    phase: Phase = field(default_factory=Work)
    saving: Saving | None = None
    own: Own = field(default_factory=Own)
    word: Signed[Word] | None = None  # the coordinator's newest, on who decides some round
    ledger_round: int = 0
    acceptors: list[tuple[Last, Any, Farewells, dict[str, int]]] = field(default_factory=list)  # see `turns.counted`
    views: dict[str, View] = field(default_factory=dict)
    gossip_s: float = 0.3  # between two progress messages to one member
    farewells: dict[int, Farewells] = field(default_factory=dict)  # by round
    votes: dict[str, Signed[Vote]] = field(default_factory=dict)  # in this round, each member's in the highest attempt
    gave_up: set[tuple[str, str, int]] = field(default_factory=set)  # (peer id, group, attempt)
    vote_before: Signed[Vote] | None = None  # this member's, of the round before, for those that are still counting
    newest_group: Group | None = None  # the last one taken in this round: its end may be known better by others
    blame: Blame = field(default_factory=Blame)
    idle: dict[str, int] = field(default_factory=dict)  # peer id -> rounds that it was here for and did nothing in
    debts: dict[str, float] = field(default_factory=dict)  # peer id -> rounds that it was due in, less those it was in
    search: Search = field(default_factory=Search)
    length: RoundLength = field(default_factory=lambda: RoundLength(overlap=False))
    usual_s: float = 0.0  # how long an all-reduce has taken lately; 0: not measured
    round_started: float = 0.0
    due_since: float | None = None
    retry_at: float = 0.0
    attempts: int = 0  # that this member has joined in this round
    parked: Proposed | None = None  # until the head is on disk
    leaving: Leaving | None = None
    wake_at: float = NEVER
    look_at: float = NEVER

    @property
    def round(self) -> int:
        """The round in hand."""
        return self.last.round + 1

    @property
    def epoch(self) -> int:
        """That statements of the round in hand name."""
        return epoch_after(self.last, self.word.value if self.word else None)

    @property
    def deciding_word(self) -> Signed[Word] | None:
        """The coordinator's, where it says who decides the round in hand."""
        return self.word if self.word is not None and decides_after(self.word.value, self.last) else None

    @property
    def is_grouped(self) -> bool:
        return isinstance(self.phase, _GROUPED)

    def terms(self) -> Terms:
        config = self.config
        values = config.spec.sync.fragment_values(self.round, config.values)
        return Terms(config.run, config.spec, values, config.chunk_values, self.last, self.deciding_word)

    def farewells_now(self) -> Farewells:
        """All that is known for the round in hand."""
        return self.farewells.get(self.round, _NONE)


_NONE = Farewells()
