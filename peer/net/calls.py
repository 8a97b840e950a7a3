"""The calls of a round: what members ask each other, and what they answer. `Driver` makes and serves them.

Each question of another member's becomes an event with a future for its call; the core's answer is an action with that
future. Each call of this member's is a task that ends in an event.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from peer.net import wire
from peer.round import actions as a
from peer.round import events as e
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError, PotluckError, RefusedError

if TYPE_CHECKING:
    from peer.net.driver import Driver

logger = logging.getLogger(__name__)

ANSWER_MOST_S = 90.0  # for the core to answer a call: its own deadlines are shorter
_UNREAD = (NetworkError, FormatError, RefusedError)


# ---- what others ask -------------------------------------------------------------------------------------------------


async def serve(driver: Driver) -> None:
    """Answer the other members' calls."""

    async def proposal(message: swarm_pb2.Proposal, reader: Any, writer: Any, peer: str) -> None:
        call = _call()
        driver.post(wire.proposed(message, peer, call, driver.opening))
        answer = await _answer(call)
        reply = swarm_pb2.ProposalReply(reason="no answer in time")
        ready = driver.own.ready
        if isinstance(answer, a.Decline):
            reply = swarm_pb2.ProposalReply(reason=answer.why, attempt=max(answer.attempt, 0))
        elif isinstance(answer, a.Join) and ready is not None:
            config = driver.state.config
            reply = wire.join_reply(answer, ready.claim, config.certificate(), config.reachable)
        await driver.talk.reply(writer, reply)

    async def group(message: swarm_pb2.Group, reader: Any, writer: Any, peer: str) -> None:
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(None, wire.group, message, peer, driver.opening)
        except PotluckError as error:
            await driver.talk.reply(writer, swarm_pb2.GroupReply(reason=error.message))
            return
        if banned := driver.roster.banned & found.by_peer.keys():
            await driver.talk.reply(writer, swarm_pb2.GroupReply(reason=f"the host has banned {min(banned)}"))
            return
        call = _call()
        driver.post(e.Grouped(call, peer, found))
        answer = await _answer(call)
        why = answer.why if isinstance(answer, a.Decline) else ""
        accepted = isinstance(answer, a.Accept)
        await driver.talk.reply(writer, swarm_pb2.GroupReply(accepted=accepted, reason=why))

    async def vote(message: swarm_pb2.VoteMessage, reader: Any, writer: Any, peer: str) -> None:
        call = _call()
        try:
            event = wire.votes_told(peer, message, call, driver.opening)
        except PotluckError:
            event = e.Votes(peer, None, (), call)
        driver.post(event)
        answer = await _answer(call)
        reply = wire.votes_reply(answer) if isinstance(answer, a.ShowVotes) else swarm_pb2.VoteReply()
        await driver.talk.reply(writer, reply)

    async def abort(message: swarm_pb2.Abort, reader: Any, writer: Any, peer: str) -> None:
        driver.post(wire.gave_up(message, peer))
        await driver.talk.reply(writer, swarm_pb2.Ack())

    await driver.talk.serve("propose", swarm_pb2.Proposal, proposal)
    await driver.talk.serve("group", swarm_pb2.Group, group)
    await driver.talk.serve("vote", swarm_pb2.VoteMessage, vote)
    await driver.talk.serve("abort", swarm_pb2.Abort, abort)


def _call() -> asyncio.Future[a.Action]:
    return asyncio.get_running_loop().create_future()


async def _answer(call: asyncio.Future[a.Action]) -> a.Action | None:
    """What the core answers; None: nothing in time."""
    done, _ = await asyncio.wait({call}, timeout=ANSWER_MOST_S)
    return call.result() if done else None


def heard(driver: Driver, peer: str, message: swarm_pb2.Progress) -> e.Heard:
    """What a member says of itself. Raises: FormatError, RefusedError."""
    farewells = wire.farewells(message.farewells, driver.opening)
    return e.Heard(peer, wire.said(message, reduces=driver.roster.reduces(peer)), farewells)


def coordinator_said(driver: Driver, ledger_round: int, named: bytes, banned: bytes) -> None:
    """What the coordinator tells, as it came.

    Args:
        named: its signed word on who begins; empty: none.
        banned: its signed list of who is banned; empty: none that is newer.
    """
    word = None
    try:
        word = driver.opening.word(named) if named else None
    except (FormatError, RefusedError) as error:
        logger.warning("the coordinator names beginners, and that does not hold: %s", error.message)
    driver.post(e.CoordinatorSaid(ledger_round, word))
    if banned:
        driver.bans.take(banned)


# ---- what this member asks -------------------------------------------------------------------------------------------


def make(driver: Driver, action: a.Action) -> None:
    """Call others, each in a task."""
    certificate = driver.state.config.certificate()
    match action:
        case a.Propose():
            message = wire.proposal(action, certificate)
            for peer in action.to:
                driver.talk.spawn(_propose(driver, peer, message))
        case a.SendGroup(to, group):
            sent = wire.group_message(group, certificate)
            for peer in to:
                driver.talk.spawn(_send_group(driver, peer, sent))
        case a.SendVote(to, vote, lacks):
            told = swarm_pb2.VoteMessage(certificate=certificate, vote=vote.data, lacks=list(lacks))
            for peer in to:
                driver.talk.spawn(_send_vote(driver, peer, told))
        case a.SendAbort(to):
            for peer in to:
                driver.talk.spawn(_send_abort(driver, peer, wire.abort(action, certificate)))
        case a.AskHead(to, since, patience_s):
            driver.talk.spawn(_ask_head(driver, to, since, patience_s))
        case _:
            raise AssertionError(f"nobody does {action}")


async def _propose(driver: Driver, peer: str, message: swarm_pb2.Proposal) -> None:
    event: e.Event
    try:
        reply = await driver.talk.call(peer, "propose", message, swarm_pb2.ProposalReply, more_s=message.timeout_s)
        if reply.accepted:
            loop = asyncio.get_running_loop()
            event = await loop.run_in_executor(None, wire.joined, reply, peer, message.attempt, driver.opening)
        else:
            event = e.Declined(peer, message.attempt, reply.reason[:200])
    except _UNREAD as error:
        event = e.Declined(peer, message.attempt, error.message)
    driver.post(event)


async def _send_group(driver: Driver, peer: str, message: swarm_pb2.Group) -> None:
    try:
        reply = await driver.talk.call(peer, "group", message, swarm_pb2.GroupReply, times=2.0)
        why = "" if reply.accepted else reply.reason[:200] or "refused"
        driver.post(e.GroupTaken(peer, message.attempt, why))
    except (NetworkError, FormatError) as error:
        driver.post(e.GroupTaken(peer, message.attempt, error.message, reached=False))


async def _send_vote(driver: Driver, peer: str, message: swarm_pb2.VoteMessage) -> None:
    try:
        reply = await driver.talk.call(peer, "vote", message, swarm_pb2.VoteReply)
        driver.post(wire.votes_shown(peer, reply, driver.opening))
    except _UNREAD as error:
        logger.debug("vote to %s: %s", peer[-8:], error.message)


async def _send_abort(driver: Driver, peer: str, message: swarm_pb2.Abort) -> None:
    try:
        await driver.talk.call(peer, "abort", message, swarm_pb2.Ack)
    except _UNREAD as error:
        logger.debug("abort to %s: %s", peer[-8:], error.message)


async def _ask_head(driver: Driver, peer: str, since: int, patience_s: float) -> None:
    driver.post(await driver.heads.ask(peer, since, patience_s))
