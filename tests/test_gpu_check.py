"""`scripts/gpu-check`: all sections on the CPU, so that the one call on a card is not spent on a typo."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from scripts.gpu_check import agreed, course, gauges, given, machine, memory, passes, speed, stand_ins, tables, transfer
from scripts.gpu_check.course import Section
from scripts.gpu_check.given import TINY, Given
from scripts.gpu_check.tables import Row

ROOT = Path(__file__).parent.parent
# all that the product needs beside torch and transformers, and what is never needed on a lent card
OTHERS = [
    "hivemind",
    "grpc",
    "google.protobuf",
    "peft",
    "accelerate",
    "bitsandbytes",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "rfc8785",
    "base58",
    "cryptography",
    "jwt",
    "psutil",
    "model_signing",
    "OpenSSL",
    "tomlkit",
    "rich",
    "platformdirs",
    "sqlalchemy",
]
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({OTHERS!r}))
runpy.run_module("scripts.gpu_check", run_name="__main__", alter_sys=True)
"""


def check(command: list[str], out: Path, *options: str) -> dict[str, Any]:
    """Run it small on the CPU; what it wrote as JSON."""
    done = subprocess.run(
        [*command, "--small", "--device", "cpu", "--json", str(out), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text())
    for name, section in found["sections"].items():
        assert section["ended"], name
        assert all(f"| {row['label']} |" in done.stdout for row in section["rows"]), name
    return found["sections"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Where there is nothing but torch and transformers."""
    return check([sys.executable, "-c", WITHOUT], tmp_path_factory.mktemp("alone") / "found.json")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With all that is installed here; some sections."""
    out = tmp_path_factory.mktemp("complete") / "found.json"
    return check([str(ROOT / "scripts" / "gpu-check")], out, "--only", "full,agreed,replay,bf16,memory")


def rows(section: dict[str, Any], start: str = "") -> list[dict[str, Any]]:
    """Those with numbers, whose label begins so."""
    return [row for row in section["rows"] if row["label"].startswith(start) and "why_not" not in row]


def test_every_section_runs_to_its_end_with_nothing_but_torch_and_transformers(alone: dict[str, Any]) -> None:
    assert list(alone) == list(course.NAMES)
    reasons = [row["why_not"] for section in alone.values() for row in section["rows"] if "why_not" in row]
    assert {reason.partition(":")[0] for reason in reasons} == {"not installed", "not run"}
    assert {reason for reason in reasons if reason.startswith("not run")} == {
        "not run: no GPU",
        "not run: no pinned memory",
    }
    assert alone["nf4"]["rows"][0]["why_not"] == "not installed: peft, accelerate, bitsandbytes"
    assert all(rows(section) for name, section in alone.items() if name not in ("lora", "bf16", "nf4"))


def test_each_precision_is_held_against_a_bare_loop_and_trainer(complete: dict[str, Any]) -> None:
    ours = rows(complete["full"], "ours, ")
    ways = [
        f"ours, {precision}, loss {way}" for precision in ("bf16", "fp16", "fp32") for way in ("in chunks", "plain")
    ]
    assert [row["label"] for row in ours] == ways
    for in_chunks, plain in zip(ours[::2], ours[1::2], strict=True):
        assert in_chunks["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    for arm in ("bare loop, ", "Trainer, "):
        assert [row["label"].split(", ")[1] for row in rows(complete["full"], arm)] == ["bf16", "fp16", "fp32"]
    losses = [row["loss"] for row in rows(complete["full"])]
    assert max(losses) - min(losses) < 0.02  # of the same weights, after as many steps on other draws
    assert len(rows(complete["bf16"])) == 8 and len(rows(complete["memory"], "lora, base bf16")) == 5


def test_a_replay_in_another_precision_is_near_and_in_the_same_one_the_same(complete: dict[str, Any]) -> None:
    for kind in ("full", "lora"):
        first, again, *others = rows(complete["replay"], kind)
        assert first["same bits"] and again["same bits"] and len(others) == 2
        assert all(row["cosine"] > 0.98 and 0 < row["relative L2"] < 0.2 for row in others)


def test_members_agree_on_one_state_and_stand_ins_do_not_change_it(
    alone: dict[str, Any], complete: dict[str, Any]
) -> None:
    digests = [[(row["label"], row["digest"]) for row in rows(found["agreed"])] for found in (alone, complete)]
    assert len(digests[0]) == len(agreed.RUNS) and digests[0] == digests[1]


def test_memory_that_runs_out_is_backed_off_from(alone: dict[str, Any]) -> None:
    some, one, none = rows(alone["oom"])
    assert (some["asked, sequences"], some["taken"], some["recomputing"]) == (16, 4, False)
    assert (one["taken"], one["recomputing"]) == (1, True) and none["taken"].startswith("refused: ")
    assert max(some[passes.L2], one[passes.L2]) < 1e-5


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def sections(*names: str) -> tuple[Section, ...]:
    return tuple(Section(name, name, f"tests.kit.gpu_sections:{name}", 1.0, ("what", "s")) for name in names)


@pytest.mark.parametrize("way", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_section_that_fails_dies_or_hangs_costs_its_own_rows_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, way: str
) -> None:
    names = ("raises", "dies", "goes_well")
    monkeypatch.setattr(course, "SECTIONS", sections(*names))
    assert course.run(list(names), "cpu", True, 300.0, tmp_path / "found.json", way) == 1
    found = json.loads((tmp_path / "found.json").read_text())["sections"]
    assert {name: [row.get("why_not") for row in found[name]["rows"]] for name in names} == {
        "raises": [None, "failed: RuntimeError: CUDA error: an illegal memory access was encountered"],
        "dies": [None, "failed: its process ended with code 9"],
        "goes_well": [None],
    }
    assert "| one | 1 |\n" in capfd.readouterr().out


@pytest.mark.parametrize("seconds", [2.0, 0.0])
def test_what_is_not_over_in_time_is_ended_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float
) -> None:
    monkeypatch.setattr(course, "SECTIONS", sections("hangs"))
    assert course.run(["hangs"], "cpu", True, seconds, tmp_path / "found.json", "fork") == 1
    (found,) = json.loads((tmp_path / "found.json").read_text())["sections"].values()
    assert found["rows"][-1]["why_not"] == "not run: time" and not found["ended"]


# ---- what is only called where there is a card ----------------------------------------------------------------------


class OnACard(Given):
    """Takes every way that a GPU takes, with tensors on the CPU."""

    @property
    def on_gpu(self) -> bool:
        return True


CALLED: dict[str, Any] = {
    "get_device_capability": (9, 0),
    "get_device_properties": type("Properties", (), {"total_memory": 1 << 37}),
    "max_memory_allocated": 3 << 20,
    "mem_get_info": (1 << 36, 1 << 37),
    "memory_allocated": 1 << 20,
    "memory_reserved": 2 << 20,
    "reset_peak_memory_stats": None,
    "set_per_process_memory_fraction": None,
    "synchronize": None,
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Given]:
    for name, answer in CALLED.items():
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name), return_value=answer))
    yield OnACard(torch.device("cpu"), TINY, TINY, tmp_path)
    assert torch.cuda.synchronize.called


