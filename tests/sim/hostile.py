"""What a hostile or hasty member makes of its core: it is the same one; its events and its actions are bent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peer.round import actions as a
from peer.round import events as e
from peer.round import lead
from peer.round.group import Group
from peer.round.state import Lead, Work
from protocol import canonical
from protocol.agreement import Agreement, group_digest
from protocol.statements import MAX_ATTEMPT, Vote
from protocol.succession import Last, counted
from tests.sim.spec import RUN

if TYPE_CHECKING:
    from tests.sim.member import Member


_BENT = {e.Heard, e.Proposed, e.Averaged}


def bend(me: Member, event: Any) -> Any:
    """The event as this member takes it."""
    usurps = "usurp" in me.world.network.faults
    if not usurps and type(event) not in _BENT:
        return event
    assert me.core is not None
    world, state = me.world, me.core.state
    network = world.network
    if isinstance(event, e.Heard) and event.said.round > state.round and network.is_in("blind", me.name):
        return e.SignOfLife(event.by)
    if isinstance(event, e.Proposed) and state.is_grouped and network.is_in("hasty", me.name):
        state.phase = Work()
    if isinstance(event, e.Averaged) and world.does(me.name, "mislead"):
        lie = f"{me.held[event.state]}, says {me.name}"
        digest = canonical.sha256_hex(lie.encode())
        me.held[digest] = lie
        return replace(event, state=digest)
    if usurps and isinstance(state.phase, Lead) and world.does(me.name, "usurp"):
        _pass_over(me, state.phase)
    return event


def _pass_over(me: Member, phase: Lead) -> None:
    """A usurper cannot change what others have signed: it leaves it out, or behaves as if it did not see it."""
    drops = me.world.network.draw.random() < 0.5
    for peer, said in list(phase.cast.items()):
        me.known |= {group.digest: group for group in said.values()}
        if said and drops:
            phase.left_out[peer] = "passed over"
            del phase.cast[peer], phase.members[peer], phase.promises[peer]
        else:
            phase.cast[peer] = {}


def bent(me: Member, action: Any) -> Any:
    """An action as this member does it."""
    if isinstance(action, a.SendGroup) and me.world.does(me.name, "usurp"):
        shown: Mapping[str, Group] = {item.digest: item for item in action.group.voted}
        return a.SendGroup(action.to, replace(action.group, voted=tuple({**me.known, **shown}.values())))
    if isinstance(action, a.Propose) and me.world.does(me.name, "jump"):
        return replace(action, attempt=MAX_ATTEMPT)
    return action


def lead_out_of_turn(me: Member, asked: list[str]) -> list[Any]:
    """What comes of leading whoever else does; nothing while it is busy."""
    assert me.core is not None
    state = me.core.state
    busy = state.is_grouped or state.saving is not None or state.leaving is not None
    if busy or not isinstance(state.phase, Work | Lead) or state.own.tokens == 0:
        return []
    return lead.propose(state, [state.views[name] for name in asked if name in state.views], me.world.now)


def made_up_head(liar: Member) -> list[Agreement]:
    """Two rounds that a member has made up, and signed alone."""
    found: list[Agreement] = []
    last = liar.last
    for _ in range(2):
        content = f"made up by {liar.name} for round {last.round + 1}"
        state = canonical.sha256_hex(content.encode())
        liar.held[state] = content
        claim = liar.sign(liar.claim(last, 100))
        vote = Vote(run=RUN, round=last.round + 1, attempt=0, group=group_digest([claim]), base=last.state, state=state)
        counts = counted({liar.name: claim.value}, last, liar.world.spec)
        found.append(Agreement((claim,), (liar.sign(vote),), {liar.name: ""}, counts))
        last = Last.of(found[-1])
    return found
