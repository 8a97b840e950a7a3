"""Lets calls in: one coroutine for each, so that waiting for a stranger costs no thread. `server` runs it on `service`.

A call is counted by the network that it comes from before anything of it is read; its first message must be there
within seconds, it makes progress or is ended, and it has an end in any case, whatever deadline the caller set. Only
when a request is there whole is a thread asked for, and one network has no more than a few of them at a time. Answers
are sent under the same clock: whoever does not read holds nothing for long.

Errors of ours become status codes here and nowhere else; the hint travels as trailing metadata.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from coordinator.places import Places, network_of
from coordinator.service import CoordinatorService, UnauthenticatedError
from coordinator.store.database import StoreAway
from protocol import coordinator_pb2
from protocol.errors import FormatError, InputError, NetworkError, PotluckError, RefusedError
from protocol.rpc import HINT_KEY

logger = logging.getLogger(__name__)

SERVICE = "potluck.v1.Coordinator"
_MESSAGES_AHEAD = 2  # of an upload, in memory
_CODES: list[tuple[type[PotluckError], grpc.StatusCode]] = [
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (FormatError, grpc.StatusCode.INVALID_ARGUMENT),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (InputError, grpc.StatusCode.NOT_FOUND),
    (NetworkError, grpc.StatusCode.RESOURCE_EXHAUSTED),
]
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What calls may take; `each`: from one network."""

    calls: int = 1024  # under way
    calls_each: int = 64
    reports: int = 64  # likewise, each with up to `protocol.rpc.MAX_MESSAGE_BYTES` of memory
    reports_each: int = 8
    transfers: int = 64  # likewise, each with some MiB
    transfers_each: int = 8
    request_s: float = 10.0  # from the call to its whole request
    report_request_s: float = 60.0  # likewise, of a report: 8 MiB at 1 Mbit/s
    answer_s: float = 60.0  # from the call to its end
    report_answer_s: float = 120.0
    fetch_s: float = 300.0  # likewise, of a file; the client resumes
    idle_s: float = 30.0  # the longest pause in a transfer
    threads: int = 12  # for short work
    threads_each: int = 4
    report_threads: int = 4  # checking one costs up to a second of CPU
    report_threads_each: int = 2
    upload_threads: int = 8  # all but one of them only learn that nothing is asked of them
    upload_threads_each: int = 1
    reveal_threads: int = 4  # work that is to be replayed; a network with several members waits for itself
    reveal_threads_each: int = 2


class Workers:
    """Threads, of which each network has a few at a time; its further work waits for these."""

    def __init__(self, name: str, total: int, each: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=total, thread_name_prefix=name)
        self._each = each
        self._turns: dict[str, tuple[asyncio.Semaphore, int]] = {}  # network -> turns, and how many want or have one

    async def run(self, network: str, work: Callable[..., T], *arguments: Any) -> T:
        """Do some work in a thread. The turn ends with the work, even if nobody waits for it any more."""
        turns, users = self._turns.get(network, (asyncio.Semaphore(self._each), 0))
        self._turns[network] = (turns, users + 1)
        try:
            await turns.acquire()
        except asyncio.CancelledError:
            self._leave(network)
            raise
        job = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

        def over(done: asyncio.Future[T]) -> None:
            turns.release()
            self._leave(network)
            if not done.cancelled():
                done.exception()  # who waits for it raises it; nobody else need be told

        job.add_done_callback(over)
        return await asyncio.shield(job)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, network: str) -> None:
        turns, users = self._turns[network]
        if users == 1:
            del self._turns[network]
        else:
            self._turns[network] = (turns, users - 1)


