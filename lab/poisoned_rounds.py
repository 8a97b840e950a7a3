"""Whole rounds in memory, one member of which sends something else than its update.

tests/test_clipping.py and `scripts/bench poison` play them.

Real local work, codecs, aggregator and outer steps; no network, and every member's chunk comes. The member that attacks
works as the others do, so that what it sends is as harmful as can be; what it claims is what the others claim.

    community = Community(bench, members=7)
    loss = community.train(rounds=10, attack=ATTACKS["negated x10"], clip=0.0)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lab.training_fixtures import Bench
from peer.sync.contribution import lossy
from peer.training.aggregate import Aggregator
from peer.training.codecs.codec import CHUNK_VALUES, EncodedUpdate, average_codec, chunk_sizes
from peer.training.evaluate import held_out_loss
from peer.training.outer import outer_step
from peer.training.reduce import average_chunk
from peer.training.robust import Kind, aggregator
from peer.training.work import LocalWork

# what is sent in place of one's own update, which comes first; of all members' updates, flat fp32 [n] each
Attack = Callable[[torch.Tensor, Sequence[torch.Tensor], torch.Generator], torch.Tensor]
LARGEST = 1e38
AWAY = 1.0  # standard deviations: so many that, of seven, the attacker is no more conspicuous than others


def noise(update: torch.Tensor, honest: Sequence[torch.Tensor], draw: torch.Generator) -> torch.Tensor:
    """Ten times as long as the update."""
    drawn = torch.randn(len(update), generator=draw)
    return drawn * (10 * update.norm() / drawn.norm())


def spikes(update: torch.Tensor, honest: Sequence[torch.Tensor], draw: torch.Generator) -> torch.Tensor:
    """All of ten times its length in one value of each thousand, the same in every round."""
    sent = torch.zeros_like(update)
    sent[::1000] = 10 * update.norm() / len(sent[::1000]) ** 0.5
    return sent


def inner_product(update: torch.Tensor, honest: Sequence[torch.Tensor], draw: torch.Generator) -> torch.Tensor:
    """The others' mean, the other way (Xie, Koyejo and Gupta, 2019)."""
    return -torch.stack(list(honest)).mean(0)


def a_little(update: torch.Tensor, honest: Sequence[torch.Tensor], draw: torch.Generator) -> torch.Tensor:
    """The mean less a standard deviation in each value (Baruch, Baruch and Goldberg, "A little is enough", 2019)."""
    everyone = torch.stack(list(honest))
    return everyone.mean(0) - AWAY * everyone.std(0)


ATTACKS: dict[str, Attack] = {
    "negated x1": lambda update, honest, draw: -update,
    "negated x10": lambda update, honest, draw: -10 * update,
    "noise x10": noise,
    "spikes x10": spikes,
    "inner product": inner_product,
    "a little": a_little,
    "1e38": lambda update, honest, draw: torch.full_like(update, LARGEST),
    "zeros": lambda update, honest, draw: torch.zeros_like(update),
}


class Community:
    """Members of one run, each with a model of its own; each `train` begins at the genesis.

    Args:
        steps: local steps of each member in a round.
        weights: what each one's update counts for; None: as many as it has steps.
    """

    def __init__(self, bench: Bench, steps: Sequence[int], weights: Sequence[int] | None = None) -> None:
        self._bench, self._steps, self._weights = bench, steps, weights or steps
        self._models = [bench.model() for _ in steps]

    def train(
        self,
        *,
        rounds: int,
        clip: float,
        how: Kind = "mean",
        wire: str = "",
        attack: Attack | None = None,
        hostile: int = 1,
    ) -> float:
        """The held-out loss after so many rounds.

        Args:
            wire: in place of the spec's.
            how: `sync.aggregate`.
            attack: what the first `hostile` members do.
        """
        bench, spec = self._bench, self._bench.spec
        wire = wire or spec.sync.wire
        sync = spec.sync.model_copy(update={"wire": wire, "clip": clip, "aggregate": how})
        spec = spec.model_copy(update={"sync": sync})
        works = [LocalWork(model, bench.dataset, spec, f"peer-{i}") for i, model in enumerate(self._models)]
        state, draw = bench.genesis, torch.Generator().manual_seed(1)
        kept: list[EncodedUpdate | None] = [None] * len(works)
        left: list[torch.Tensor | None] = [None] * len(works)
        for _ in range(rounds):
            vectors, sent = [], []
            for i, work in enumerate(works):
                work.rebase(state, kept[i])
                for _ in range(self._steps[i]):
                    work.step()
                vectors.append(work.finish().vector)
            for i, vector in enumerate(vectors):
                poison = attack(vector, vectors[hostile:], draw) if attack is not None and i < hostile else None
                kept[i], left[i] = lossy(vector, spec, left[i])
                sent.append(kept[i] if poison is None else EncodedUpdate.encode(poison, wire))
            state = outer_step(spec, state, self._average(sent, aggregator(clip, how)))
        self._models[0].write(state.parameters)
        return held_out_loss(self._models[0], bench.dataset).loss

    def _average(self, sent: Sequence[EncodedUpdate], how: Aggregator) -> torch.Tensor:
        wire, weights = sent[0].codec, list(self._weights)
        sizes = chunk_sizes(sent[0].values, CHUNK_VALUES)
        chunks = [average_chunk(wire, how, [it.chunks[i] for it in sent], weights, n) for i, n in enumerate(sizes)]
        return torch.cat([average_codec(wire).decode(data, n) for data, n in zip(chunks, sizes, strict=True)])
