"""What a run will take of this computer: what its owner is told before anything is downloaded. Needs no torch.

`admission` puts it together from what the coordinator says, `screens` shows it. All of it but the download is an estimate:
traffic and disk from the size of an update and from what is kept, times from how fast the run goes now.

>>> spans = [duration(90), duration(5400), duration(200_000)]; spans
['2 min', '1.5 h', '2.3 days']
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peer.coordinator_answers import RunDescription
from peer.training.memory import memory_needed_bytes, update_bytes
from protocol.invite import Invite
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.status import RunStatus

_KEPT_CHECKPOINTS = 2  # as far back as a peer keeps rounds: `peer.kept_states.KEPT_STATES`
_BETWEEN_WHOLE = 33  # rounds at most: `peer.kept_states.MOST_REPLAYED`
_TALK_BYTES_PER_HOUR = 5_000_000  # of members among each other beside the updates, each way; a guess
_MEASURED_OVER = 6  # evaluations


@dataclass(frozen=True)
class Terms:
    """What taking part means."""

    card: RunCard
    address: str  # of the coordinator
    root: str  # fingerprint of the host's key
    download_bytes: int  # still to come
    here_bytes: int  # of what is needed, already on this disk
    disk_bytes: int  # in all, when it runs
    memory_bytes: int
    round: int | None  # the run is at; None: not known
    members: int | None  # live now
    round_s: float | None  # from one average to the next; None: not known yet
    round_bytes: int  # that travel in a round, each way, at most

    @property
    def traffic_bytes_per_hour(self) -> int | None:
        """Each way, at most."""
        if self.round_s is None:
            return None
        return int(self.round_bytes * 3600 / self.round_s) + _TALK_BYTES_PER_HOUR

    @property
    def left_s(self) -> float | None:
        """How long the run will last; None: not known, or until the host ends it."""
        rounds = self.card.spec.run.rounds
        if not rounds or self.round is None or self.round_s is None:
            return None
        return max(rounds - self.round, 0) * self.round_s


def terms_of(
    invite: Invite, run: RunDescription, status: RunStatus | None, folder: Path, *, reduce_only: bool = False
) -> Terms:
    """The terms of a run.

    Args:
        status: how the run stands; None: the coordinator did not say.
        folder: the run's folder here.
    """
    spec = run.card.spec
    needed = {folder / "step-000000" / file.path: file.size_bytes for file in run.genesis_files}
    if not reduce_only:
        needed |= {folder / "base-model" / file.path: file.size_bytes for file in run.model_files}
        needed[folder / "data" / "data"] = spec.data.size_bytes
    here = sum(min(_present_bytes(path), size) for path, size in needed.items())
    live = None if status is None else sum(peer.last_seen_s is not None for peer in status.peers)
    travels = 2 * update_bytes(spec)  # to those who average a part each, and what this peer averages to all others
    return Terms(
        card=run.card,
        address=invite.addresses[0],
        root=invite.root,
        download_bytes=sum(needed.values()) - here,
        here_bytes=here,
        disk_bytes=sum(needed.values()) + _kept_bytes(spec, reduce_only=reduce_only),
        memory_bytes=memory_needed_bytes(spec, reduce_only=reduce_only),
        round=None if status is None else status.round,
        members=live,
        round_s=_round_s(spec, status),
        round_bytes=travels // 2 * max(live or 0, 2) if reduce_only else travels,
    )


def _present_bytes(path: Path) -> int:
    """How much of a file is here, whole or from a download that was broken off."""
    for name in (path, path.with_name(path.name + ".part")):
        if name.is_file():
            return name.stat().st_size
    return 0


def _kept_bytes(spec: RunSpec, *, reduce_only: bool) -> int:
    """States, the averages between them, and what the optimizer remembers."""
    diloco = spec.sync.method == "diloco"
    state = 4 * spec.model.trainable * (1 + ((1 if spec.outer.momentum else 0) if diloco else 2))
    update = update_bytes(spec)
    rounds = _KEPT_CHECKPOINTS * spec.publish.every_rounds
    if spec.run.rounds:
        rounds = min(rounds, spec.run.rounds)
    whole = rounds // min(_BETWEEN_WHOLE, state // update + 1)
    moments = 8 * spec.model.trainable if diloco and not reduce_only else 0
    return (whole + 2) * state + (rounds - whole) * update + moments


def _round_s(spec: RunSpec, status: RunStatus | None) -> float | None:
    """Seconds from one average to the next: as they were lately, else as the run asks for; None: nobody knows yet."""
    measured = [] if status is None else list(status.evaluations[-_MEASURED_OVER:])
    if len(measured) > 1 and measured[-1].round > measured[0].round and measured[-1].time > measured[0].time:
        return (measured[-1].time - measured[0].time) / (measured[-1].round - measured[0].round)
    ends = []
    if isinstance(spec.sync.round_seconds, float):
        ends.append(spec.sync.round_seconds)
    if spec.sync.round_tokens is not None and status is not None and status.tokens_per_s > 0:
        ends.append(spec.sync.round_tokens / status.tokens_per_s)
    return min(ends) if ends else None


def duration(seconds: float) -> str:
    """A length of time in words, in English.

    >>> duration(0.0), duration(3600.0)
    ('1 min', '1.0 h')
    """
    if seconds < 3600:
        return f"{max(round(seconds / 60), 1)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