@pytest.mark.parametrize(
    ("section", "cannot"),
    [
        (lambda given: machine.facts(given), set()),
        (lambda given: passes.back_off(given), {"a hundredth of a sequence"}),  # all of them fit here
        (lambda given: passes.recompute(given), set()),
        (lambda given: memory.predictions(given), set()),
        (lambda given: speed.steps(given, "full", "fp32"), set()),
        (lambda given: transfer.copies(given), {"pinning as much memory"}),
    ],
    ids=["machine", "oom", "recompute", "memory", "speed", "copies"],
)
def test_what_only_a_card_is_asked_is_asked_as_torch_has_it(
    card: Given, section: Callable[[Given], Iterable[Row]], cannot: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    found = list(section(card))
    assert {row.label for row in found if row.why_not.startswith("failed")} == cannot, found
    assert len(found) > len(cannot)


# ---- tables and stand-ins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [stand_ins, tables])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_a_stand_in_is_gone_after_the_imports() -> None:
    before = sys.modules["pydantic"]
    with stand_ins.importing(dict.fromkeys(["pydantic"], stand_ins._pydantic)):
        assert sys.modules["pydantic"] is not before
    assert sys.modules["pydantic"] is before


def test_the_distance_of_two_updates_is_that_of_float64() -> None:
    one, other = torch.randn(5000), torch.randn(5000)
    for own, reference in ((one, other), (one, one + 1e-4 * other), (one, one)):
        found = gauges.against(own, reference)
        wanted = (own.double() - reference.double()).norm() / reference.double().norm()
        assert found["relative L2"] == pytest.approx(wanted.item(), rel=1e-3, abs=1e-12)
        cosine = torch.nn.functional.cosine_similarity(own.double(), reference.double(), dim=0)
        assert found["cosine"] == pytest.approx(cosine.item(), abs=1e-9)


def test_the_model_is_the_one_that_it_says() -> None:
    with torch.device("meta"):
        made = given.LlamaForCausalLM(given.llama(given.LARGE))
    assert 0.4e9 < sum(parameter.numel() for parameter in made.parameters()) < 1e9
