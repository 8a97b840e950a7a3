"""One peer of the stock arm of `scripts/bench wan`: `hivemind.Optimizer`, set up as hivemind's own ALBERT example does.

Taken from there (examples/albert): fp16 for gradients and state, delay_grad_averaging, delay_optimizer_step and
offload_optimizer on, target_batch_size 4096 sequences, 4 x 2 sequences between two calls of `step`, matchmaking_time
5 s, averaging_timeout 60 s, the tracker's refresh between 0.5 and 30 s, target_group_size 256.

Ours: AdamW with the rate that the grid chose, without warm-up, as in all arms (there: LAMB); all times divided by
`compress`, but matchmaking not below a second, for its requests time out; and an averaging timeout that an exchange on
this line can meet, for with the example's a full fine-tune at 20 Mbit/s never averages anything.

`others` starts it as `python -m scripts.wan.hivemind_peer SETTINGS`; it talks by `stock`.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from scripts.wan.stock import Peer

LEAST_MATCHMAKING_S = 1.0


def optimizer(peer: Peer) -> Any:
    """A stock optimizer over the model's one flat vector."""
    import hivemind
    import torch
    from hivemind.compression import Float16Compression
    from hivemind.optim.grad_averager import GradientAverager

    inner, compress = peer.bench.spec.inner, peer.settings["compress"]
    matchmaking_s = max(LEAST_MATCHMAKING_S, 5.0 / compress)
    request_timeout_s = 0.6 * matchmaking_s  # hivemind's own ratio of 3 s to 5 s
    parameter = torch.nn.Parameter(peer.bench.model.flat_N)
    parameter.grad = peer.bench.model.gradient_N
    return hivemind.Optimizer(
        dht=peer.dht,
        run_id="wan",
        target_batch_size=peer.settings["target"],
        batch_size_per_step=inner.batch,
        params=[parameter],
        optimizer=lambda params: torch.optim.AdamW(
            params, lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay
        ),
        matchmaking_time=matchmaking_s,
        averaging_timeout=max(60.0 / compress, peer.settings["exchange_s"] * 3 + 2 * matchmaking_s + 10),
        offload_optimizer=True,
        delay_optimizer_step=True,
        delay_grad_averaging=True,
        grad_compression=Float16Compression(),
        state_averaging_compression=Float16Compression(),
        averager_opts={"target_group_size": 256, "request_timeout": request_timeout_s},
        grad_averager_factory=partial(GradientAverager, request_timeout=request_timeout_s),
        tracker_opts={
            "min_refresh_period": 0.5,
            "max_refresh_period": max(1.0, 30 / compress),
            "default_refresh_period": max(0.5, 3 / compress),
            "expected_drift_peers": 3,
            "expected_drift_rate": 0.2,
            "metadata_expiration": max(30.0, 120 / compress),
        },
        verbose=True,
    )


def main() -> None:
    import torch

    from scripts.wan.training import Gradients

    with Peer.from_arguments(sys.argv[1]) as peer:
        stock, batches = optimizer(peer), Gradients(peer.bench, peer.name)
        flat_N = peer.bench.model.flat_N
        known = flat_N.clone()
        peer.wait_for_go()

        def tell_if_changed() -> None:
            if not torch.equal(flat_N, known):
                known.copy_(flat_N)
                peer.tell_state(known)

        while not peer.stopped:
            peer.pace.step(batches.step, lambda tokens: tokens)
            stock.step()
            tell_if_changed()
            peer.tell_progress()
        stock.state_averager.step(wait_for_delayed_updates=True, apply_delayed_updates=True)
        tell_if_changed()
        peer.end()


if __name__ == "__main__":
    main()
