"""A run's members without a model: the update of a round is any vector.

They talk in memory, or over p2pd's loopback sockets.

world = World(tmp_path)
async with world.node(0) as node: ...                     a node in memory; with `p2pd=True` a real one
async with world.peers(3) as peers: ...                   three drivers that know each other, each with a trainer
run(main())                                               an async test, with a deadline
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.kit.builders import fixed_ed25519, fixed_root_key, make_spec

with warnings.catch_warnings():  # hivemind's layers of experts, which nobody here uses, are decorated by torch.jit
    warnings.simplefilter("ignore", DeprecationWarning)
    import hivemind  # noqa: F401

from peer.net.node import Node
from peer.net.pace import Patience
from peer.net.place import SwarmConfig
from peer.net.records import RecordValidator
from peer.round.group import Terms
from peer.sync.shelf import Head
from peer.training.codecs.codec import CHUNK_VALUES, EncodedUpdate
from peer.training.state import SharedState
from protocol import certificate, note
from protocol.agreement import Agreement, group_digest
from protocol.beginners import Beginners
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim, Vote
from protocol.succession import Last, counted
from tests.memory_net import Network
from tests.peer_kit import PATIENCE_S, Peer, Ways, quietly, run, until

__all__ = ["Peer", "World", "acquaint", "agreed", "meet", "quietly", "run", "together", "until", "with_chunk"]

T = TypeVar("T")
VALUES = 150_000  # three chunks


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
        p2pd: bool = False,
        **sync: Any,
    ) -> None:
        self.folder = folder
        self.network = None if p2pd else Network()
        base = spec or make_spec(name, rules=2)
        changes = {"wire": "fp32", "round_tokens": 1000} | sync
        self.spec = base.model_copy(
            update={
                "sync": base.sync.model_copy(update=changes),
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
        if self.network is None:
            node = await Node.start(self.identity_path(index), listen="127.0.0.1:0", validator=RecordValidator())
        else:
            node = cast(Node, self.network.node(self.identity(index).peer_id))
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

    # ---- claims ------------------------------------------------------------------------------------------------------

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

    def agreement(self, claims: Sequence[Signed[Claim]], state: str, last: Last) -> Agreement:
        """A round after `last` that the authors of these claims have agreed on; they are of the first ten members."""
        made, group = claims[0].value, group_digest(claims)
        vote = Vote(run=made.run, round=made.round, attempt=0, group=group, base=made.base, state=state)
        authors = {self.identity(index).peer_id: index for index in range(10)}
        indices = [authors[claim.by] for claim in claims]
        return Agreement(
            claims=tuple(claims),
            votes=tuple(vote.sign(self.identity(index)) for index in indices),
            certificates={claim.by: self.certificate(index) for claim, index in zip(claims, indices, strict=True)},
            counts=counted({claim.by: claim.value for claim in claims}, last, self.spec),
            word=self.named if last.round == 0 else None,
        )

    def terms(self, **changes: Any) -> Terms:
        fields: dict[str, Any] = {
            "run": self.card.run,
            "spec": self.spec,
            "values": self.values,
            "chunk_values": CHUNK_VALUES,
            "last": Last(0, self.genesis.digest),
        }
        return Terms(**(fields | changes))

    # ---- drivers -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def peers(self, count: int, **options: Any) -> AsyncIterator[list[Peer]]:
        """Drivers that know each other; each has a trainer unless `train=False`."""
        async with contextlib.AsyncExitStack() as stack:
            peers = await together(stack, [self.peer(index, **options) for index in range(count)])
            await acquaint(peers)
            yield peers

    @contextlib.asynccontextmanager
    async def peer(self, index: int, *known: Peer, head: Head | None = None, **options: Any) -> AsyncIterator[Peer]:
        """A driver; `options` are those of `Ways` and of `SwarmConfig`."""
        train, names = options.pop("train", True), {item.name for item in fields(Ways)}
        ways = Ways(**{name: options.pop(name) for name in names & options.keys()})
        config = SwarmConfig(**({"patience": Patience(silence_s=2.0, total_s=30.0)} | options))
        async with self.node(index, *(peer.node for peer in known)) as node:
            peer = Peer(self, index, node, head or Head(self.genesis), ways, config)
            await peer.driver.start()
            peer.driver.gossip.contacts |= {other.node.peer_id for other in known}
            if train:
                peer.train()
            try:
                yield peer
            finally:
                await peer.stop()


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
    """Have all drivers know each other."""
    peers = list(peers)
    for index, peer in enumerate(peers):
        await meet(peer.node, *(other.node for other in peers[:index]))
    for peer in peers:
        peer.driver.gossip.contacts |= {other.me for other in peers if other is not peer}


async def agreed(peers: Iterable[Peer], round: int, timeout_s: float = PATIENCE_S) -> str:
    """Wait until all have committed a round, and return the one digest."""
    peers = list(peers)
    await until(lambda: all(peer.kept >= round for peer in peers), timeout_s, f"round {round}")
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
