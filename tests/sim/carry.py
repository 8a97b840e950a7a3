"""What a core's actions do in a simulated run: messages go on their way, tasks begin, the disk writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from peer.round import actions as a
from peer.round import events as e
from peer.round.group import Member as Grouped
from protocol.errors import RefusedError
from tests.sim import hostile, tasks

if TYPE_CHECKING:
    from tests.sim.member import Member

NO_ANSWER = 6  # ticks until a call whose answer was lost fails


def carry_out(me: Member, actions: Sequence[Any]) -> None:
    """Do what a core says, in the order of the list."""
    life, faults = me.starts, me.world.network.faults
    for action in actions:
        if me.core is None or me.starts != life:
            return
        _DO[type(action)](me, hostile.bent(me, action) if faults else action)


def _nothing(me: Member, action: Any) -> None:
    """For people, or for what is not simulated."""


def _save(me: Member, action: a.SaveBox) -> None:
    """A box comes to the disk; its member may be killed right before or after."""
    world = me.world
    killed = world.network.is_in("shaky", me.name) and world.network.draw.random() < 0.05
    if not killed or world.network.draw.random() < 0.5:
        me.disk.box = action.box
    if killed:
        world.restart(me)
    else:
        world.step(me, e.BoxSaved())


# ---- calls -----------------------------------------------------------------------------------------------------------


def _send(me: Member, to: str, what: str, event: Any) -> bool:
    """Put a message on its way; whether it is."""
    world = me.world
    member, delays = world.members[to], world.network.delays(me.name, to, what)
    if member.core is None:
        return False
    for ticks in delays:
        world.tell(ticks, member, event)
    return bool(delays)


def _propose(me: Member, action: a.Propose) -> None:
    call = ("propose", me.name, action.attempt)
    at = (action.round, action.base, action.attempt, action.timeout_s, action.asked, action.word)
    for peer in action.to:
        if not _send(me, peer, "propose", e.Proposed(call, me.name, *at)):
            me.world.tell(1, me, e.Declined(peer, action.attempt, "not reached"))


def _send_group(me: Member, action: a.SendGroup) -> None:
    attempt = action.group.attempt
    papers = me.world.papers
    for peer in action.to:
        try:
            group = papers.carried(action.group, shown=False) if papers else action.group
        except RefusedError as error:
            me.world.tell(2, me, e.GroupTaken(peer, attempt, error.message))
            continue
        if not _send(me, peer, "group", e.Grouped(("group", me.name, attempt), me.name, group)):
            me.world.tell(1, me, e.GroupTaken(peer, attempt, "not reached", reached=False))


def _send_vote(me: Member, action: a.SendVote) -> None:
    for peer in action.to:
        _send(me, peer, "vote", e.Votes(me.name, action.vote, (), ("vote", me.name, 0), action.lacks))


def _send_abort(me: Member, action: a.SendAbort) -> None:
    for peer in action.to:
        _send(me, peer, "", e.GaveUp(me.name, action.group, action.attempt, action.why, action.culprit))


# ---- answers: to a call, which is (what, who asks, attempt) ----------------------------------------------------------


def _join(me: Member, action: a.Join) -> None:
    _, leader, attempt = action.call  # type: ignore[misc]
    claim = me.core.state.own.claim  # type: ignore[union-attr]
    papers = me.world.papers
    made = Grouped(me.name, claim, me.config.certificate(), True)
    try:
        group = papers.carried(action.group, shown=True) if papers and action.group else action.group
    except RefusedError as error:
        me.world.tell(2, me.world.members[leader], e.Declined(me.name, attempt, error.message))
        return
    shown = ((action.vote, group),) if action.vote and group else ()
    event = e.Joined(me.name, attempt, made, action.promise, shown, action.farewells, action.unheard)
    if not _send(me, leader, "answer", event):
        me.world.tell(NO_ANSWER, me.world.members[leader], e.Declined(me.name, attempt, "no answer"))


def _decline(me: Member, action: a.Decline) -> None:
    kind, asker, attempt = action.call  # type: ignore[misc]
    made = e.Declined if kind == "propose" else e.GroupTaken
    if kind != "vote":
        _send(me, asker, "answer", made(me.name, attempt, action.why))


def _accept(me: Member, action: a.Accept) -> None:
    _, leader, attempt = action.call  # type: ignore[misc]
    _send(me, leader, "answer", e.GroupTaken(me.name, attempt))


def _show_votes(me: Member, action: a.ShowVotes) -> None:
    _, asker, _ = action.call  # type: ignore[misc]
    _send(me, asker, "vote", e.Votes(me.name, action.own, action.others))


_DO: dict[type, Callable[[Member, Any], None]] = {
    a.SaveBox: _save,
    a.Propose: _propose,
    a.SendGroup: _send_group,
    a.SendVote: _send_vote,
    a.SendAbort: _send_abort,
    a.Join: _join,
    a.Decline: _decline,
    a.Accept: _accept,
    a.ShowVotes: _show_votes,
    a.AllReduce: tasks.all_reduce,
    a.Fetch: tasks.fetch,
    a.AskHead: tasks.ask_head,
    a.Commit: tasks.commit,
    a.CloseWork: lambda me, action: me.hand_over(),
    a.Gone: lambda me, action: me.stop(),
    a.Stage: _nothing,
    a.Aborted: _nothing,
    a.TellEveryone: _nothing,
    a.StopAllReduce: _nothing,
}
