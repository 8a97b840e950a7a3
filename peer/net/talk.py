"""Talk: one member's messages to and from the others, with the membership check that comes before everything.

Streams are named after the run, so only members of the same run meet; who opens one is authenticated by libp2p, and its
first message carries a certificate that must be its own. Whoever has none gets no answer at all.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.message import Message

from peer.net import frames
from peer.net.lines import Lines
from peer.net.node import Node
from peer.net.roster import Roster
from protocol.backoff import Backoff
from protocol.errors import NetworkError
from protocol.parts import Told, failed, keep

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
R = TypeVar("R")

CLOSE_S = 3.0
FIRST_S = 3.0  # for a stream's first message to come
REPLY_S = 20.0  # for an answer to leave
Answer = Callable[[Any, asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


class Talk:
    """Calls to, and streams from, the members of one run.

    Args:
        on_failure: told of each task that fails by a mistake of ours.
    """

    def __init__(
        self,
        node: Node,
        run: str,
        roster: Roster,
        lines: Lines,
        certificate: Callable[[], str],
        on_failure: Told = lambda failure: None,
    ) -> None:
        self.node, self.roster, self.lines = node, roster, lines
        self.certificate, self._on_failure = certificate, on_failure
        self.me = node.peer_id
        self._run = run
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def stream_name(self, name: str) -> str:
        return f"potluck/{self._run}/{name}"

    async def call(
        self, peer: str, name: str, request: Message, reply: type[M], *, more_s: float = 0.0, times: float = 1.0
    ) -> M:
        """Send a message to a member and get its answer.

        Args:
            more_s, times: to wait longer than for a small message that is answered at once.

        Raises:
            NetworkError, FormatError.
        """
        started, timeout_s = time.monotonic(), times * self.lines.patience_s(peer) + more_s
        try:
            answer = await self.node.call(peer, self.stream_name(name), request, reply, timeout_s=timeout_s)
        except NetworkError:
            if time.monotonic() - started >= timeout_s and self.lines.silent_s(peer) < timeout_s:
                self.lines.answered(peer, None)  # it is there, its line is slow
            raise
        if not more_s:
            self.lines.answered(peer, time.monotonic() - started)
        return answer

    async def serve(self, name: str, kind: type[M], answer: Answer, first_s: float = FIRST_S) -> None:
        """Answer the members' messages called `name`: `answer(message, reader, writer, peer_id)`.

        Args:
            first_s: how long the first message may take to come: more where it carries bulk.
        """

        async def handle(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            max_bytes = frames.MAX_FRAME_BYTES if self.roster.is_admitted(peer) else frames.FIRST_FRAME_BYTES
            message: Any = await frames.receive(reader, kind, timeout_s=first_s, max_bytes=max_bytes)
            if message.certificate or not self.roster.is_admitted(peer):
                self.roster.admit(peer, message.certificate)  # who is refused gets no answer
            self.lines.heard(peer)
            await answer(message, reader, writer, peer)

        await self.node.serve(self.stream_name(name), handle)

    async def reply(self, writer: asyncio.StreamWriter, message: Message) -> None:
        await frames.send(writer, message, timeout_s=REPLY_S)

    def spawn(self, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Run something beside; it ends with `close` at the latest, and a failure is logged and told."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        backoff: Backoff | None = None,
        *,
        vital: bool = True,
        is_over: Callable[[], bool] = lambda: False,
    ) -> asyncio.Task[None]:
        """Run one of the swarm's parts beside until `close`, as `protocol.parts.keep`."""
        task = self.spawn(keep(name, work, self._on_failure, backoff, vital=vital, is_over=is_over))
        task.add_done_callback(functools.partial(self._kept_until, name, vital))
        return task

    def _kept_until(self, name: str, vital: bool, task: asyncio.Task[None]) -> None:
        if task.cancelled() and not self._closing:
            failed(name, asyncio.CancelledError("nobody asked for that"), self._on_failure, vital=vital)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            failed("task", task.exception(), self._on_failure, vital=False)

    async def close(self) -> None:
        """End what was spawned; waits `CLOSE_S` at most.

        A task may miss its cancellation: asyncio.wait_for loses some.
        """
        self._closing, tasks = True, list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
