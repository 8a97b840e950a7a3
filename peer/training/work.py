"""The local work of a round, from the agreed base to an update. One loop, two methods.

    gradient   each step adds the gradient of its tokens' summed loss at the base; the update is their mean
    diloco     local AdamW steps, each on `inner.batch` sequences; the update is base - local

The swarm calls `begin` with the agreed state, `step` until the round ends, and `finish` for the update. `finish` may be
called again after more steps: an aborted round keeps its work. `begin` starts over from a new base; what AdamW remembers
stays on this machine for the whole run (Douillard et al. 2023, section 3).

Steps do not wait for the device: losses stay tensors, and token counts are known from the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from peer.training.data import Dataset, draw
from peer.training.model import TrainableModel
from peer.training.state import SharedState, bytes_of, is_finite
from protocol.errors import FormatError, RoundAborted
from protocol.run_spec import RunSpec

_DRAW_AHEAD = 256  # indices drawn at a time


@dataclass(frozen=True)
class StepResult:
    """What one micro-batch came to.

    Args:
        tokens: predicted, that is trained on; padding and masked tokens not counted.
        sequences: how many were drawn.
        loss: mean for each predicted token, a tensor on the device: `.item()` waits for it.
    """

    tokens: int
    sequences: int
    loss: torch.Tensor


@dataclass(frozen=True, eq=False)
class Update:
    """What a peer brings to a round.

    Args:
        vector: flat fp32 [N] on the CPU.
        tokens: trained on in this round.
        first_batch: number of the first draw, in sequences.
        batches: how many sequences were drawn.
        flops: spent on it, by `TrainableModel.flops`.
        segments: hex digests of the local state at segment boundaries, for replay.
    """

    vector: torch.Tensor
    tokens: int
    first_batch: int
    batches: int
    flops: int
    segments: tuple[str, ...] = ()


class LocalWork:
    """One peer's work, round after round.

    Args:
        model: trained in place.
        dataset: of the run.
        spec: of the run.
        peer_id: whose draws these are.
        segment_steps: diloco: take a digest of the local state after each so many optimizer steps; 0: never.
    """

    def __init__(
        self, model: TrainableModel, dataset: Dataset, spec: RunSpec, peer_id: str, segment_steps: int = 0
    ) -> None:
        self.model, self.dataset, self.spec, self.peer_id = model, dataset, spec, peer_id
        self.round = 0  # that the work is for; 0 before the first begin
        self.tokens = 0  # trained on in this round
        self._segment_steps = segment_steps
        self._base: SharedState | None = None
        self._base_N = model.flat_N  # on the device; a copy of its own for diloco, from begin on
        self._parameter = torch.nn.Parameter(model.flat_N)
        self._optimizer = self._new_optimizer()
        self._restart()

    def begin(self, base: SharedState) -> None:
        """Start the round after `base`, with its parameters.

        Raises:
            FormatError: the base has other tensors than the model.
        """
        if base.names_shapes != self.model.names_shapes:
            raise FormatError("the base state has other tensors than the model")
        self._base, self.round = base, base.round + 1
        self.model.write(base.parameters)
        if self._diloco:
            self._base_N = base.parameters if self.model.device.type == "cpu" else self.model.flat_N.clone()
        self._restart()

    def step(self) -> StepResult:
        """Train on one micro-batch."""
        if self._base is None:
            raise RuntimeError("begin was not called")
        size = self.spec.inner.micro_batch
        rows = [next(self._draws) for _ in range(size)]
        counts, lengths = self.dataset.train.loss_tokens, self.dataset.train.lengths
        tokens = sum(counts[row] for row in rows)
        loss = self.model.loss(*self.dataset.train.batch(rows, self.model.device))
        loss.backward()
        self.tokens += tokens
        self._seen_tokens += sum(lengths[row] for row in rows)
        self._sequences += size
        self._pending_sequences += size
        self._pending_tokens += tokens
        if self._diloco and self._pending_sequences >= self.spec.inner.batch:
            self._optimizer_step()
        return StepResult(tokens, size, loss.detach() / tokens)

    def finish(self) -> Update:
        """The update of the work done since `begin`; more steps and another `finish` may follow.

        Raises:
            RoundAborted: the local work diverged (values that are not finite); the next `begin` starts afresh.
        """
        if self.tokens == 0:
            raise RuntimeError("no step was done since begin")
        if self._diloco:
            if self._pending_tokens:
                self._optimizer_step()
            vector = torch.sub(self._base_N, self.model.flat_N).to("cpu")
        else:
            vector = torch.mul(self.model.gradient_N, 1.0 / self.tokens).to("cpu")
        if not is_finite(vector):
            self._optimizer = self._new_optimizer()  # its memory is spoilt too
            raise RoundAborted(
                f"round {self.round}: the local work diverged: values that are not finite",
                "lower inner.lr, or check the data",
            )
        return Update(
            vector, self.tokens, 0, self._sequences, self.model.flops(self._seen_tokens), tuple(self._segments)
        )

    @property
    def _diloco(self) -> bool:
        return self.spec.sync.method == "diloco"

    def _restart(self) -> None:
        self.tokens = 0
        self._seen_tokens = 0  # read by the model: masked ones too, padding not
        self._sequences = 0
        self._pending_sequences = 0  # since the last optimizer step
        self._pending_tokens = 0
        self._optimizer_steps = 0
        self._segments: list[str] = []
        self._draws = self._draw_all()
        self.model.gradient_N.zero_()

    def _draw_all(self) -> Iterator[int]:
        first = 0
        while True:
            size = len(self.dataset.train)
            yield from draw(self.spec.run.seed, self.round, self.peer_id, first, _DRAW_AHEAD, size)
            first += _DRAW_AHEAD

    def _new_optimizer(self) -> torch.optim.AdamW:
        inner = self.spec.inner
        self._parameter.grad = self.model.gradient_N
        # one flat parameter: one fused kernel a step, however many tensors the model has
        return torch.optim.AdamW(
            [self._parameter], lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay, fused=True
        )

    @torch.no_grad()
    def _optimizer_step(self) -> None:
        """One AdamW step on the mean gradient of the pending tokens, clipped to `inner.clip_norm`."""
        gradient_N = self.model.gradient_N
        scale: torch.Tensor | float = 1.0 / self._pending_tokens
        if self.spec.inner.clip_norm is not None:
            norm = torch.linalg.vector_norm(gradient_N) * scale
            scale = scale * torch.clamp(self.spec.inner.clip_norm / (norm + 1e-6), max=1.0)
        gradient_N.mul_(scale)
        self._optimizer.step()
        gradient_N.zero_()
        self._pending_sequences = self._pending_tokens = 0
        self._optimizer_steps += 1
        if self._segment_steps and self._optimizer_steps % self._segment_steps == 0:
            self._segments.append(hashlib.sha256(bytes_of(self.model.read())).hexdigest())
