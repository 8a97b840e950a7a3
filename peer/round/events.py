"""What happens to a member: each is plain data that `Core.step` takes. Signatures and certificates were checked before.

by      an admitted member, who said it
call    a question that is answered once, with an `actions.Reply`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peer.round.group import Group, Member, Shown
from protocol.agreement import Agreement
from protocol.epoch import Word
from protocol.signed import Signed
from protocol.statements import Claim, Farewell, Promise, Vote


@dataclass(slots=True)
class Said:
    """What a member says of itself, many times a minute; believed for scheduling alone, never for credit."""

    round: int  # that it works on
    base: str  # digest of the state that it starts from
    tokens: int = 0  # done so far
    attempt: int = 0  # highest at this round
    leaving: bool = False
    reduce_only: bool = False  # trains nothing, and is trusted by the host to reduce for all
    step_s: float = 0.0  # a micro-batch
    hears: int = 0  # other members
    up_bytes_s: float = 0.0  # its uplink; 0: not measured
    from_me_bytes_s: float = 0.0  # how fast this member's parts came to it
    epoch: int = 0  # of the round that it stands on


# ---- gossip, and any call --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Heard:
    by: str
    said: Said
    farewells: Sequence[Signed[Farewell]] = ()


@dataclass(slots=True)
class SignOfLife:
    by: str


@dataclass(slots=True)
class Lost:
    """A call failed, and nothing was heard of that member `since`."""

    by: str
    since: float


@dataclass(slots=True)
class Answered:
    """An answer took so long; None: it did not come in time, and its author is there: its line is slow."""

    by: str
    seconds: float | None


# ---- a leader's calls, and the answers to them -----------------------------------------------------------------------


@dataclass(slots=True)
class Proposed:
    call: object
    by: str
    round: int
    base: str
    attempt: int
    timeout_s: float
    asked: Sequence[str]  # peer ids, of members and reducers
    word: Signed[Word] | None = None  # the coordinator's, by which the leader goes


@dataclass(slots=True)
class Grouped:
    call: object
    by: str
    group: Group  # not weighed yet


@dataclass(slots=True)
class Joined:
    """A member takes part in the attempt that this one leads."""

    by: str
    attempt: int
    member: Member
    promise: Signed[Promise]
    shown: Shown  # what it voted for before
    farewells: Sequence[Signed[Farewell]] = ()
    unheard: Sequence[str] = ()  # of those that are asked


@dataclass(slots=True)
class Declined:
    """It does not, or its answer did not come, or is none."""

    by: str
    attempt: int
    why: str


@dataclass(slots=True)
class GroupTaken:
    by: str
    attempt: int
    why: str = ""  # not empty: it refused
    reached: bool = True


# ---- in a group ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Averaged:
    """The all-reduce and the outer step are done, and what led to the state is on disk."""

    group: str
    attempt: int
    state: str
    seconds: float


@dataclass(slots=True)
class NotAveraged:
    group: str
    attempt: int
    why: str
    culprit: str = ""


@dataclass(slots=True)
class Votes:
    """Votes that a member sends: its own, and others' that it passes on. With a call it waits for this one's."""

    by: str
    own: Signed[Vote] | None
    others: Sequence[Signed[Vote]] = ()
    call: object | None = None
    lacks: Sequence[str] = ()  # whose votes it would have, too


@dataclass(slots=True)
class GaveUp:
    by: str
    group: str
    attempt: int
    why: str
    culprit: str = ""


# ---- states ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class HeadShown:
    """A member shows where it stands, and the agreements on the way there from a round that was asked for."""

    by: str
    since: int
    chain: Sequence[Agreement]  # the last is the head's


@dataclass(slots=True)
class HeadNotShown:
    by: str
    why: str
    answered: bool = False


@dataclass(slots=True)
class Fetched:
    state: str


@dataclass(slots=True)
class NotFetched:
    state: str
    why: str


# ---- disk ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class BoxSaved:
    pass


@dataclass(slots=True)
class BoxNotSaved:
    why: str


@dataclass(slots=True)
class Kept:
    """A head is on disk, or (`why` is not empty) is not: its owner was told."""

    round: int
    why: str = ""


# ---- the trainer, the owner, the coordinator -------------------------------------------------------------------------


@dataclass(slots=True)
class Worked:
    """How far this member's own work is."""

    tokens: int
    step_s: float


@dataclass(slots=True)
class Ready:
    """The trainer has handed over: the update is encoded, and this is the claim to it."""

    claim: Signed[Claim]


@dataclass(slots=True)
class Leave:
    """Make no round any more.

    Args:
        hands_over: name who speaks for this member's weight, too.
        holders: others that have its newest state.
    """

    hands_over: bool = False
    holders: frozenset[str] = frozenset()


@dataclass(slots=True)
class Expelled:
    """The host has banned these: nobody waits for them any more."""

    peers: frozenset[str]


@dataclass(slots=True)
class CoordinatorSaid:
    """What the coordinator tells all: how far its ledger is, and whom it has named to decide (signed, checked)."""

    ledger_round: int = 0
    word: Signed[Word] | None = None


@dataclass(slots=True)
class Anchored:
    """A round as the coordinator's ledger has it, for a member so far behind that the others cannot show all."""

    agreement: Agreement


@dataclass(slots=True)
class Woken:
    """This computer slept, or is elsewhere in the network: what failed until now says nothing of the others."""


@dataclass(slots=True)
class Tick:
    """Time has passed: to be given at `State.wake_at`, and whenever."""


Event = (
    Heard
    | SignOfLife
    | Lost
    | Answered
    | Proposed
    | Grouped
    | Joined
    | Declined
    | GroupTaken
    | Averaged
    | NotAveraged
    | Votes
    | GaveUp
    | HeadShown
    | HeadNotShown
    | Fetched
    | NotFetched
    | BoxSaved
    | BoxNotSaved
    | Kept
    | Worked
    | Ready
    | Leave
    | Expelled
    | CoordinatorSaid
    | Anchored
    | Woken
    | Tick
)
