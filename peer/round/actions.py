"""What is to be done, in the order of the list: each is plain data that `Core.step` returns.

`SaveBox` is the last of its list: whether it was saved is the next event that is stepped, before all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peer.round.box import Box
from peer.round.group import Group
from protocol.agreement import Agreement
from protocol.epoch import Word
from protocol.signed import Signed
from protocol.statements import Farewell, Promise, Vote


@dataclass(slots=True)
class SaveBox:
    """To disk, safely; then `BoxSaved` or `BoxNotSaved`."""

    box: Box


# ---- answers to calls ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Decline:
    """To a proposal or a group: no. `attempt` is the one that this member is bound to."""

    call: object
    why: str
    attempt: int = 0


@dataclass(slots=True)
class Join:
    """To a proposal: this member's claim (the driver has it) and votes."""

    call: object
    promise: Signed[Promise]
    vote: Signed[Vote] | None  # its newest in this round, and the group that it is about
    group: Group | None
    farewells: Sequence[Signed[Farewell]]
    unheard: Sequence[str]


@dataclass(slots=True)
class Accept:
    """To a group: yes."""

    call: object


@dataclass(slots=True)
class ShowVotes:
    """To votes: this member's own, and those that the asker lacks."""

    call: object
    own: Signed[Vote] | None
    others: Sequence[Signed[Vote]]


# ---- calls -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Propose:
    to: Sequence[str]
    round: int
    base: str
    attempt: int
    timeout_s: float
    asked: Sequence[str]
    word: Signed[Word] | None = None


@dataclass(slots=True)
class SendGroup:
    to: Sequence[str]
    group: Group


@dataclass(slots=True)
class SendVote:
    to: Sequence[str]
    vote: Signed[Vote]
    lacks: Sequence[str] = ()  # whose votes others are to pass on


@dataclass(slots=True)
class SendAbort:
    to: Sequence[str]
    group: str
    round: int
    attempt: int
    why: str
    culprit: str


@dataclass(slots=True)
class AskHead:
    """Then `HeadShown` or `HeadNotShown`."""

    to: str
    since: int
    patience_s: float


@dataclass(slots=True)
class TellEveryone:
    """What this member says of itself, at once."""


# ---- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AllReduce:
    """Average with the group; then `Averaged` or `NotAveraged`."""

    group: Group


@dataclass(slots=True)
class StopAllReduce:
    why: str


@dataclass(slots=True)
class Fetch:
    """Get a state from here or from others; then `Fetched` or `NotFetched`.

    Args:
        chain: the agreements that lead there from this member's head, where they are known: small averages will do.
        keeps: to disk, too, before it is said to be here: this member is about to vote for it.
    """

    state: str
    sources: Sequence[str]
    chain: Sequence[Agreement] = ()
    keeps: bool = False


@dataclass(slots=True)
class Commit:
    """Stand on the state of an agreement, which is here; keep it, and then say `Kept`.

    Args:
        counted: this member's work is in it. If not, it may be part of its next claim:
        may_wait: in full, because it waited for its turn, when done in so many rounds at most, this one included;
        is_late: or counting less, because it missed this round.
        rounds: since the state that it stood on before.
    """

    agreement: Agreement
    counted: bool
    may_wait: int
    is_late: bool
    rounds: int
    waited_s: float  # from the end of its own work to this
    attempts: int
    left_out: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class CloseWork:
    """The trainer is to finish its micro-batch and hand over."""


@dataclass(slots=True)
class Stage:
    """Where in the round this member is, for displays, and for tests that break things there."""

    round: int
    name: str


@dataclass(slots=True)
class Aborted:
    """An attempt came to nothing; the work is kept."""

    round: int
    attempt: int
    why: str


@dataclass(slots=True)
class Gone:
    """This member has left: nothing is decided any more."""


Action = (
    SaveBox
    | Decline
    | Join
    | Accept
    | ShowVotes
    | Propose
    | SendGroup
    | SendVote
    | SendAbort
    | AskHead
    | TellEveryone
    | AllReduce
    | StopAllReduce
    | Fetch
    | Commit
    | CloseWork
    | Stage
    | Aborted
    | Gone
)
