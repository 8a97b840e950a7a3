"""A run's members over real loopback sockets, without a model: the update of a round is any vector.

world = World(tmp_path)
async with world.node(0) as node: ...                     a started Node
async with world.peers(3) as peers: ...                   three engines that know each other, each with a trainer
run(main())                                               an async test, with a deadline
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.kit.builders import fixed_ed25519, fixed_root_key, make_spec

with warnings.catch_warnings():  # hivemind's layers of experts, which nobody here uses, are decorated by torch.jit
    warnings.simplefilter("ignore", DeprecationWarning)
    import hivemind  # noqa: F401

from peer.net.driver import Driver
from peer.net.node import Node
from peer.net.pace import Limits
from peer.net.place import Callbacks, Place, SwarmConfig
from peer.net.records import RecordValidator
from peer.round.box import Box
from peer.round.events import CoordinatorSaid
from peer.round.group import Terms
from peer.round.report import RoundReport
from peer.sync.shelf import Head
from peer.training.codecs.codec import CHUNK_VALUES, EncodedUpdate
from peer.training.state import SharedState
from peer.training.work import Update
from protocol import certificate, note
from protocol.beginners import Beginners
from protocol.errors import RoundAborted
from protocol.keys import PeerIdentity
from protocol.parts import Told
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim
from protocol.succession import Last

T = TypeVar("T")
PATIENCE_S = 240.0  # for what is expected to happen; a quiet machine needs a twentieth of it
VALUES = 150_000  # three chunks
DEADLINE_S = 600.0  # below pytest-timeout's


def run(main: Coroutine[Any, Any, Any], timeout_s: float = DEADLINE_S) -> Any:
    """Run an async test; it fails when it takes too long."""
    return asyncio.run(asyncio.wait_for(main, timeout_s))


async def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str = "") -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what or 'something'}"
        await asyncio.sleep(0.02)
    return value


class World:
    """One run's keys, card and genesis."""

    def __init__(
        self,
        folder: Path,
        *,
        values: int = VALUES,
        name: str = "tiny",
        keys: int = 1,
        spec: RunSpec | None = None,
        **sync: Any,
    ) -> None:
        self.folder = folder
        base = spec or make_spec(name, rules=2)
        fields = {"wire": "fp32", "round_tokens": 1000} | sync
        self.spec = base.model_copy(
            update={
                "sync": base.sync.model_copy(update=fields),
                "model": base.model.model_copy(update={"parameters": values, "trainable": values}),
            }
        )
        self.values = values
        self.genesis = SharedState(0, (("w", (values,)),), torch.linspace(-1, 1, values))
        self.key: Ed25519PrivateKey = fixed_ed25519(f"membership {keys}")
        ledger = fixed_ed25519(f"ledger {keys}")
        self.card = RunCard(
            run=self.spec.digest,
            spec=self.spec,
            genesis=self.genesis.digest,
            ledger_key=note.verifier_key(note.origin(self.spec.run.name, self.spec.digest), ledger.public_key()),
            membership_key=self.key.public_key().public_bytes_raw().hex(),
        )
        self.root = fixed_root_key(keys)
        self.named = self.name(0)

    def identity(self, index: int) -> PeerIdentity:
        return PeerIdentity(fixed_ed25519(f"swarm peer {index}"))

    def certificate(self, index: int, **changes: Any) -> str:
        fields = {"run": self.card.run, "peer_id": self.identity(index).peer_id, "lifetime_s": 3600} | changes
        return certificate.issue(fields.pop("key", self.key), **fields)

    def name(self, *indices: int) -> Signed[Beginners]:
        """The coordinator's word that these begin the run."""
        peers = tuple(self.identity(index).peer_id for index in indices)
        return Beginners(run=self.card.run, peers=peers).sign(PeerIdentity(self.key))

    def identity_path(self, index: int) -> Path:
        path = self.folder / f"identity-{index}"
        if not path.exists():
            path.write_bytes(self.identity(index).to_bytes())
            path.chmod(0o600)
        return path

    @contextlib.asynccontextmanager
    async def node(self, index: int, *others: Node) -> AsyncIterator[Node]:
        """A started node that is connected to `others`."""
        node = await Node.start(self.identity_path(index), listen="127.0.0.1:0", validator=RecordValidator())
        try:
            await meet(node, *others)
            yield node
        finally:
            await node.close()

    @contextlib.asynccontextmanager
    async def nodes(self, count: int, first: int = 0) -> AsyncIterator[list[Node]]:
        """Started nodes that are all connected to each other."""
        async with contextlib.AsyncExitStack() as stack:
            nodes = await together(stack, [self.node(index) for index in range(first, first + count)])
            for index, node in enumerate(nodes):
                await meet(node, *nodes[:index])
            yield nodes

    # ---- claims ---------------------------------------------------------------------------------------------------------

    def update(self, index: int, round: int = 1) -> torch.Tensor:
        """A member's update, another one for each member and round."""
        draw = torch.Generator().manual_seed(1000 * round + index)
        return torch.randn(self.spec.sync.fragment_values(round, self.values), generator=draw)

    def claim(self, index: int, encoded: EncodedUpdate, **changes: Any) -> Claim:
        fields: dict[str, Any] = {
            "run": self.card.run,
            "round": 1,
            "base": self.genesis.digest,
            "tokens": 160 * (index + 1),
            "flops": 1,
            "first_batch": 0,
            "batches": 10 * (index + 1),
            "update": encoded.digest,
        }
        return Claim(**(fields | changes))

    def terms(self, **changes: Any) -> Terms:
        fields: dict[str, Any] = {
            "run": self.card.run,
            "spec": self.spec,
            "values": self.values,
            "chunk_values": CHUNK_VALUES,
            "last": Last(0, self.genesis.digest),
        }
        return Terms(**(fields | changes))

    # ---- engines ----------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def peers(self, count: int, **options: Any) -> AsyncIterator[list[Peer]]:
        """Engines that know each other; each has a trainer unless `train=False`."""
        async with contextlib.AsyncExitStack() as stack:
            peers = await together(stack, [self.peer(index, **options) for index in range(count)])
            await acquaint(peers)
            yield peers

    @contextlib.asynccontextmanager
    async def peer(self, index: int, *known: Peer, head: Head | None = None, **options: Any) -> AsyncIterator[Peer]:
        train = options.pop("train", True)
        async with self.node(index, *(peer.node for peer in known)) as node:
            peer = Peer(self, index, node, head or Head(self.genesis), **options)
            await peer.driver.start()
            peer.driver.gossip.contacts |= {other.node.peer_id for other in known}
            if train:
                peer.train()
            try:
                yield peer
            finally:
                await peer.stop()


