"""What the owner should see of the coordinator's word, of a sleep, and of rounds that were made without this peer.

Said once, and once more when it is over.
"""

from __future__ import annotations

from collections.abc import Callable

from peer.limits.awake import Change
from peer.link.clock import MAX_OFFSET_S, in_words, tell_clock
from protocol.errors import RefusedError
from protocol.rpc import Twin
from protocol.status import Alarm, loss_text

MISSED_MANY = 5  # rounds in a row: then the owner is told


class Notices:
    """Remembers what was said last.

    Args:
        problem: shows a message: its key in `peer.screen.messages`, and its values.
    """

    def __init__(self, problem: Callable[..., None]) -> None:
        self._problem = problem
        self._clock_was_wrong = self._was_away = False
        self._missed = 0  # rounds in a row
        self._alarm: Alarm | None = None

    def clock(self, offset_s: float) -> None:
        """How far this computer's clock is ahead of the coordinator's."""
        if abs(offset_s) > MAX_OFFSET_S:
            tell_clock(self._problem, offset_s)
        elif self._clock_was_wrong:
            self._problem("clock-right")
        self._clock_was_wrong = abs(offset_s) > MAX_OFFSET_S

    def changed(self, change: Change) -> None:
        """This computer slept, or is elsewhere in the network now."""
        self._was_away = True
        if change.slept_s:
            self._problem("slept", time=in_words(change.slept_s))
        else:
            self._problem("network-changed")

    def committed(self, round: int, *, took_part: bool, waits: bool = False, upload_mbit: float | None = None) -> None:
        """A round was made.

        Args:
            took_part: this peer did, or need not.
            waits: there was no place for it.
            upload_mbit: its owner's limit.
        """
        self._missed = 0 if took_part or waits else self._missed + 1
        if took_part and self._was_away:
            self._problem("back", round=str(round))
            self._was_away = False
        elif self._missed == (4 if self._was_away else 1) * MISSED_MANY:  # who comes back makes up for many at once
            self._was_away = True
            if upload_mbit is None:
                self._problem("left-behind", rounds=str(self._missed))
            else:
                self._problem("left-behind-by-limit", rounds=str(self._missed), mbit=f"{upload_mbit:g}")

    def twin(self, twin: Twin) -> None:
        """Whether another computer uses this peer's identity: who was first hears of it, the other one stops."""
        if twin is Twin.CAME_LATER:
            self._problem("identity-twin")

    def alarm(self, alarm: Alarm | None) -> None:
        """What the run's evaluations have come to."""
        if alarm is not None and alarm != self._alarm:
            now, before = loss_text(alarm.held_out_loss), loss_text(alarm.published_loss)
            values = {"round": str(alarm.round), "published": str(alarm.published_round), "now": now, "before": before}
            self._problem("run-worse", **values)
        elif alarm is None and self._alarm is not None:
            self._problem("run-better")
        self._alarm = alarm


def expelled(reason: str) -> RefusedError:
    """Why this peer stops: the host has banned it."""
    return RefusedError(
        f"the host of this run has banned this peer: {reason}",
        "its credit that was granted stays; ask the host, or take part in another run",
    )


def in_use_elsewhere() -> RefusedError:
    """Why this peer stops: another computer uses its identity, and was there first. That one sees `identity-twin`."""
    return RefusedError(
        "this peer's identity is in use on another computer, which was there first",
        "for both to take part, give this one an identity of its own: potluck identity new; "
        "to move the peer to this one, stop it there (potluck leave), then join here again; "
        "if that is no computer of yours, somebody has a copy of your key: take a new one, potluck identity new",
    )
