"""One all-reduce among members that run a `Reduction`, or speak its frames by hand, over streams in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from peer.net import frames
from peer.net.allreduce import STREAM, Reduction
from peer.net.lines import Lines
from peer.net.node import Node
from peer.net.pace import Pace, Patience
from peer.net.roster import Roster
from peer.net.talk import Talk
from peer.round.events import Heard, Said
from peer.round.group import Group, Member
from peer.round.state import Timing
from peer.training.codecs.codec import EncodedUpdate
from peer.training.robust import aggregator
from protocol import swarm_pb2
from protocol.errors import NetworkError, RoundAborted
from tests.core_kit import after_round_1, make_core
from tests.swarm_kit import World

LIMITS = Patience(silence_s=600.0, total_s=600.0)  # beyond a test's deadline: only what it is about ends an attempt
SILENT = Patience(silence_s=4.0, total_s=600.0)  # for those who wait for one; a busy machine is silent for a second


class Party:
    """One member's side of an all-reduce; it runs a `Reduction`, or speaks frames by hand."""

    def __init__(self, made: Attempt, index: int, node: Node) -> None:
        self.made, self.node, self.me, world = made, node, node.peer_id, made.world
        self.update, self.stages = made.sent[index], list[str]()
        core = make_core(self.me, world.spec, after_round_1({}), now=time.monotonic(), timing=Timing(alive_s=600.0))
        lines = Lines(core.state, lambda event: core.step(event, time.monotonic()))
        roster, token = Roster(world.card.run, world.card.member_key), world.certificate(index)
        for member in made.group.members:  # all are there
            core.step(Heard(member.peer, Said(2, "")), time.monotonic())
            roster.admit(member.peer, member.certificate)
        self.talk = Talk(node, world.card.run, roster, lines, lambda: token)
        self.reduction = Reduction(
            made.group,
            self.update,
            self.talk,
            Pace(made.patience),
            aggregator(world.spec.sync.clip),
            self.stages.append,
        )

    async def serve(self, answer: Callable[..., Awaitable[None]] | None = None) -> None:
        """Answer the others' streams, by hand if `answer` is given."""

        async def reduce(first: swarm_pb2.Part, reader: Any, writer: Any, peer: str) -> None:
            await self.reduction.serve(peer, first, reader, writer)

        await self.talk.serve(STREAM, swarm_pb2.Part, answer or reduce, first_s=600.0)

    def part(self, chunk: int, **changes: Any) -> swarm_pb2.Part:
        fields = {"chunk": chunk, "data": self.update.chunks[chunk], "proof": self.update.proof(chunk)}
        group = self.made.group
        return swarm_pb2.Part(
            **(fields | {"certificate": self.talk.certificate(), "group": group.digest} | changes)  # type: ignore[arg-type]
        )

    async def sends(self, to: Party, *parts: swarm_pb2.Part) -> None:
        """By hand: send these, and take what comes, until the other side closes the stream."""
        async with self.node.stream(to.me, self.talk.stream_name(STREAM)) as (reader, writer):
            for part in parts:
                await frames.send(writer, part, timeout_s=600)
            with contextlib.suppress(NetworkError):
                while True:
                    await frames.receive(reader, swarm_pb2.Part, timeout_s=600)


class Attempt:
    """One group and its members.

    Args:
        claimed: index -> an update in place of the usual one.
        spoilt: the same, and the claim is to the usual one.
        shares: of the reducing; 0: cannot be reached.
    """

    def __init__(
        self,
        world: World,
        nodes: list[Node],
        patience: Patience = LIMITS,
        shares: tuple[int, ...] = (),
        claimed: Callable[[EncodedUpdate], EncodedUpdate] = lambda update: update,
        spoilt: Callable[[EncodedUpdate], EncodedUpdate] = lambda update: update,
    ) -> None:
        self.world, self.patience = world, patience
        encoded = [EncodedUpdate.encode(world.update(index), world.spec.sync.wire) for index in range(len(nodes))]
        self.updates = [*encoded[:-1], claimed(encoded[-1])]
        self.sent = [*self.updates[:-1], spoilt(self.updates[-1])]
        members = []
        for index, update in enumerate(self.updates):
            claim = world.claim(index, update).sign(world.identity(index))
            share = shares[index] if shares else 1
            members.append(Member(claim.by, claim, world.certificate(index), share > 0, share))
        group = Group(1, world.genesis.digest, 0, nodes[0].peer_id, tuple(members), word=world.named)
        self.group = group.weighed(world.terms(word=world.named))
        self.parties = [Party(self, index, node) for index, node in enumerate(nodes)]

    async def serve(self, which: list[Party] | None = None) -> None:
        for party in self.parties if which is None else which:
            await party.serve()

    async def run(self, which: list[Party] | None = None) -> list[Any]:
        parties = self.parties if which is None else which
        return await asyncio.gather(*(party.reduction.run() for party in parties), return_exceptions=True)


@contextlib.asynccontextmanager
async def attempt(tmp_path: Path, count: int = 3, **options: Any) -> AsyncIterator[Attempt]:
    """The last member is the one that is bad, if one is."""
    world = World(tmp_path, **options.pop("sync", {}))
    async with world.nodes(count) as nodes:
        yield Attempt(world, nodes, **options)


@contextlib.asynccontextmanager
async def meanwhile(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def all_failed(outcomes: list[Any]) -> bool:
    return all(isinstance(outcome, RoundAborted) for outcome in outcomes)
