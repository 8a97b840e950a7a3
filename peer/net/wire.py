"""The wire: messages to events, actions to messages.

What comes from outside is bounded, then opened; nothing is decided.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from peer.net.opening import Opening
from peer.round import actions as a
from peer.round import events as e
from peer.round.farewells import MAX_FAREWELLS, Farewells
from peer.round.group import MAX_LEFT_OUT, MAX_REASON, MAX_REDUCERS, MAX_VOTED, Group, Member, Reducer
from protocol import swarm_pb2
from protocol.agreement import MAX_GROUP
from protocol.errors import FormatError, VerificationError
from protocol.signed import Signed
from protocol.statements import MAX_ATTEMPT, Claim, Farewell, Promise, Vote

MAX_TOKENS = 2**53
MAX_HEARD = 4096
MAX_VOTES = 64  # that a member tells of


def _sane(value: float) -> float:
    return value if 0 <= value < 1e12 else 0.0


# ---- progress --------------------------------------------------------------------------------------------------------


def said(message: swarm_pb2.Progress, *, reduces: bool) -> e.Said:
    """What a member says of itself.

    Args:
        reduces: whether the host trusts it to reduce for all.
    """
    return e.Said(
        round=message.round,
        base=message.base[:64],
        tokens=min(message.tokens, MAX_TOKENS),
        attempt=min(message.attempt, MAX_ATTEMPT),
        leaving=message.leaving,
        reduce_only=message.reduce_only and reduces,
        step_s=_sane(message.step_s),
        hears=min(message.hears, MAX_HEARD),
        up_bytes_s=_sane(message.up_bytes_s),
        epoch=message.epoch,
        from_me_bytes_s=_sane(message.from_you_bytes_s),
    )


def progress(own: e.Said) -> swarm_pb2.Progress:
    """The message of the moment, without what is another one for each member."""
    return swarm_pb2.Progress(
        round=own.round,
        base=own.base,
        tokens=own.tokens,
        attempt=own.attempt,
        leaving=own.leaving,
        reduce_only=own.reduce_only,
        step_s=own.step_s,
        hears=own.hears,
        up_bytes_s=own.up_bytes_s,
        epoch=own.epoch,
    )


def farewells(envelopes: Iterable[bytes], opening: Opening) -> list[Signed[Farewell]]:
    """Raises: FormatError, RefusedError: too many, or one with a bad signature."""
    found = list(envelopes)
    if len(found) > MAX_FAREWELLS:
        raise FormatError(f"expected at most {MAX_FAREWELLS} farewells")
    return [opening.statement(Farewell, data) for data in found]


# ---- proposals -------------------------------------------------------------------------------------------------------


def proposal(action: a.Propose, certificate: str) -> swarm_pb2.Proposal:
    return swarm_pb2.Proposal(
        certificate=certificate,
        round=action.round,
        base=action.base,
        attempt=action.attempt,
        timeout_s=action.timeout_s,
        asked=action.asked,
        word=action.word.data if action.word else b"",
    )


def proposed(message: swarm_pb2.Proposal, by: str, call: object, opening: Opening) -> e.Proposed:
    """A member's proposal. Raises: FormatError, RefusedError: the word that it shows does not hold."""
    asked, word = list(message.asked[:MAX_GROUP]), opening.word(message.word) if message.word else None
    return e.Proposed(call, by, message.round, message.base, message.attempt, _sane(message.timeout_s), asked, word)


def join_reply(action: a.Join, claim: Signed[Claim], certificate: str, can_reduce: bool) -> swarm_pb2.ProposalReply:
    voted = []
    if action.vote is not None and action.group is not None:
        voted = [swarm_pb2.Voted(vote=action.vote.data, group=group_message(action.group.bare(), ""))]
    return swarm_pb2.ProposalReply(
        accepted=True,
        certificate=certificate,
        claim=claim.data,
        can_reduce=can_reduce,
        voted=voted,
        promise=action.promise.data,
        farewells=[item.data for item in action.farewells],
        unheard=action.unheard,
    )


def joined(reply: swarm_pb2.ProposalReply, by: str, attempt: int, opening: Opening) -> e.Joined:
    """A member's answer to this one's proposal. Raises: FormatError, RefusedError."""
    claim = opening.statement(Claim, reply.claim)
    opening.member_is(reply.certificate, claim.by)
    if len(reply.voted) > MAX_VOTES:
        raise FormatError(f"expected at most {MAX_VOTES} votes")
    shown = tuple(
        (opening.statement(Vote, item.vote), group(item.group, "", opening, shown=True)) for item in reply.voted
    )
    return e.Joined(
        by,
        attempt,
        Member(claim.by, claim, reply.certificate, reply.can_reduce, int(reply.can_reduce)),
        opening.statement(Promise, reply.promise),
        shown,
        farewells(reply.farewells, opening),
        list(reply.unheard[:MAX_GROUP]),
    )


# ---- groups ----------------------------------------------------------------------------------------------------------


