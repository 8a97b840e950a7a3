"""What takes a while in a simulated run: each ends in one event, or goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peer.round import actions as a
from peer.round import events as e
from peer.round.group import Group
from protocol import canonical

if TYPE_CHECKING:
    from tests.sim.member import Member

AVERAGE, AVERAGE_SLOW, AVERAGE_MOST = 2, 8, 12  # ticks
KEEP = 0.5


def is_digest_of(digest: str, content: str) -> bool:
    return canonical.sha256_hex(content.encode()) == digest


def all_reduce(me: Member, action: a.AllReduce) -> None:
    world, group = me.world, action.group
    world.joined.setdefault((group.digest, group.attempt), set()).add(me.name)
    ticks = AVERAGE_SLOW if world.network.is_in("slow", me.name) else AVERAGE
    world.after(ticks, me, _average, (group, world.now + AVERAGE_MOST))


def _average(me: Member, task: tuple[Group, float]) -> None:
    """What one member gets from the all-reduce: nothing, the state, or (a reducer lied or failed) another one."""
    (group, until), world = task, me.world
    names, network = group.by_peer.keys(), world.network
    cut = network.faults and (any(network.is_cut(me.name, other) for other in names) or network.is_in("fail", me.name))
    if cut or world.now >= until:
        world.step(me, e.NotAveraged(group.digest, group.attempt, "the all-reduce failed"))
        return
    if world.joined[group.digest, group.attempt] != names:
        world.after(1, me, _average, task)
        return
    wrong = ", wrong" if network.is_in("wrong", me.name) else ""
    base = me.core.state.last.state  # type: ignore[union-attr]
    other = "" if is_digest_of(group.base, me.held[base]) else f" on {me.held[base]}"
    named = f"{group.round}.{group.attempt} by {group.leader} of {''.join(names)}, {group.digest[:6]}"
    digest = me.averaged(f"average {named}{other}{wrong}")
    world.step(me, e.Averaged(group.digest, group.attempt, digest, 1.0))


def fetch(me: Member, action: a.Fetch) -> None:
    me.world.after(0.5 if me.state(action.state) else 1, me, _fetched, action)


def _fetched(me: Member, action: a.Fetch) -> None:
    found = bool(me.state(action.state)) or any(
        me.take(action.state, _hand_over(me.world.members[source], me, action.state)) for source in action.sources
    )
    world = me.world
    world.step(me, e.Fetched(action.state) if found else e.NotFetched(action.state, "nobody could give it"))


def _hand_over(source: Member, to: Member, digest: str) -> str:
    """What a member gives whom asks it for a state; empty: nothing."""
    network = to.world.network
    if source.core is None or source is to or network.is_cut(source.name, to.name) or network.is_frozen(source.name):
        return ""
    content = source.state(digest)
    damaged = content and any(fault.who[0] == source.name for fault in network.of("corrupt"))
    return f"{content}, damaged by {source.name}" if damaged else content


def ask_head(me: Member, action: a.AskHead) -> None:
    me.world.after(1, me, _asked, action)


def _asked(me: Member, action: a.AskHead) -> None:
    world, other = me.world, me.world.members[action.to]
    if other.core is None or world.network.is_cut(me.name, action.to) or world.network.is_frozen(action.to):
        world.step(me, e.HeadNotShown(action.to, "not reached"))
    else:
        world.step(me, e.HeadShown(action.to, action.since, other.chain_since(action.since)))


def commit(me: Member, action: a.Commit) -> None:
    me.commit(action)
    me.world.after(KEEP, me, _kept, action)


def _kept(me: Member, action: a.Commit) -> None:
    me.keep(action.agreement)
    me.world.step(me, e.Kept(action.agreement.round))
