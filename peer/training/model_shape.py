"""How large the parts of a model are, from its config.json: what memory follows from. Needs no torch.

Configurations call the same thing by several names; what one does not say (whether the head is the embedding, whether
the MLP is gated) follows from how many parameters there are. What its layers do stands in `model_kinds`.

>>> config = {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152, "num_attention_heads": 9,
...           "num_key_value_heads": 3, "intermediate_size": 1536}
>>> shape = ModelShape.from_config(config, 134_515_008)
>>> shape.keys, shape.gated, shape.tied, shape.linear
(192, True, True, 134479872)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peer.training.model_kinds import KINDS, LLAMA, LayerKind, inner_kept

_WIDTH = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_VOCABULARY = ("vocab_size",)
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_INNER = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token")
_SHARED = ("shared_expert_intermediate_size",)
_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim")  # DeepSeek's attention: what a head has from each
_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function")
_NO_KEY_HEADS = ("gpt2", "gpt_neox", "opt", "bloom", "codegen", "gptj")  # one for each head, whatever else stands there
_OWN_INNER = ("gpt2", "gptj", "codegen", "gpt_bigcode", "bloom")  # four times the width, or this
_MOST = 1 << 32  # of any one figure: a file from outside may say anything
_VOCABULARY_MOST = 100_000  # a guess: large models have about this many


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder."""

    width: int  # of the hidden states
    layers: int
    vocabulary: int
    queries: int  # heads times their size
    keys: int  # likewise, of keys and of values
    inner: int  # of the MLP; of a mixture: of the experts that a token goes through, together
    gated: bool  # three matrices in the MLP instead of two
    tied: bool  # the head is the embedding
    experts: int = 0  # of a mixture, that a token is sent to
    heads: int = 1
    activation: str = "silu"
    window: int = 0  # tokens that some layers see back; 0: all
    capped: bool = False  # logits go through a soft cap
    kind: LayerKind = LLAMA

    @property
    def embedding(self) -> int:
        """Values of the embedding; as many of a head that is not tied."""
        return self.vocabulary * self.width

    @property
    def attention(self) -> int:
        """Values of a layer's projections around attention."""
        return self.width * 2 * (self.queries + self.keys)

    @property
    def linear(self) -> int:
        """Values of embedding, head and all linear layers, one expert's MLP each."""
        mlp = (3 if self.gated else 2) * self.width * self.inner
        return self.embedding * (1 if self.tied else 2) + self.layers * (self.attention + mlp)

    def kept(self, length: int, *, trained: bool, masked: bool) -> int:
        """Values that autograd keeps of a layer for a token: of norms, attention, MLP.

        Of attention these are queries, keys, values and what it makes of them. Fused kernels keep no map of it; where
        a mask is given they keep that, in fp32, and keys and values repeated for each head.

        Args:
            length: of a sequence, tokens.
            trained: weights have a gradient.
            masked: more hides tokens from each other than that they come later.
        """
        of = self.kind
        bare = self.experts > 0 and not trained and not of.merges_experts  # an expert's own input is then not kept
        width = of.width(trained=trained) + (1 if bare else 2) * self.experts
        inner = inner_kept(self.activation, gated=self.gated) + of.inner - (1 if bare else 0)
        keys = self.queries if masked or of.repeated else self.keys
        attention = (2 + of.copies) * self.queries + 2 * keys
        if of.by_head:
            attention += (2 if trained else 1) * (self.queries + self.keys)
        maps = of.maps * self.heads or (1 if masked else 0)
        return width * self.width + attention + maps * length + inner * self.inner

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parameters: int) -> ModelShape | None:
        """What config.json says; None: it does not say enough.

        Args:
            parameters: of the model, without an adapter.
        """
        text = config.get("text_config")
        config = text if isinstance(text, Mapping) else config
        name = config.get("model_type")
        kind = KINDS.get(name, LLAMA) if isinstance(name, str) else LLAMA
        config = {**kind.sizes, **config}
        width, layers, vocabulary = (_first(config, names) for names in (_WIDTH, _LAYERS, _VOCABULARY))
        if not width or not layers or not vocabulary:
            return None
        heads = _first(config, _HEADS) or 1
        size = sum(_first(config, (part,)) for part in _LATENT) or _first(config, ("head_dim",)) or width // heads
        keys = 0 if name in _NO_KEY_HEADS else _first(config, _KEY_HEADS)
        if config.get("multi_query") is True and config.get("new_decoder_architecture") is not True:
            keys = 1
        inner, experts = _inner(config, 4 * width)
        gates = (True, False) if kind.gated is None and not experts else (kind.gated is not False,)
        ties = config.get("tie_word_embeddings")
        shapes = [
            cls(
                width, layers, vocabulary, heads * size, (keys or heads) * size, inner, gated, tied, experts, heads,
                activation=next((config[of] for of in _ACTIVATION if isinstance(config.get(of), str)), kind.activation),
                window=0 if config.get("use_sliding_window") is False else _first(config, ("sliding_window",)),
                capped=isinstance(config.get("final_logit_softcapping"), int | float),
                kind=kind,
            )
            for tied in ((ties,) if isinstance(ties, bool) else (True, False))
            for gated in gates
        ]  # fmt: skip
        return min(shapes, key=lambda shape: abs(shape.linear - parameters))

    @classmethod
    def guessed(cls, parameters: int) -> ModelShape:
        """Of a decoder with the usual proportions: width 64 times the depth, 12 * depth * width**2 parameters."""
        depth = max(1, round((parameters / (12 * 64**2)) ** (1 / 3)))
        width, vocabulary = 64 * depth, min(_VOCABULARY_MOST, max(parameters // 1000, 1))
        return cls(width, depth, vocabulary, width, width, 8 * width // 3, gated=True, tied=False)


def _inner(config: Mapping[str, Any], usual: int) -> tuple[int, int]:
    """Inner values of the MLP that a token goes through, and to how many experts it is sent; 0: it is no mixture."""
    names = ("n_inner",) if config.get("model_type") in _OWN_INNER else _INNER
    inner = _first(config, names) or usual
    if _first(config, _EXPERTS) < 2:
        return inner, 0
    inner, chosen = _first(config, ("moe_intermediate_size",)) or inner, _first(config, _CHOSEN) or 1
    shared = _first(config, _SHARED) or _first(config, ("n_shared_experts",)) * inner
    return inner * chosen + shared, chosen


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The first of these that is a sensible number; 0: none is."""
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and 0 < value < _MOST), 0)