def group_message(item: Group, certificate: str) -> swarm_pb2.Group:
    return swarm_pb2.Group(
        certificate=certificate,
        round=item.round,
        base=item.base,
        attempt=item.attempt,
        complete=item.complete,
        promises=[promise.data for promise in item.promises],
        voted=[group_message(other.bare(), "") for other in item.voted],
        word=item.word.data if item.word else b"",
        members=[
            swarm_pb2.GroupMember(
                certificate=member.certificate,
                claim=member.claim.data,
                can_reduce=member.can_reduce,
                share=member.share,
            )
            for member in item.members
        ],
        left_out=[swarm_pb2.LeftOut(peer=peer, reason=reason) for peer, reason in item.left_out],
        farewells=[said.data for said in item.farewells.signed],
        witnesses=[token for _, token in item.witnesses],
        reducers=[swarm_pb2.Reducer(certificate=reducer.certificate, share=reducer.share) for reducer in item.reducers],
    )


def group(message: swarm_pb2.Group, leader: str, opening: Opening, *, shown: bool = False) -> Group:
    """A group whose signatures hold; whether it keeps the rules says `Group.weighed`.

    Args:
        shown: it was let in before: its members' certificates may have ended since.

    Raises:
        FormatError, RefusedError: too large, or a signature or certificate does not hold.
    """
    _check_sizes(message, shown)
    ended = shown or bool(message.complete)
    members = []
    for item in message.members:
        claim = opening.statement(Claim, item.claim)
        opening.member_is(item.certificate, claim.by, accept_expired=ended)
        share = item.share if item.can_reduce else 0
        members.append(Member(claim.by, claim, item.certificate, item.can_reduce, share))
    reducers = []
    for helper in message.reducers:
        membership = opening.member(helper.certificate)
        if not membership.reducer:
            raise VerificationError("the host does not trust this peer to reduce for the others")
        reducers.append(Reducer(membership.peer_id, helper.certificate, helper.share))
    witnesses = tuple((opening.member(token, accept_expired=ended).peer_id, token) for token in message.witnesses)
    said_goodbye = Farewells.of(farewells(message.farewells, opening))
    for goodbye in said_goodbye.by_peer.values():
        if (goodbye.value.run, goodbye.value.round) != (opening.run, message.round):
            raise VerificationError(
                f"a farewell for round {goodbye.value.round} of a run, expected round {message.round}"
            )
    return Group(
        message.round,
        message.base,
        message.attempt,
        leader,
        tuple(members),
        complete=message.complete,
        promises=tuple(opening.statement(Promise, data) for data in message.promises),
        voted=tuple(group(other, "", opening, shown=True) for other in message.voted),
        word=opening.word(message.word) if message.word else None,
        left_out=tuple((item.peer[:64], item.reason[:MAX_REASON]) for item in message.left_out[:MAX_LEFT_OUT]),
        farewells=said_goodbye,
        reducers=tuple(reducers),
        witnesses=witnesses,
    )


def _check_sizes(message: swarm_pb2.Group, shown: bool) -> None:
    if max(len(message.members), len(message.promises), len(message.witnesses)) > MAX_GROUP:
        raise VerificationError(f"a group has at most {MAX_GROUP} members, promises and witnesses")
    if len(message.reducers) > MAX_REDUCERS:
        raise VerificationError(f"at most {MAX_REDUCERS} reduce for a group")
    if len(message.voted) > MAX_VOTED:
        raise VerificationError(f"the promises of an attempt are about {MAX_VOTED} groups at most")
    if shown and (message.voted or message.promises):
        raise VerificationError("a group that was voted on is shown without what led to it")


# ---- votes -----------------------------------------------------------------------------------------------------------


def votes_told(by: str, message: swarm_pb2.VoteMessage, call: object, opening: Opening) -> e.Votes:
    """A member's vote, which waits for this one's. Raises: FormatError, RefusedError."""
    return e.Votes(by, opening.statement(Vote, message.vote), (), call, list(message.lacks)[:MAX_GROUP])


def votes_shown(by: str, reply: swarm_pb2.VoteReply, opening: Opening) -> e.Votes:
    """A member's answer. Raises: FormatError, RefusedError."""
    passed_on = [opening.statement(Vote, data) for data in list(reply.others)[:MAX_GROUP]]
    return e.Votes(by, opening.statement(Vote, reply.vote) if reply.vote else None, passed_on)


def votes_reply(action: a.ShowVotes) -> swarm_pb2.VoteReply:
    return swarm_pb2.VoteReply(
        vote=action.own.data if action.own else b"", others=[vote.data for vote in action.others]
    )


def abort(action: a.SendAbort, certificate: str) -> swarm_pb2.Abort:
    return swarm_pb2.Abort(
        certificate=certificate,
        group=action.group,
        round=action.round,
        attempt=action.attempt,
        reason=action.why,
        culprit=action.culprit,
    )


def gave_up(message: swarm_pb2.Abort, by: str) -> e.GaveUp:
    return e.GaveUp(by, message.group, message.attempt, message.reason[:200], message.culprit[:64])


def group_of_bytes(data: bytes, opening: Opening) -> Group:
    """A group that a box has kept. Raises: FormatError, RefusedError."""
    try:
        return group(swarm_pb2.Group.FromString(data), "", opening, shown=True)
    except DecodeError as error:
        raise FormatError("not a group") from error
