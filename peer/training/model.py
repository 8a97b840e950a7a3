"""The model that a peer trains: a transformers causal LM, whole or with a LoRA adapter, behind one flat vector.

The trainable parameters are views into one flat fp32 tensor. Where that is laid out as the shared state (`layout`),
taking a state over, reading it back, and an update are one vector operation each. Models come from local folders only:
safetensors, no remote code, no hub. Dropout is off, so that the same work on the same data gives the same update.

Legend: N trainable parameters, B sequences, T tokens in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from peer.training import adapter, bf16, head_loss, nf4, weights
from peer.training.data import NO_LOSS, Dataset, Sequences
from peer.training.device import keep_large_blocks_apart
from peer.training.layout import layout_as_held, layout_in_files
from peer.training.loading import from_folder, load_causal_lm, load_tokenizer, on_device
from peer.training.model_shape import ModelShape
from peer.training.packed import keeps_apart
from peer.training.quiet import no_progress_bars
from peer.training.recompute import recompute_layers
from peer.training.state import NamesShapes
from peer.training.tensor_file import piece_slices, write_pieces
from protocol import disk
from protocol.errors import FormatError, InputError
from protocol.run_spec import Method, RunSpec
from protocol.safetensors_file import ADAPTER_FILE, FULL_FILE

# what architectures call a table of learned positions, one row each
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")


def load_trainable(
    spec: RunSpec, genesis_model_dir: Path, base_model_dir: Path | None = None, device: str | torch.device = "cpu"
) -> TrainableModel:
    """Load the model of a run with the weights of a checkpoint of it.

    Args:
        genesis_model_dir: the `model/` folder of the genesis, or of any later checkpoint.
        base_model_dir: LoRA: the base model's folder, whose digest the caller has compared.
        device: where to train.

    Raises:
        InputError: a folder is missing, damaged, a pickle, of another shape than the run, or needs remote code; or
            bitsandbytes is missing for a base in 4 bits.
    """
    keep_large_blocks_apart()
    if spec.method.kind == "full":
        model = load_causal_lm(genesis_model_dir, on_device(device))
        trainable = TrainableModel(model, full_parameters(model), load_tokenizer(genesis_model_dir), device)
    else:
        if base_model_dir is None:
            raise InputError("a LoRA run needs its base model's folder too")
        base = load_base(spec.method, base_model_dir, device)
        adapted = adapter.add_lora(base, spec.method, spec.run.seed, spec.model.name)
        parameters = adapter.adapter_parameters(adapted)
        trainable = TrainableModel(adapted, parameters, load_tokenizer(genesis_model_dir), device)
    trainable.write_pieces(weights.pieces(genesis_model_dir, trainable.names_shapes))
    return trainable


def load_base(method: Method, folder: Path, device: str | torch.device) -> PreTrainedModel:
    """The frozen base of a LoRA run on the device: in fp32, bf16 or 4 bits. Raises: as `load_trainable`."""
    if method.base == "nf4":
        return nf4.prepare(load_causal_lm(folder, nf4.loading_options(device)))  # type: ignore[no-any-return]
    if method.base == "bf16":
        return bf16.prepare(from_folder(folder, on_device(device), bf16.from_pretrained)[0])
    return load_causal_lm(folder, on_device(device))


def full_parameters(model: Any) -> dict[str, torch.Tensor]:
    """All that a model's files hold: its parameters, tied ones once, and the buffers that are saved along with them.

    What text never passes through, towers for images and sound, is frozen.
    """
    text = adapter.text_part(model)
    head = model.get_output_embeddings()
    if text is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(f"{text}.") or (head is not None and parameter is head.weight))
    parameters: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=True))
    saved = model.state_dict(keep_vars=True)
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in saved}


def positions_in(model: torch.nn.Module) -> int | None:
    """How many positions a model has learned, each a row of a table; None: it has no such table."""
    decoder = getattr(model, "get_decoder", lambda: None)()  # beside towers for images and sound
    tables = [
        module.num_embeddings - getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in (decoder or model).named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES
    ]
    return min(tables, default=None)


def _check_positions(longest: int, positions: int | None) -> None:
    """Raises: InputError: a sequence of so many tokens has no place in the model."""
    if positions is not None and longest > positions:
        raise InputError(
            f"the data hold a sequence of {longest} tokens, the model has {positions} positions",
            f"set data.sequence_length to at most {positions}",
        )


class TrainableModel:
    """A causal LM whose trainable parameters are one flat fp32 vector.

    Args:
        model: a transformers or peft model; taken over.
        parameters: what is shared, by the model's own names. What of it needs no gradient stays as it is.
        tokenizer: saved along with the model.
        device: where to train.
    """

    def __init__(
        self, model: Any, parameters: Mapping[str, torch.Tensor], tokenizer: Any, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.tokenizer = tokenizer
        self.model = model.to(self.device).eval()
        self._parameters = dict(sorted(parameters.items()))
        in_files = not hasattr(model, "peft_config")
        self._layout = layout_in_files(model, self._parameters) if in_files else layout_as_held(self._parameters)
        self.names_shapes: NamesShapes = self._layout.names_shapes
        self.parameters_trainable = sum(parameter.numel() for parameter in self._parameters.values())
        shared = {id(parameter) for parameter in self._parameters.values()}
        frozen = [parameter for parameter in self.model.parameters() if id(parameter) not in shared]
        self.parameters_total = self.parameters_trainable + sum(map(nf4.count, frozen))
        self.recomputing = False  # activations, in the backward pass
        self.written = 0  # how often the parameters were changed by anything but an optimizer, and held still after it
        self._head_loss: Callable[..., torch.Tensor] | None = None
        self.flat_N = torch.empty(self.parameters_trainable, device=self.device)
        self._gradient_N: torch.Tensor | None = None
        for parameter, view in zip(self._parameters.values(), self._views(self.flat_N), strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        self._still = [(item, item.clone()) for item in self._parameters.values() if not item.requires_grad]

    def _views(self, flat_N: torch.Tensor) -> list[torch.Tensor]:
        """The parameters in a vector that is laid out as they are held."""
        pieces = flat_N.split([parameter.numel() for parameter in self._parameters.values()])
        return [piece.view(p.shape) for piece, p in zip(pieces, self._parameters.values(), strict=True)]

    @property
    def gradient_N(self) -> torch.Tensor:
        """The flat gradient, into which backward passes add; made when first asked for."""
        if self._gradient_N is None:
            self._gradient_N = torch.zeros_like(self.flat_N)
            for parameter, view in zip(self._parameters.values(), self._views(self._gradient_N), strict=True):
                if parameter.requires_grad:
                    parameter.grad = view
        return self._gradient_N

    def read(self, where: slice = slice(None), of: torch.Tensor | None = None) -> torch.Tensor:
        """A copy of the trainable parameters, or of some, as the state has them: flat fp32 on the CPU.

        Args:
            of: another vector that is laid out as `flat_N`.
        """
        return self._layout.read(self.flat_N if of is None else of, where)

    def write(self, flat: torch.Tensor) -> None:
        """Take over the state's parameters: flat fp32 [N]. Raises: FormatError: another length or dtype."""
        if flat.shape != self.flat_N.shape or flat.dtype != torch.float32:
            raise FormatError(f"expected fp32 {tuple(self.flat_N.shape)}, got {flat.dtype} {tuple(flat.shape)}")
        self.write_pieces([flat])

    def write_pieces(self, pieces: Iterable[torch.Tensor]) -> None:
        """Take over the state's parameters, cut anywhere. Raises: FormatError: too few, too many, or another dtype."""
        start, count = 0, self.parameters_trainable
        for piece in pieces:
            end = start + len(piece)
            if end > count or piece.dtype != torch.float32:
                raise FormatError(f"expected fp32 ({count},), got {piece.dtype}, {end} values and more")
            self._layout.write(self.flat_N, piece, slice(start, end))
            start = end
        if start != count:
            raise FormatError(f"expected {count} values, got {start}")
        self._still_as_written()

    def follow(self, other: TrainableModel) -> None:
        """Take over the parameters of the same model on another device."""
        self.flat_N.copy_(other.flat_N)
        self._still_as_written()

    def _still_as_written(self) -> None:
        self.written += 1
        for buffer, value in self._still:
            value.copy_(buffer)

    @torch.no_grad()
    def add(self, flat: torch.Tensor, where: slice) -> None:
        """Add to some of the parameters, counted as the state does: flat fp32, on any device."""
        self._layout.write(self.flat_N, flat, where, add=True)
        self.hold_still()

    def hold_still(self) -> None:
        """Put back what is not trained: weight decay and lossy codecs know nothing of it."""
        self.written += 1
        for buffer, value in self._still:
            buffer.copy_(value)

    def loss(
        self, tokens_BT: torch.Tensor, labels_BT: torch.Tensor, positions_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The cross-entropy summed over predicted tokens (labels other than -100, the first of each sequence left out).

        Labels are not shifted: label t is token t. Padding follows the tokens, so no attention mask is needed.

        Args:
            positions_BT: where they begin anew a document does, which does not see the one before (`packed`).
        """
        targets_BT = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=NO_LOSS)
        if self._head_loss is None:
            self._head_loss = head_loss.find(self.model) or partial(head_loss.plain, self.model)
        return self._head_loss(tokens_BT, targets_BT, positions_BT)

    def compute_loss_by(self, way: Callable[..., torch.Tensor]) -> None:
        """Another way to the loss than what `head_loss` finds for this model, with its arguments."""
        self._head_loss = way

    @property
    def rows(self) -> int:
        """Of the embeddings: tokens that there may be."""
        found: int = self.model.get_input_embeddings().weight.shape[0]
        return found

    @property
    def shape(self) -> ModelShape | None:
        """What memory is estimated from; None: its configuration says too little."""
        base = self.parameters_total - (self.parameters_trainable if hasattr(self.model, "peft_config") else 0)
        return ModelShape.from_config(self.model.config.to_dict(), base)

    def check_fits(self, dataset: Dataset) -> None:
        """Check that this model has a row for each token of the data, and a place for each in a sequence.

        Raises:
            InputError: it has not; or it does not keep documents apart where the run does.
        """
        rows, positions = self.rows, positions_in(self.model)
        if not isinstance(dataset.train, Sequences):  # its shards are held against the rows when they are read
            _check_positions(dataset.train.longest, positions)
            if dataset.train.apart and not keeps_apart(self.model, dataset.train.longest):
                raise InputError(
                    "in this run documents that share a sequence do not see each other, and here the model lets them",
                    "update transformers: others of the run compute another loss",
                )
            return
        for part in (part for part in (dataset.train, dataset.held_out) if part.lengths):
            highest = int(part.tokens_ST.max())
            if highest >= rows:
                token = self.tokenizer.convert_ids_to_tokens(highest)
                raise InputError(
                    f"the data hold token {highest} ({token}), the model has {rows} rows of embeddings",
                    "take the tokenizer that belongs to the model, or leave that token out of the data",
                )
            _check_positions(max(part.lengths), positions)

    def recompute(self) -> bool:
        """From now on need less memory and more time for a pass; False if that is so already, or this model cannot."""
        if self.recomputing:
            return False
        self.recomputing = recompute_layers(self.model)
        return self.recomputing

    def flops(self, tokens: int) -> int:
        """Floating-point operations of training on that many tokens, attention's quadratic term left out.

        Forward and backward take 2 + 4 operations for each parameter and token (Kaplan et al. 2020, section 2.1);
        of the backward's 4, 2 make the weights' own gradients, which frozen weights do not need.
        """
        return tokens * (4 * self.parameters_total + 2 * self.parameters_trainable)

    def save_model(self, folder: Path) -> None:
        """Write the model and its tokenizer as a folder that transformers (peft for LoRA) loads by itself.

        Raises:
            InputError: the disk is full; or what was written is not exactly the shared state's tensors (an architecture
                whose files do not mirror its parameters).
        """
        adapted = hasattr(self.model, "peft_config")
        with disk.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if adapted:
                adapter.save_config(self.model, folder)
            else:
                with no_progress_bars():
                    self.model.save_pretrained(str(folder), state_dict={})  # all but the weights
            self.tokenizer.save_pretrained(str(folder))
            file = folder / (ADAPTER_FILE if adapted else FULL_FILE)
            write_pieces(file, self.names_shapes, map(self.read, piece_slices(self.parameters_trainable)))
            for path in weights.weight_files(folder):
                path.chmod(0o644)  # one that was there before may be its owner's alone
        start = 0
        for piece in weights.pieces(folder, self.names_shapes):
            held = self.read(slice(start, start + len(piece)))
            start += len(piece)
            if not torch.equal(piece.view(torch.int32), held.view(torch.int32)):
                hint = "choose another architecture"
                raise InputError(f"{folder}: the saved weights are not the shared state's", hint)

    @torch.no_grad()
    def generate(self, prompt: str, max_new_tokens: int = 64, seed: int = 0) -> str:
        """The prompt and a sampled continuation (temperature 0.8, top-p 0.95)."""
        ids = self.tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
        tokens_BT = torch.tensor([ids], device=self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            result = self.model.generate(
                input_ids=tokens_BT,
                attention_mask=torch.ones_like(tokens_BT),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=0.8,
                top_p=0.95,
                top_k=0,
                use_cache=True,
                pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0,
            )
        text: str = self.tokenizer.decode(result[0].tolist(), skip_special_tokens=True)
        return text
