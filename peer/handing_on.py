"""Handing on: a peer that leaves looks first whether the run's newest state would be gone with it.

It makes no round any more, and stays to serve until another member has fetched that state, or for as long as fetching
it may take; when nobody else is there, it gives it to the coordinator. `volunteer` calls `hand_on` after the first
Ctrl-C; a second one ends the process wherever this is, and the screen has said what that costs. Who stays to the end of
the run leaves by `hand_in` instead.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from peer.net.last_copy import Copies
from protocol.errors import NetworkError

logger = logging.getLogger(__name__)

ALONE_S = 5.0  # without hearing of anybody: the coordinator has been asked meanwhile who else there is
ASKED_S = 15.0  # for the coordinator to ask for a state that it is offered
TOLD_S = 1.5  # for the coordinator to hear of it
LOOK_S = 0.3
HAND_IN_S = 60.0  # for the last claims and states, after the last round
OTHERS_S = 10.0  # for the others to reach the last round
_HAND_IN_LOOK_S = 0.2


class Outcome(enum.Enum):
    """What a leaver leaves behind; the values are keys of `peer.screen.messages`."""

    DONE = ""  # the others, or those that come back, have all that they need
    NOT_HANDED_ON = "not-handed-on"  # others stay, and none of them has the newest state
    KEPT = "alone-kept"  # nobody else is here, and the coordinator has it, too
    ALONE = "alone"  # nobody else is here, and it is on this disk only


class Others(Protocol):
    """What it needs of the swarm."""

    def begin_leaving(self) -> None: ...

    def copies(self) -> Copies: ...


class Coordinator(Protocol):
    """What it needs of the link to the coordinator."""

    away_since: float | None  # None: the coordinator is there
    is_giving: bool  # a state is on its way to it

    has_told: bool  # it has heard that this peer leaves

    def say_leaving(self) -> None:
        """Tell it so, and offer it the newest state."""

    def has_given(self, round: int) -> bool:
        """Whether the coordinator has the state of this round."""


class LastVisits(Protocol):
    """What `hand_in` needs of the link."""

    away_since: float | None
    finished: bool  # the coordinator says that the run is over
    settled: threading.Event  # nothing waits for it, and it asks for nothing

    def wake(self) -> None: ...


def hand_on(
    swarm: Others,
    link: Coordinator,
    tell: Callable[..., None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Stay until another has what only this peer has, or until that has taken too long; returns what became of it.

    Args:
        tell: shows the owner a message: its key in `peer.screen.messages`, and its values.
    """
    started = clock()
    link.say_leaving()
    with contextlib.suppress(NetworkError):  # its thread does not answer, as `_look` will say
        swarm.begin_leaving()
    outcome = _handed_on(swarm, link, tell, clock, sleep)
    while not link.has_told and link.away_since is None and clock() - started < TOLD_S:
        sleep(LOOK_S)  # who leaves in silence is taken for present, and the last one to leave for one of two
    return outcome


def hand_in(
    link: LastVisits,
    is_done: Callable[[], bool],
    is_asked: Callable[[], bool],
    meanwhile: Callable[[], bool] = lambda: False,
) -> bool:
    """After the last round: let the others catch up, and give the coordinator what is still here.

    Args:
        is_done: whether the last round is on this disk, and the others have made it, too.
        is_asked: the owner wants this peer to end now.
        meanwhile: does what the coordinator has asked for, and says whether there was something; its time is not
            counted.

    Returns:
        whether nothing waits for the coordinator any more.
    """
    started = time.monotonic()
    link.wake()
    while not is_asked():
        time.sleep(_HAND_IN_LOOK_S)
        before = time.monotonic()
        if meanwhile():
            started += time.monotonic() - before
            link.wake()
        passed = time.monotonic() - started
        handed_in = passed > HAND_IN_S or (link.settled.is_set() and link.finished)
        away = link.away_since is not None and passed > OTHERS_S
        if (is_done() or passed > OTHERS_S) and (handed_in or away):
            break
    return link.settled.is_set()


def _handed_on(
    swarm: Others,
    link: Coordinator,
    tell: Callable[..., None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Outcome:
    started = heard = clock()
    alone: float | None = None  # since when that is certain
    while True:
        copies, now = _look(swarm), clock()
        if not copies.is_newest or copies.holders:
            return Outcome.DONE
        if copies.others:
            heard, alone = now, None
            tell("last-copy", round=str(copies.round))
            if now - started >= copies.seconds or copies.is_stalled:
                return Outcome.NOT_HANDED_ON
        elif now - heard >= ALONE_S:
            if not copies.run_waits:
                return Outcome.DONE
            if link.has_given(copies.round):
                return Outcome.KEPT
            alone = now if alone is None else alone
            if link.away_since is not None or (now - alone >= ASKED_S and not link.is_giving):
                return Outcome.ALONE
            tell("last-copy-offered", round=str(copies.round))
        sleep(LOOK_S)


def _look(swarm: Others) -> Copies:
    try:
        return swarm.copies()
    except NetworkError as error:  # its thread does not answer: nothing can be handed on
        logger.warning("%s", error.message)
        return Copies(0, False)
