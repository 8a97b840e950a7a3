"""What the owner should see of the coordinator's word, and of a sleep: said once, and once more when it is over."""

from __future__ import annotations

from collections.abc import Callable

from peer.limits.awake import Change
from peer.link.clock import MAX_OFFSET_S, in_words, tell_clock
from protocol.errors import RefusedError
from protocol.rpc import Twin
from protocol.status import Alarm, loss_text


class Notices:
    """Remembers what was said last.

    Args:
        problem: shows a message: its key in `peer.screen.messages`, and its values.
    """

    def __init__(self, problem: Callable[..., None]) -> None:
        self._problem = problem
        self._clock_was_wrong = self._was_away = False
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

    def took_part(self, round: int) -> None:
        """This peer took part in a round."""
        if self._was_away:
            self._problem("back", round=str(round))
        self._was_away = False

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


def in_use_elsewhere() -> RefusedError:
    """Why this peer stops: another computer uses its identity, and was there first. That one sees `identity-twin`."""
    return RefusedError(
        "this peer's identity is in use on another computer, which was there first",
        "for both to take part, give this one an identity of its own: potluck identity new; "
        "to move the peer to this one, stop it there (potluck leave), then join here again; "
        "if that is no computer of yours, somebody has a copy of your key: take a new one, potluck identity new",
    )
