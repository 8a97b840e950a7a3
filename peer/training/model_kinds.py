"""What the kinds of model do in a layer, as far as memory goes: a table, by config.json's `model_type`. Needs no torch.

The figures say what autograd keeps of each; tests/test_model_shape.py counts that on tiny models. A kind that does not
stand here is taken for one like Llama.

>>> KINDS["gemma3_text"].width(trained=True), LLAMA.width(trained=True), LLAMA.width(trained=False)
(10, 6, 4)
>>> inner_kept("gelu_new", gated=False), inner_kept("silu", gated=True)
(5, 4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# values kept for each that goes in: itself or what comes out of a kernel, more where it is written out in steps; with
# what the last matrix takes. transformers' names, `transformers.activations.ACT2FN`
_ACTIVATIONS = {
    "relu": 1, "tanh": 1, "sigmoid": 1, "linear": 1, "quick_gelu": 3, "gelu_10": 3, "gelu_python": 4,
    "gelu_new": 5, "gelu_accurate": 5, "gelu_python_tanh": 5, "xielu": 5, "gelu_fast": 8,
}  # fmt: skip
_KERNEL = 2  # gelu, gelu_pytorch_tanh, silu, relu2 and most others


def inner_kept(activation: str, *, gated: bool) -> int:
    """Values kept of an MLP for each inner one; a gate's are its other half and their product more."""
    return _ACTIVATIONS.get(activation, _KERNEL) + (2 if gated else 0)


@dataclass(frozen=True)
class LayerKind:
    """A decoder's layer. As it stands here without arguments: Llama's."""

    inputs: int = 2  # of the projections: one where attention and MLP read the same
    norms: int = 2
    rms: bool = True  # norms with a weight that, trained, keeps what they have made even; torch's LayerNorm does not
    by_head: bool = False  # queries and keys have norms, too
    maps: int = 0  # attention maps kept of each head, where no fused kernel computes attention
    repeated: bool = False  # keys and values are repeated for each query head
    copies: int = 0  # of values as large as the queries, where they are cut and put together again
    gated: bool | None = None  # the MLP has three matrices; None: the number of parameters tells
    activation: str = "silu"  # where the configuration names none
    inner: int = 0  # values kept of the MLP beside those of its activation
    merges_experts: bool = False  # peft adds an adapter to whole experts, and autograd keeps the sums
    sizes: Mapping[str, int] = field(default_factory=dict)  # that a configuration leaves out: the class's own

    def width(self, *, trained: bool) -> int:
        """Values kept for each of the hidden state's: what goes into norms and projections."""
        return self.inputs + self.norms * (2 if self.rms and trained else 1)


LLAMA = LayerKind()
_GPT_2 = LayerKind(rms=False, gated=False, activation="gelu_new")
_GPT_J = LayerKind(inputs=1, norms=1, rms=False, gated=False, activation="gelu_new", copies=1)
_GEMMA_2 = LayerKind(norms=4, maps=2, repeated=True, gated=True, activation="gelu_pytorch_tanh")
_GEMMA_3 = LayerKind(
    norms=4, by_head=True, gated=True, activation="gelu_pytorch_tanh",
    sizes={
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "tie_word_embeddings": True,
    },
)  # fmt: skip
_BY_HEAD = LayerKind(by_head=True)

KINDS: Mapping[str, LayerKind] = {
    "bloom": LayerKind(rms=False, gated=False, activation="gelu", maps=1),
    "codegen": _GPT_J,
    "cohere": LayerKind(norms=1),
    "falcon": LayerKind(inputs=1, norms=1, rms=False, gated=False, activation="gelu", maps=1),
    "gemma": LayerKind(gated=True, activation="gelu_pytorch_tanh"),
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_3,
    "gemma4_text": LayerKind(norms=5, by_head=True, gated=True, activation="gelu_pytorch_tanh"),
    "gpt2": _GPT_2,
    "gpt_bigcode": _GPT_2,
    "gpt_neox": LayerKind(norms=1, rms=False, gated=False, activation="gelu", copies=3),
    "gpt_oss": LayerKind(maps=1, repeated=True, gated=True, inner=3),
    "gptj": _GPT_J,
    "mixtral": LayerKind(merges_experts=True),
    "olmo": LayerKind(rms=False),
    "olmo2": _BY_HEAD,
    "olmo3": _BY_HEAD,
    "opt": LayerKind(rms=False, gated=False, activation="relu"),
    "phi": LayerKind(inputs=1, norms=1, rms=False, gated=False, activation="gelu_new", copies=1),
    "phi3": LayerKind(copies=2, gated=True),
    "qwen2_moe": LayerKind(inputs=3),
    "qwen3": _BY_HEAD,
    "qwen3_moe": LayerKind(by_head=True, merges_experts=True),
    "stablelm": LayerKind(rms=False, copies=1),
    "starcoder2": LayerKind(rms=False, gated=False, activation="gelu_pytorch_tanh"),
}