class Feed:
    """An upload's messages on their way from the call to the thread that takes them."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s, self._loop = idle_s, asyncio.get_running_loop()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(_MESSAGES_AHEAD)
        self._end = NetworkError("the upload was broken off", "it will be asked for again")

    async def fill(self, context: Any) -> None:
        """Read until the sender has said all."""
        while True:
            await self._room.acquire()
            async with asyncio.timeout(self._idle_s):
                message = await context.read()
            if message is grpc.aio.EOF:
                return self._messages.put(None)
            self._messages.put(message)

    def break_off(self) -> None:
        """Whoever takes the messages is told that no more come."""
        self._messages.put(self._end)

    def messages(self) -> Iterator[Any]:
        """The messages, in a thread. Raises: NetworkError: they break off."""
        while (message := self._messages.get()) is not None:
            if message is self._end:
                raise self._end
            self._loop.call_soon_threadsafe(self._room.release)
            yield message


@dataclass
class _Kind:
    """What holds for the calls of one method."""

    answer: Callable[[Any, str, Any, Callable[[], None]], Any]  # request, network, context, how to end the call
    request_s: float  # from the call to its whole request
    limit_s: float  # from the call to its end
    places: Places | None = None  # beside those of all calls


class Door:
    """Takes the calls of one service, in the loop that it was made in.

    Args:
        service: has a handler for each method.
        limits: what calls may take.
    """

    def __init__(self, service: CoordinatorService, limits: Limits) -> None:
        self._service, self._limits = service, limits
        self._calls = Places(total=limits.calls, each=limits.calls_each)
        transfers = Places(total=limits.transfers, each=limits.transfers_each)
        reports = Places(total=limits.reports, each=limits.reports_each)
        self._short = Workers("coordinator", limits.threads, limits.threads_each)
        self._reports = Workers("reports", limits.report_threads, limits.report_threads_each)
        self._uploads = Workers("uploads", limits.upload_threads, limits.upload_threads_each)
        self._reveals = Workers("reveals", limits.reveal_threads, limits.reveal_threads_each)
        report, chain = (
            _Kind(self._unary(name, self._reports), limits.report_request_s, limits.report_answer_s, reports)
            for name in ("Report", "ReportChain")
        )
        self._kinds = {
            "FetchFile": _Kind(self._fetch, limits.request_s, limits.fetch_s, transfers),
            "UploadState": _Kind(
                self._upload("UploadState", self._uploads), limits.request_s, service.upload_s, transfers
            ),
            "Reveal": _Kind(self._upload("Reveal", self._reveals), limits.request_s, service.reveal_s, transfers),
            "Report": report,
            "ReportChain": chain,
        }

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """For the server: every method as one of streams: on the wire that is the same, and the clock runs first."""
        methods = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods_by_name
        found = {}
        for name, method in methods.items():
            kind = self._kinds.get(name) or self._short_kind(self._unary(name, self._short))
            types = (getattr(coordinator_pb2, item.name) for item in (method.input_type, method.output_type))
            found[name] = self._method(kind, *types)
        # of the standard health service, without its `Watch`, which keeps a call open for ever
        health = self._method(self._short_kind(_healthy), health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)
        return [
            grpc.method_handlers_generic_handler(SERVICE, found),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),
        ]

    def close(self) -> None:
        for workers in (self._short, self._reports, self._uploads, self._reveals):
            workers.close()

    def _short_kind(self, answer: Callable[..., Any]) -> _Kind:
        return _Kind(answer, self._limits.request_s, self._limits.answer_s)

    def _method(self, kind: _Kind, request: Any, reply: Any) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(
            self._guarded(kind), request_deserializer=request.FromString, response_serializer=reply.SerializeToString
        )

    def _guarded(self, kind: _Kind) -> Callable[[Any, Any], Any]:
        """A call with its places and its clock."""

        async def call(_requests: Any, context: Any) -> None:
            network = network_of(context.peer())
            try:
                async with self._clock(kind.limit_s) as end, contextlib.AsyncExitStack() as stack:
                    for places in (self._calls, kind.places):
                        if places is not None:
                            stack.enter_context(places.taken(network, end))
                    async with asyncio.timeout(kind.request_s):
                        request = await context.read()
                    if request is grpc.aio.EOF:
                        raise FormatError("expected a request, got nothing")
                    await kind.answer(request, network, context, end)
            except TimeoutError:
                await context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "the call took too long, or others had to be let in"
                )
            except StoreAway as error:
                await _abort(
                    context, NetworkError(f"the ledger cannot be written now: {error.orig}", "try again later")
                )
            except PotluckError as error:
                await _abort(context, error)

        return call

    @contextlib.asynccontextmanager
    async def _clock(self, limit_s: float) -> AsyncIterator[Callable[[], None]]:
        """The time that a call has; gives what ends it at once, from any thread."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(limit_s) as clock:

            def stop() -> None:
                if not clock.expired():
                    with contextlib.suppress(RuntimeError):  # over meanwhile
                        clock.reschedule(loop.time())

            def end() -> None:
                loop.call_soon_threadsafe(stop)

            yield end

    def _unary(self, name: str, workers: Workers) -> Callable[..., Any]:
        handler = getattr(self._service, name)

        async def answer(request: Any, network: str, context: Any, _end: Callable[[], None]) -> None:
            await context.write(await workers.run(network, handler, request, network))

        return answer

    async def _fetch(self, request: Any, network: str, context: Any, end: Callable[[], None]) -> None:
        peer_id, pieces = await self._short.run(network, self._service.FetchFile, request, network)
        with self._service.transfers.taken(peer_id, end):
            while (piece := await self._short.run(network, next, pieces, None)) is not None:
                async with asyncio.timeout(self._limits.idle_s):
                    await context.write(coordinator_pb2.FilePart(data=piece))

    def _upload(self, name: str, workers: Workers) -> Callable[..., Any]:
        handler = getattr(self._service, name)

        async def answer(first: Any, network: str, context: Any, _end: Callable[[], None]) -> None:
            feed = Feed(self._limits.idle_s)
            taking = asyncio.create_task(workers.run(network, handler, first, network, feed.messages()))
            filling = asyncio.create_task(feed.fill(context))
            try:
                await asyncio.wait({taking, filling}, return_when=asyncio.FIRST_COMPLETED)
                if filling.done():
                    filling.result()
                reply = await taking
            finally:
                feed.break_off()
                for task in (filling, taking):
                    task.cancel()
                await asyncio.gather(filling, taking, return_exceptions=True)
            await context.write(reply)

        return answer


async def _healthy(_request: Any, _network: str, context: Any, _end: Callable[[], None]) -> None:
    await context.write(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING))


async def _abort(context: Any, error: PotluckError) -> NoReturn:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if error.hint:
        context.set_trailing_metadata(((HINT_KEY, error.hint.encode()),))
    await context.abort(code, error.message)
    raise AssertionError("abort raises")
