"""One peer of the OpenDiLoCo-like arms of `scripts/bench wan`, by its published recipe, on hivemind's averager.

H local AdamW steps; the pseudo-gradient (where the round began minus where it ended) is averaged in fp16; every peer
takes a Nesterov SGD step of lr 0.7 and momentum 0.9 with it (Jaghouar et al. 2024; Douillard et al. 2023). As its code
does: matchmaking (15 s, divided by `compress`) begins that long before the last local step, and a peer waits for all
that are alive and on the same round before it averages, for ten minutes at most. As in the paper and not as in its
code: one exchange a round, the state itself is not averaged besides, and each starts from the same state.

`others` starts it as `python -m scripts.wan.diloco_peer SETTINGS`; it talks by `stock`.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import CancelledError
from typing import Any

from scripts.wan.stock import Peer

LEAST_MATCHMAKING_S = 1.5
PROGRESS_S = 1.0  # between two words on how far one is
ALIVE_S = 15.0  # after a peer's last word
WAIT_FOR_OTHERS_S = 600.0


class Others:
    """How far the others are, on the DHT: {peer: [round, seconds until its last local step, when it said so]}."""

    def __init__(self, dht: Any, name: str, compress: float) -> None:
        from hivemind.utils import get_dht_time

        self._dht, self._name, self._now, self._told = dht, name, get_dht_time, 0.0
        self._patience_s = WAIT_FOR_OTHERS_S / compress

    def tell(self, round: int, left_s: float, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._told >= PROGRESS_S:
            self._told, now = time.monotonic(), self._now()
            value = [round, left_s, now]
            self._dht.store("wan_progress", value, now + ALIVE_S, subkey=self._name, return_future=True)

    def wait(self, round: int, soon_s: float) -> None:
        """Until all that are alive and on this round are within `soon_s` of its end."""
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline and self.longest(round) > soon_s:
            self.tell(round, 0.0)
            time.sleep(0.2)

    def longest(self, round: int) -> float:
        """Seconds until the last of those on this round is at its end."""
        found = self._dht.get("wan_progress", latest=True)
        entries = [item.value for item in found.value.values()] if found else []
        return max((left_s - (self._now() - told) for theirs, left_s, told in entries if theirs == round), default=0.0)


def main() -> None:
    with Peer.from_arguments(sys.argv[1]) as peer:
        _train(peer)


def _train(peer: Peer) -> None:
    import hivemind
    import torch
    from hivemind.averaging.matchmaking import MatchmakingException
    from hivemind.averaging.partition import AllreduceException
    from hivemind.compression import Float16Compression

    from peer.training.outer import step as outer_step
    from scripts.wan.arms import DILOCO_OUTER

    bench, compress, steps = peer.bench, peer.settings["compress"], peer.settings["target"]
    state, work = bench.genesis, bench.work(peer.name)
    update_N = torch.zeros_like(state.parameters)
    matchmaking_s = max(LEAST_MATCHMAKING_S, 15.0 / compress)
    timeout_s = 3 * peer.settings["exchange_s"] + WAIT_FOR_OTHERS_S / compress
    averager = hivemind.DecentralizedAverager(
        [update_N],
        peer.dht,
        prefix="wan_diloco",
        start=True,
        target_group_size=4,
        min_matchmaking_time=matchmaking_s,
        request_timeout=0.6 * matchmaking_s,
        compression=Float16Compression(),
        allreduce_timeout=timeout_s,
    )
    others = Others(peer.dht, peer.name, compress)
    peer.wait_for_go()
    while not peer.stopped:
        control = None
        work.begin(state)
        for done in range(1, steps + 1):
            result = peer.pace.step(work.step, lambda step: step.tokens)
            left_s = (steps - done) * result.tokens / peer.settings["tokens_per_s"]
            others.tell(state.round, left_s, at_once=done in (1, steps))
            peer.tell_progress()
            if control is None and left_s <= matchmaking_s and others.longest(state.round) <= matchmaking_s:
                control = averager.step(wait=False, require_trigger=True, timeout=timeout_s)
        peer.tell_progress(at_once=True)
        if control is None:
            others.wait(state.round, matchmaking_s)
            control = averager.step(wait=False, require_trigger=True, timeout=timeout_s)
        own_N = work.finish().vector
        with averager.get_tensors() as (tensor,):
            tensor.copy_(own_N)
        control.allow_allreduce()
        try:
            control.result(timeout_s)
        except (AllreduceException, MatchmakingException, TimeoutError, CancelledError) as error:
            peer.tell_problem(f"round {state.round}: not averaged: {error!r}")  # it steps with its own, as the original
        else:
            with averager.get_tensors() as (tensor,):
                if torch.equal(tensor, own_N):  # of parts that did not come hivemind's log alone tells
                    peer.tell_problem(f"round {state.round}: not averaged: no part came from anybody")
        with averager.get_tensors() as (tensor,):
            state = outer_step(DILOCO_OUTER, "diloco", state, tensor.clone())
        peer.tell_state(state.parameters)
    peer.end()
    averager.shutdown()


if __name__ == "__main__":
    main()
