"""How large the parts of a model are, from its config.json: what memory follows from. Needs no torch.

Configurations call the same thing by several names; what one does not say (whether the head is the embedding, whether
the MLP is gated) follows from how many parameters there are.

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

_WIDTH = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_INNER = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_OF_GPT_2 = ("gpt2", "gpt_neox", "opt", "bloom", "falcon", "codegen", "gptj", "gpt_bigcode")
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
    experts: bool  # a mixture

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

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parameters: int) -> ModelShape | None:
        """What config.json says; None: it does not say enough.

        Args:
            parameters: of the model, without an adapter.
        """
        text = config.get("text_config")
        config = text if isinstance(text, Mapping) else config
        width, layers, vocabulary, heads = (
            _first(config, names) for names in (_WIDTH, _LAYERS, ("vocab_size",), _HEADS)
        )
        if not width or not layers or not vocabulary:
            return None
        size = _first(config, ("head_dim",)) or width // (heads or 1)
        old = config.get("model_type") in _OF_GPT_2  # keys and values for each head, whatever else stands there
        keys = 0 if old and config.get("model_type") != "falcon" else _first(config, _KEY_HEADS)
        names = ("n_inner",) if config.get("model_type") == "gpt2" else _INNER
        inner, experts = _first(config, names) or 4 * width, _first(config, _EXPERTS) > 1
        if experts:
            inner = _first(config, ("moe_intermediate_size",)) or inner
            shared = (
                _first(config, ("shared_expert_intermediate_size",)) or _first(config, ("n_shared_experts",)) * inner
            )
            inner = inner * (_first(config, ("num_experts_per_tok",)) or 1) + shared
        ties = (
            (config["tie_word_embeddings"],) if isinstance(config.get("tie_word_embeddings"), bool) else (True, False)
        )
        gates = (not old,) if old or experts else (True, False)
        shapes = [
            cls(
                width, layers, vocabulary, (heads or 1) * size, (keys or heads or 1) * size, inner, gated, tied, experts
            )
            for tied in ties
            for gated in gates
        ]
        return min(shapes, key=lambda shape: abs(shape.linear - parameters))

    @classmethod
    def guessed(cls, parameters: int) -> ModelShape:
        """Of a decoder with the usual proportions: width 64 times the depth, 12 * depth * width**2 parameters."""
        depth = max(1, round((parameters / (12 * 64**2)) ** (1 / 3)))
        width, vocabulary = 64 * depth, min(_VOCABULARY_MOST, max(parameters // 1000, 1))
        return cls(width, depth, vocabulary, width, width, 8 * width // 3, gated=True, tied=False, experts=False)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The first of these that is a sensible number; 0: none is."""
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and 0 < value < _MOST), 0)
