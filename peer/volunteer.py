"""`potluck join`: from an invite to a training peer, and back out.

    1. ask the coordinator what the run is, and hold the answer against the invite; if it is over, say so
    2. show it to the owner; go on when agreed
    3. enroll, fetch genesis and data by digest, verify the genesis as the signed checkpoint it is: `link.run_files`
    4. train with the others until the run is over or the owner stops: `participation`

When the coordinator is away and this peer has joined before, what is on disk is enough to go on; else it waits.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from peer.disk.outbox import Outbox
from peer.disk.peer_folder import PeerFolder
from peer.disk.receipts import Receipts
from peer.doctor.fit import QuickLook
from peer.doctor.probes import room_of
from peer.handing_on import Outcome
from peer.limits.answers import LiveState
from peer.limits.control import Control
from peer.limits.sensors import ThisComputer
from peer.limits.watch import Watch
from peer.link.client import CoordinatorClient
from peer.link.newcomer import Admitted, Newcomer, RunOver
from peer.link.shard_cache import ShardCache, from_coordinator, from_mirror
from peer.participation import Participation, PeerConfig
from peer.screen.reminder import ExportReminder
from peer.screen.screen import Screen, tell_failure, tell_over
from peer.training.data import load_dataset
from peer.training.dataset.sharded import Shards, prepared_dataset
from peer.training.model import load_trainable
from peer.training.side_by_side import load_models
from peer.training.work import LocalWork
from protocol.data_manifest import DataManifest
from protocol.data_spec import PinnedDataSet
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.leaving import LeaveSignals
from protocol.parts import Failure
from protocol.trust import trust

OpenShards = Callable[[Admitted], Shards]


class Volunteer:
    """One peer of one run."""

    def __init__(self, invite: Invite, config: PeerConfig, screen: Screen, leaving: LeaveSignals) -> None:
        self._invite, self._config, self._screen, self._leaving = invite, config, screen, leaving
        self._identity = PeerIdentity.load_or_create(config.identity_path)
        self._client = CoordinatorClient(invite, rates=config.swarm.rates)
        self.outcome = Outcome.DONE  # of leaving
        self.took_part = False  # in the run, now or earlier
        self.left_early = False  # by its owner's `finish`

    def run(self) -> bool:
        """Join, train and leave.

        Returns:
            whether the owner agreed to the run's terms.

        Raises:
            PotluckError: with what to do about it.
        """
        config, reduce_only = self._config, self._config.swarm.reduce_only
        with ExitStack() as stack:
            folder = PeerFolder(config.home, self._invite.run)
            stack.callback(folder.close)
            watch = stack.enter_context(self._watch(folder))
            newcomer = Newcomer(
                self._invite,
                self._client,
                self._identity,
                folder,
                self._screen,
                reduce_only=reduce_only,
                cache_bytes=config.cache_bytes,
                moments=config.moments,
            )
            room = None if reduce_only else room_of(config.devices[0])
            admitted = newcomer.admit(QuickLook(room, config.home, config.moments).check)
            if admitted is None:
                return False
            if isinstance(admitted, RunOver):
                self._after(folder, admitted)
                return True
            trust(self._invite.root, name=admitted.card.spec.run.name, run=admitted.card.run, folder=config.home)
            work = None
            if not reduce_only:
                sizes = folder.place("micro-batch.json")
                work = load_work(admitted, self._identity.peer_id, config, self._screen, sizes, self._shards(stack))
            if reduce_only:
                self._screen.step("reducing")
            self.took_part = True
            receipts = self._receipts(folder)
            participation = Participation(
                self._client, self._identity, admitted, folder, receipts, config, self._screen, self._leaving
            )
            state = LiveState(watch, participation)
            stack.enter_context(Control(folder.path, state.answer, self.failed))
            self._screen.live(state.answer, lambda: os.kill(os.getpid(), signal.SIGINT))
            participation.take_part(work, watch.gate)
            self.outcome, self.left_early = participation.outcome, watch.gate.finishing.is_set()
        return True

    def _watch(self, folder: PeerFolder) -> Watch:
        config, screen = self._config, self._screen
        sensors = ThisComputer(config.home, config.swarm.rates)
        return Watch(config.home, folder.path, config.limits, sensors, self.failed, screen.problem, screen.held)

    def _shards(self, stack: ExitStack) -> OpenShards:
        """What opens the cache of the run's prepared data, until the peer has left."""

        def open_shards(admitted: Admitted) -> ShardCache:
            data, held = admitted.card.spec.data, admitted.certificate
            assert isinstance(data, PinnedDataSet)
            mirrors = [from_mirror(base, self._client.rates.down) for base in data.mirrors]
            sources = [*mirrors, from_coordinator(self._client, lambda: held.token)]
            folder = admitted.files.data.parent / "shards"
            cache = ShardCache(folder, sources, self._config.cache_bytes, self.failed, self._leaving.stop.is_set)
            return stack.enter_context(cache)

        return open_shards

    def failed(self, failure: Failure) -> None:
        """A part of this program has failed by a mistake of ours: the owner is told."""
        tell_failure(self._screen, failure)

    def _after(self, folder: PeerFolder, over: RunOver) -> None:
        """When the run is over: hand in what still waits, fetch the last receipts, and say so."""
        receipts: Receipts | None = None
        self.took_part = over.was_member
        if over.was_member:
            receipts = self._receipts(folder)
            token = self._client.enroll(self._identity).certificate
            Outbox(folder.path / "outbox").drain(self._client, token)
            receipts.fetch(self._client, token)
            reminder = ExportReminder(self._screen.problem, self._config.home, self._identity.peer_id)
            reminder.credit(receipts.credit()[0])
        tell_over(self._screen, over.card.spec.run.rounds, receipts)

    def _receipts(self, folder: PeerFolder) -> Receipts:
        return Receipts(
            folder.path / "receipts", run=self._invite.run, root=self._invite.root, peer_id=self._identity.peer_id
        )


def load_work(
    admitted: Admitted, peer_id: str, config: PeerConfig, screen: Screen, sizes: Path, open_shards: OpenShards
) -> LocalWork:
    """The model and the data of a run, ready to train.

    Args:
        sizes: where it is remembered how many sequences a pass takes on this card.
        open_shards: opens the cache for prepared data.

    Raises:
        PotluckError: files that are no model or no data, or that do not fit each other.
    """
    import torch

    def out(name: str, why: str) -> None:
        screen.problem("card-out", card=name, reason=why)

    screen.step("loading-model")
    if config.threads:
        torch.set_num_threads(config.threads)
    spec, files = admitted.card.spec, admitted.files
    models = load_models(
        lambda device: load_trainable(spec, files.genesis / "model", files.base_model, device),
        config.devices,
        spec,
        out,
    )
    model = models[0]
    screen.step("reading-data")
    if isinstance(spec.data, PinnedDataSet):
        manifest = DataManifest.from_bytes(files.data.read_bytes())
        dataset = prepared_dataset(spec, manifest, open_shards(admitted), model.rows)
    else:
        dataset = load_dataset(spec, model.tokenizer, files.data)
    model.check_fits(dataset)
    screen.step("trying-passes")
    work = LocalWork(models, dataset, spec, peer_id, wanted=config.precision, sizes=sizes, moments=config.moments)
    work.passes.tell_when_out(out)
    return work
