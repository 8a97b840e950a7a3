"""The loss of a causal LM without a whole batch's logits: those of some tokens at a time, computed again for gradients.

A vocabulary of 128,000 makes 2,048 tokens' logits 1 GiB in fp32, and the loss keeps as much again twice. Here the
decoder runs once, the tokens that nothing is predicted from are left out, and the rest go through the head in chunks
(Chen et al. 2016, "Training deep nets with sublinear memory cost", for one layer).

What lies between hidden states and logits is the model's own business: a scale, soft caps, a bias, a rounding. So its
own `forward` does that part too, with a decoder that hands out hidden states that are there already. `find` tries that
on a few tokens, and answers None for a model whose logits do not come out the same; that one is computed in one piece.

Legend: B sequences, T tokens in each, R of all those tokens predict one, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from peer.training.data import NO_LOSS
from peer.training.device import is_out_of_memory
from peer.training.memory import LOGITS_BYTES

logger = logging.getLogger(__name__)

_PROBE_BT = (2, 6)
_RAISED = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # by a forward that wants something else
Fused = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # hidden states [R, D], targets [R] -> summed loss


class HeadLoss:
    """Sums the cross-entropy of a model.

    Args:
        causal: the model, without peft's wrapper.
        decoder: the part of it that makes hidden states.
        vocabulary: how many logits a token has.
    """

    def __init__(self, causal: Any, decoder: Any, vocabulary: int) -> None:
        self._causal, self._decoder = causal, decoder
        self.fused: Fused | None = None  # a kernel that does all of it, for gradients
        self._rows = max(1, LOGITS_BYTES // (4 * vocabulary))

    def __call__(
        self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor, positions_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss summed over all targets that are not NO_LOSS; fp32, to be differentiated by `backward` only.

        Args:
            positions_BT: as `TrainableModel.loss` takes them.
        """
        predicts_BT = targets_BT != NO_LOSS
        output = self._decoder(input_ids=tokens_BT, use_cache=False, **_placed(positions_BT))
        hidden_RD, targets_R = output.last_hidden_state[predicts_BT], targets_BT[predicts_BT]
        if len(targets_R) == 0:
            return hidden_RD.float().sum()  # of nothing
        half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16
        if self.fused is not None and torch.is_grad_enabled() and not half:
            return self.fused(hidden_RD, targets_R)

        def chunk_loss(hidden_RD: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
            return cross_entropy(self.logits(type(output), hidden_RD).float(), targets_R, reduction="sum")

        chunks = list(zip(hidden_RD.split(self._rows), targets_R.split(self._rows), strict=True))
        if len(chunks) == 1 or not torch.is_grad_enabled():
            return torch.stack([chunk_loss(*chunk) for chunk in chunks]).sum()
        # reentrant: a chunk's gradient of the head is added to the head's before the next one's is made
        reentrant = hidden_RD.requires_grad
        losses = [checkpoint(chunk_loss, *chunk, use_reentrant=reentrant, preserve_rng_state=False) for chunk in chunks]
        return torch.stack(losses).sum()

    def logits(self, kind: type[Any], hidden_RD: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] by the model's own forward.

        Args:
            kind: what the decoder gives.

        Raises:
            RuntimeError: the forward did not ask the decoder for hidden states.
        """
        handed_out = 0

        def hand_out(*_: Any, **__: Any) -> Any:
            nonlocal handed_out
            handed_out += 1
            return kind(last_hidden_state=hidden_RD[None])

        with _forward(self._decoder, hand_out):
            unread = torch.zeros(1, len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
            logits_RV: torch.Tensor = self._causal(input_ids=unread, use_cache=False).logits[0]
        if handed_out != 1 or len(logits_RV) != len(hidden_RD):
            raise RuntimeError("the model's logits do not come from these hidden states")
        return logits_RV


def find(model: Any) -> HeadLoss | None:
    """The loss in chunks of a transformers or peft model on its device; None: it gives other logits than the model's.

    Takes three passes over a few tokens, without gradients.
    """
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    device = causal.get_input_embeddings().weight.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        tokens_BT = torch.arange(_PROBE_BT[0] * _PROBE_BT[1], device=device).view(_PROBE_BT)
        tokens_BT = tokens_BT % causal.get_input_embeddings().weight.shape[0]
        targets_BT = torch.where(tokens_BT % 3 == 1, NO_LOSS, tokens_BT)
        expected_RV = causal(input_ids=tokens_BT, use_cache=False).logits[targets_BT != NO_LOSS]
        for decoder in (causal.base_model, causal.get_decoder()):
            if decoder is None or decoder is causal:
                continue
            found = HeadLoss(causal, decoder, expected_RV.shape[-1])
            try:
                output = decoder(input_ids=tokens_BT, use_cache=False)
                hidden_RD = output.last_hidden_state[targets_BT != NO_LOSS]
                logits_RV = found.logits(type(output), hidden_RD)
            except _RAISED as error:
                if is_out_of_memory(error):
                    raise
                logger.debug("%s: %s", type(decoder).__name__, error)
                continue
            if _same(logits_RV, expected_RV, causal):
                found.fused = _fused(causal, hidden_RD, expected_RV)
                return found
    logger.info("%s: the loss takes all logits at once", type(causal).__name__)
    return None


def _fused(causal: Any, hidden_RD: torch.Tensor, expected_RV: torch.Tensor) -> Fused | None:
    """Liger-Kernel's loss where it is installed, on CUDA, for a head that is a plain product; it keeps no logits.

    It takes gradients in the forward pass, before a loss scale is known: not under autocast to fp16.
    """
    head, config = causal.get_output_embeddings(), causal.config.get_text_config(decoder=True)
    if type(head) is not torch.nn.Linear or head.weight.device.type != "cuda" or "forward" in vars(head):
        return None
    capped = getattr(config, "final_logit_softcapping", None) is not None  # small logits do not show it
    if capped or not _same(head(hidden_RD), expected_RV, causal):
        return None
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    kernel = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    logger.info("%s: the loss by Liger-Kernel", type(causal).__name__)
    return lambda hidden_RD, targets_R: kernel(head.weight, hidden_RD, targets_R, head.bias)


def plain(
    model: Any, tokens_BT: torch.Tensor, targets_BT: torch.Tensor, positions_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """The same sum from all logits at once."""
    logits_BTV = model(input_ids=tokens_BT, use_cache=False, **_placed(positions_BT)).logits
    return cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=NO_LOSS, reduction="sum")


def _placed(positions_BT: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {} if positions_BT is None else {"position_ids": positions_BT}


def _same(logits_RV: torch.Tensor, expected_RV: torch.Tensor, causal: Any) -> bool:
    """To rounding; a head that computes in bf16 rounds what comes in other shapes differently."""
    head = causal.get_output_embeddings()
    wide = head is None or head.weight.dtype == torch.float32
    error = (logits_RV - expected_RV).float().norm() <= (1e-4 if wide else 1e-2) * expected_RV.float().norm()
    return logits_RV.shape == expected_RV.shape and bool(error)


@contextmanager
def _forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module answer by another function inside the block."""
    own = vars(module).get("forward")  # of `recompute` or accelerate, say
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