class Peer:
    """One driver with a trainer that trains nothing."""

    def __init__(
        self,
        world: World,
        index: int,
        node: Node,
        head: Head,
        *,
        box: Box | None = None,
        tokens: int = 400,
        work_s: float = 0.0,
        certificate: Callable[[], str] | None = None,
        driver: type[Driver] = Driver,
        on_stage: Callable[[int, str], None] = lambda round, stage: None,
        on_failure: Told = lambda failure: None,
        save_box: Callable[[bytes], None] | None = None,
        keep: Callable[[Head], None] = lambda head: None,
        **config: Any,
    ) -> None:
        self.world, self.index, self.node, self.tokens, self.work_s = world, index, node, tokens, work_s
        self.heads: list[Head] = []
        self.reports: list[RoundReport] = []
        self.handed_over: list[str] = []  # bases of the updates
        self.saved: list[bytes] = []
        self.aborted: list[str] = []  # why attempts came to nothing
        self._keep = keep
        options = SwarmConfig(**({"limits": Limits(silence_s=2.0, total_s=30.0)} | config))
        place = Place(
            world.identity(index),
            world.card,
            certificate or (lambda: world.certificate(index, reducer=options.reduce_only)),
            head,
            box or Box(),
            save_box or self.saved.append,
            config=options,
        )
        callbacks = Callbacks(self._committed, on_stage=on_stage, on_aborted=lambda r, a, why: self.aborted.append(why))
        self.driver = driver(node, place, callbacks, on_failure)
        self.driver.post(CoordinatorSaid(0, world.named))
        self.me = self.driver.me
        self._trainer: asyncio.Task[None] | None = None

    async def _committed(self, head: Head, report: RoundReport) -> None:
        self._keep(head)
        self.heads.append(head)
        self.reports.append(report)

    @property
    def round(self) -> int:
        return self.driver.head.round

    @property
    def waiting_for(self) -> str:
        """The key of the reason why no round is made."""
        waiting = self.driver.waiting_for
        return waiting.key if waiting else ""

    def state(self, round: int) -> str | None:
        """The digest this peer committed for a round."""
        return next((head.digest for head in self.heads if head.round == round), None)

    def train(self) -> None:
        self._trainer = asyncio.create_task(self._train())

    async def _train(self) -> None:
        while True:
            head = self.driver.begin_work()
            await asyncio.sleep(self.work_s)
            self.driver.worked(self.tokens, 0.0)
            await until(self.driver.own.close.is_set, 600)
            self.handed_over.append(head.digest)
            try:
                await self.driver.finish_work(self.update(head), head.digest)
            except RoundAborted:
                return

    def update(self, head: Head) -> Update:
        vector = self.world.update(self.index, head.round + 1)
        return Update(vector, self.tokens, 0, -(-self.tokens // 16), 1)

    async def stop(self) -> None:
        """Leave as a good member does."""
        await self.driver.leave()
        await self._end_trainer()

    async def vanish(self) -> None:
        """Be gone without a word, as after kill -9; what is left of the engine talks to nobody."""
        os.kill(self.node._p2p._child.pid, 9)
        await self._end_trainer()
        await self.driver.talk.close()

    async def _end_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer.cancel()
            await asyncio.gather(self._trainer, return_exceptions=True)


async def together(stack: contextlib.AsyncExitStack, contexts: Iterable[AbstractAsyncContextManager[T]]) -> list[T]:
    """Enter all of these at the same time: a node spends half of its start waiting for p2pd."""
    entered = await asyncio.gather(*(stack.enter_async_context(item) for item in contexts), return_exceptions=True)
    for item in entered:
        if isinstance(item, BaseException):
            raise item
    return [item for item in entered if not isinstance(item, BaseException)]


async def meet(node: Node, *others: Node) -> None:
    for other in others:
        assert await node.connect(await other.addresses()), "no connection over loopback"


async def acquaint(peers: Iterable[Peer]) -> None:
    """Have all engines know each other."""
    peers = list(peers)
    for index, peer in enumerate(peers):
        await meet(peer.node, *(other.node for other in peers[:index]))
    for peer in peers:
        peer.driver.gossip.contacts |= {other.me for other in peers if other is not peer}


async def agreed(peers: Iterable[Peer], round: int, timeout_s: float = PATIENCE_S) -> str:
    """Wait until all have committed a round, and return the one digest."""
    peers = list(peers)
    await until(lambda: all(peer.round >= round for peer in peers), timeout_s, f"round {round}")
    digests = {peer.state(round) for peer in peers} - {None}
    assert len(digests) == 1, f"round {round}: {digests}"
    return str(digests.pop())


def with_chunk(update: EncodedUpdate, index: int, data: bytes) -> EncodedUpdate:
    """An update whose chunk is another than the one that was claimed; the proofs stay the claimed ones."""
    chunks = list(update.chunks)
    chunks[index] = data
    changed = replace(update, chunks=tuple(chunks))
    changed.__dict__["tree"] = update.tree
    return changed


async def quietly(awaitable: Awaitable[Any]) -> None:
    with contextlib.suppress(Exception):
        await awaitable
