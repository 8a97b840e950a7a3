"""A run's terms for this computer, from what the coordinator says of the run. Needs no torch.

`admission` calls `terms_of`. All of it but the download is an estimate: traffic and disk from the size of an update and
from what is kept, times from how fast the run goes now.
"""

from __future__ import annotations

from pathlib import Path

from peer.link.answers import RunDescription
from peer.link.run_files import data_path
from peer.screen.terms import JoinTerms
from peer.training.memory import MOMENTS_BYTES, MomentsKind, memory_needed_bytes, update_bytes
from protocol.data_manifest import most_shard_bytes
from protocol.data_spec import PinnedDataSet
from protocol.invite import Invite
from protocol.run_spec import RunSpec
from protocol.status import RunStatus

_KEPT_CHECKPOINTS = 2  # as far back as a peer keeps rounds: `peer.disk.kept_states.KEPT_STATES`
_BETWEEN_WHOLE = 33  # rounds at most: `peer.disk.kept_states.MOST_REPLAYED`
_MEASURED_OVER = 6  # evaluations


def terms_of(
    invite: Invite,
    run: RunDescription,
    status: RunStatus | None,
    folder: Path,
    *,
    reduce_only: bool = False,
    cache_bytes: int = 0,
    moments: MomentsKind = "fp32",
) -> JoinTerms:
    """The terms of a run.

    Args:
        status: how the run stands; None: the coordinator did not say.
        folder: the run's folder here.
        cache_bytes: that prepared data may take.
        moments: as this member wants to hold them.
    """
    spec = run.card.spec
    needed = {folder / "step-000000" / file.path: file.size_bytes for file in run.genesis_files}
    if not reduce_only:
        needed |= {folder / "base-model" / file.path: file.size_bytes for file in run.model_files}
        needed[data_path(folder, spec)] = spec.data.size_bytes
    here = sum(min(_present_bytes(path), size) for path, size in needed.items())
    live = None if status is None else sum(peer.last_seen_s is not None for peer in status.peers)
    travels = 2 * update_bytes(spec)  # to those who average a part each, and what this peer averages to all others
    kept = _kept_bytes(spec, reduce_only=reduce_only, moments=moments)
    if isinstance(spec.data, PinnedDataSet) and not reduce_only:
        kept += min(cache_bytes, most_shard_bytes(spec.data.size_bytes))
    return JoinTerms(
        card=run.card,
        address=invite.addresses[0],
        root=invite.root,
        download_bytes=sum(needed.values()) - here,
        here_bytes=here,
        disk_bytes=sum(needed.values()) + kept,
        memory_bytes=memory_needed_bytes(spec, run.shape, reduce_only=reduce_only, moments=moments),
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


def _kept_bytes(spec: RunSpec, *, reduce_only: bool, moments: MomentsKind) -> int:
    """States, the averages between them, and what the optimizer remembers."""
    diloco = spec.sync.method == "diloco"
    state = 4 * spec.model.trainable * (1 + ((1 if spec.outer.momentum else 0) if diloco else 2))
    update = update_bytes(spec)
    rounds = _KEPT_CHECKPOINTS * spec.publish.every_rounds
    if spec.run.rounds:
        rounds = min(rounds, spec.run.rounds)
    whole = rounds // min(_BETWEEN_WHOLE, state // update + 1)
    remembered = int(MOMENTS_BYTES[moments] * spec.model.trainable) if diloco and not reduce_only else 0
    return (whole + 2) * state + (rounds - whole) * update + remembered


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
