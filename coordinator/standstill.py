"""A run that stands still, and the host's word that lets the rest of it go on. `host` looks each second.

A round is decided by those who made the last one. Where more than half of their weight is gone, the members alone
cannot go on: they cannot tell whether the others are dead, or only cut off and making rounds of their own. Nor can they
where fewer are gone, and only those know which of two states was committed, or had the weight of one who has left. The
host can: it sees whether anybody reports. It says so in words, and its owner decides:

    potluck go-on runs/NAME        who is here decides the next round (`protocol.epoch`); what the gone have made unseen
                                   is undone, and when they come back they follow

No timer does that: a host that is cut off from half of its run must not undo what that half makes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coordinator.roster import Presence
from protocol.epoch import Epoch
from protocol.errors import RefusedError
from protocol.last import Last
from protocol.majority import has_majority
from protocol.signed import Signed

logger = logging.getLogger(__name__)

AWAY_S = 120.0  # without a word, in which a restart has long been over
STILL_S = 600.0  # without a new round while somebody is gone: then those who are here may be too few all the same
HERE_S = 30.0  # since the last word, for whoever is to go on: a word that does not reach it lets nobody go on


@dataclass(frozen=True)
class Standing:
    """Where a run stands: whose votes decide its next round, and who of them is there.

    Args:
        here: peer id -> weight.
        gone: likewise, of whom nothing was heard for `AWAY_S`.
        still_s: for so long there was no new round.
        able: of those who are here, who stands on the newest round.
        unsure: of those who are here, of whom nothing was heard for `HERE_S`.
    """

    here: Mapping[str, int]
    gone: Mapping[str, int]
    still_s: float = 0.0
    able: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()

    @property
    def is_still(self) -> bool:
        """Whether those who are there are too few to decide anything, or may be."""
        is_few = not has_majority(set(self.here), {**self.here, **self.gone})
        return bool(self.gone) and (is_few or self.still_s >= STILL_S)

    @classmethod
    def of(cls, tip: Last, seen: Mapping[str, Presence], now: float, still_s: float = 0.0) -> Standing:
        """Args: seen: the members that announced themselves; now: seconds, monotonic."""
        present = {peer for peer, item in seen.items() if now - item.seen < AWAY_S and not item.leaving}
        here = {peer: weight for peer, weight in tip.weights.items() if peer in present}
        return cls(
            here,
            {peer: weight for peer, weight in tip.weights.items() if peer not in here},
            still_s,
            frozenset(peer for peer in here if seen[peer].round == tip.round),
            frozenset(peer for peer in here if now - seen[peer].seen >= HERE_S),
        )


def named(tip: Last, standing: Standing, run: str, epoch: int) -> Epoch:
    """The word by which those who are there go on.

    It names nobody who would not go on by it: who is behind, or ahead of the ledger, does not stand where it begins.
    Where it reaches too few of those whom it names, nobody goes on, while no round without it enters the ledger.

    Args:
        epoch: its number, higher than all before.

    Raises:
        RefusedError: the run has not begun, does not stand still, or nobody is there who could go on.
    """
    if not tip.round:
        raise RefusedError("no round was agreed yet", "if those that were to begin are gone, start the run anew")
    if not standing.is_still:
        held, total = sum(standing.here.values()), sum(tip.weights.values())
        raise RefusedError(
            f"the run does not stand still: those who are here hold {held} of {total} of the weight that decides",
            f"nothing was changed; ask again once there was no new round for {STILL_S / 60:.0f} minutes",
        )
    if standing.unsure:
        raise RefusedError(
            f"not heard of for {HERE_S:.0f} s, and may not be gone: {', '.join(sorted(standing.unsure))}",
            "wait for two minutes, until it is here or counts as gone",
        )
    if not standing.able:
        raise RefusedError(
            f"nobody of those who made round {tip.round} is here and has its state",
            "wait until one of them comes back",
        )
    peers = {peer: weight for peer, weight in standing.here.items() if peer in standing.able}
    return Epoch(epoch=epoch, run=run, round=tip.round, state=tip.state, peers=peers)


class GoingOn:
    """Warns when the run stands still, and lets it go on when its owner says so.

    Args:
        folder: the run's, for the warning.
        give: signs and keeps a word, before anybody is told of it.
    """

    def __init__(self, folder: Path, give: Callable[[Epoch], Signed[Epoch]], now: float) -> None:
        self._folder, self._give = folder, give
        self._looked, self._warned_round = now, -1
        self._newest, self._newest_at = (-1, -1), now

    def look(self, tip: Last, seen: Mapping[str, Presence], now: float) -> None:
        """Warn once for each round that the run stands still in."""
        if (tip.epoch, tip.round) != self._newest:
            self._newest, self._newest_at = (tip.epoch, tip.round), now
        standing = Standing.of(tip, seen, now, now - self._newest_at)
        if tip.round and now - self._looked >= AWAY_S and standing.is_still and self._warned_round != tip.round:
            self._warned_round = tip.round
            logger.warning(
                "the run stands still after round %d: of the %d members that made it, %d are here, and they do not "
                "decide the next one without the others (missing: %s). It goes on when enough of them are back. If "
                "they are gone for good: potluck go-on %s",
                tip.round,
                len(tip.weights),
                len(standing.here),
                ", ".join(sorted(standing.gone)),
                self._folder,
            )

    def go_on(self, tip: Last, seen: Mapping[str, Presence], run: str, epoch: int, now: float) -> dict[str, object]:
        """What the owner orders: let the others go on.

        Args:
            epoch: the number of the word that is given.

        Raises:
            RefusedError: as `named`.
        """
        word = self._give(named(tip, Standing.of(tip, seen, now, now - self._newest_at), run, epoch))
        logger.warning("by the host's word, round %d is decided by %s", tip.round + 1, ", ".join(word.value.peers))
        return {"round": tip.round + 1, "epoch": word.value.epoch, "peers": sorted(word.value.peers)}
