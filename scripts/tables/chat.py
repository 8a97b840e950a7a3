"""A chat fine-tune as people would do it: SmolLM2-135M-Instruct, LoRA, conversations, three members on the CPU.

A host prepares the conversations (`[[data]]`, kind "chat") and starts the run; three fresh `potluck join` train one
adapter, one thread each. Then the checkpoint is fetched and verified, and, loaded by stock transformers and peft, asked
questions that nobody trained on. It prints the held-out loss by round, tokens and seconds, the memory of each process
beside what was told before, and the answers of the base and of the checkpoint.

    scripts/bench chat --out chat        half an hour; chat/loss.png, and the processes' own words

Memory is sampled: PSS, which divides shared pages among those who share them, of all processes of a part; and the most
that its main process has had, shared pages in full, by the kernel's word (VmHWM).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import smollm2
from lab.outcomes import divergences
from lab.processes import Community, LabProcess, marked

NAMES = ("alice", "bob", "carol")
QUESTIONS = 5
ANSWER_TOKENS = 60
START_S = 600.0  # the host: prepares, evaluates, signs
FIRST_ROUND_S = 600.0  # the members: fetch, load, try
END_S = 300.0  # the last evaluations, and each command
SAMPLE_S = 1.0


@dataclass
class Peak:
    """The most that was seen, in MB."""

    pss: float = 0.0
    main: float = 0.0

    def add(self, pss: float, main: float) -> None:
        self.pss, self.main = max(self.pss, pss), max(self.main, main)


class MemoryWatch:
    """Samples the memory of a community's parts until it is closed; the host's while it starts for itself."""

    def __init__(self, run: Community) -> None:
        self._run = run
        self.peaks: dict[str, Peak] = {}
        self.phase = "start"  # of the host
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for part in list(self._run.parts):
                name = f"host, {self.phase}" if part.name == "host" else part.name
                pids = marked(f"{self._run.folder}:{part.name};")
                pss = sum(in_mb(pid, "smaps_rollup", "Pss") for pid in pids)
                self.peaks.setdefault(name, Peak()).add(pss, in_mb(part.pid, "status", "VmHWM"))


def in_mb(pid: int, file: str, key: str) -> float:
    """A figure of a process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 / 1e6 if found else 0.0
    return 0.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench chat", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-seconds", type=float, default=60.0)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--base", choices=("bf16", "fp32"), default="bf16", help="how the frozen base is held")
    parser.add_argument("--model", type=Path, help="where it was converted before; default: it is converted")
    parser.add_argument("--out", type=Path, default=Path("chat-out"), help="loss.png and the run; emptied first")
    options = parser.parse_args(arguments)
    if lacking := smollm2.missing():
        sys.stderr.write(
            f"error: `scripts/bench chat` needs {', '.join(lacking)}, which Potluck itself does not\n"
            f"hint: {smollm2.INSTALL}\n"
        )
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    shutil.rmtree(options.out, ignore_errors=True)
    out = options.out.resolve()
    out.mkdir(parents=True)
    model = options.model or smollm2.convert(out / "SmolLM2-135M-Instruct")
    pairs = smollm2.write_conversations(out / "pairs.jsonl", QUESTIONS)
    with Community(out, config(model.resolve(), options)) as run, MemoryWatch(run) as memory:
        checkpoint, told = take_part(run, memory, options)
    tell_curve(told, out / "loss.png")
    tell_memory(memory.peaks, told)
    tell_answers(model, checkpoint / "model", pairs)
    return 0


def config(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The host's run.toml."""
    source = {"name": "questions", "path": "pairs.jsonl", "kind": "chat", "license": smollm2.TEXT_LICENSE}
    return {
        "preset": "lora",
        "run": {"name": "chat", "seed": 1, "rounds": options.rounds},
        "model": {"path": str(model), "license": smollm2.MODEL_LICENSE},
        "data": [source],
        "sequences": {"sequence_length": options.sequence_length, "held_out": 0.05, "held_out_sequences": 8},
        "method": {"rank": 16, "alpha": 32, "base": options.base},
        "sync": {"round_seconds": options.round_seconds, "min_peers": len(NAMES)},
        "inner": {"lr": options.lr, "micro_batch": 1, "batch": 1},
        "publish": {"every_rounds": 2},
    }


def take_part(run: Community, memory: MemoryWatch, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The whole run; returns the fetched checkpoint, and what was told on the way."""
    began = time.monotonic()
    host = run.start("host", "host", str(run.config), "--folder", str(run.run), "--json", "--lang", "en")
    run.invite = host.wait_for("started", timeout_s=START_S)["invite"]
    memory.phase = "run"
    started = time.monotonic()
    peers = [run.peer(name) for name in NAMES]
    predicted = {peer.name: peer.wait_for("terms", timeout_s=FIRST_ROUND_S)["memory_bytes"] for peer in peers}
    for peer in peers:
        peer.wait_round(1, FIRST_ROUND_S)
    run.note_sockets()
    trained = time.monotonic()
    for peer in peers:  # they leave by themselves when all rounds are made
        code = peer.wait(3 * options.rounds * options.round_seconds + END_S)
        assert code == 0, f"{peer.name} ended with exit code {code}: {peer.said[-2000:]}"
    ended = time.monotonic()
    status = host.wait_for("status", lambda item: item["status"]["finished"], timeout_s=END_S)["status"]
    step = fetch_and_verify(run)
    assert host.stop(signal.SIGINT, END_S) == 0, host.said[-2000:]
    run.check_nothing_left()
    assert not divergences(peers), "two states in one round"
    print(f"\nthe host was ready after {started - began:.0f} s; from the members' start on, the first round was agreed")
    print(f"after {trained - started:.0f} s, and all {options.rounds} after {ended - started:.0f} s")
    return step, {"status": status, "predicted": predicted, "own": own_figures(peers)}


def fetch_and_verify(run: Community) -> Path:
    """As a stranger would: `potluck fetch --chain`, and `potluck verify` offline with the host's key."""
    folder = run.folder / "fetched"
    command = [sys.executable, "-m", "potluck"]
    environment = run.environment("stranger")
    fetched = subprocess.run(
        [*command, "fetch", run.invite, str(folder), "--chain", "--json", "--home", str(run.home("stranger"))],
        capture_output=True, text=True, timeout=END_S, env=environment,
    )  # fmt: skip
    assert fetched.returncode == 0, f"potluck fetch: {fetched.stdout}{fetched.stderr}"
    step = Path(json.loads(fetched.stdout)["folder"])
    verified = subprocess.run(
        [*command, "verify", str(step), "--key", str(run.run / "coordinator.pub"), "--lang", "en"],
        capture_output=True, text=True, timeout=END_S, env=environment,
    )  # fmt: skip
    print(f"\npotluck verify {step.name}\n{verified.stdout}{verified.stderr}", end="")
    assert verified.returncode == 0, f"potluck verify ended with exit code {verified.returncode}"
    return step


def own_figures(peers: list[LabProcess]) -> dict[str, dict[str, float]]:
    """Each member's tokens a second, and what it waited in a round, by its own word."""
    figures = {}
    for peer in peers:
        speeds = [event["tokens_per_s"] for event in peer.events if event["event"] == "worked"]
        waits = [event["waited_s"] for event in peer.committed().values()]
        figures[peer.name] = {"tokens_per_s": speeds[-1], "waited_s": sum(waits) / len(waits), "rounds": len(waits)}
    return figures


def tell_curve(told: dict[str, Any], plot: Path) -> None:
    from coordinator.plot import draw_losses

    points = [(item["round"], item["tokens"], item["held_out_loss"]) for item in told["status"]["evaluations"]]
    begin = told["status"]["evaluations"][0]["time"]
    print("\n| round | tokens agreed | held-out loss | after, s |\n|---|---|---|---|")
    for item, (number, tokens, loss) in zip(told["status"]["evaluations"], points, strict=True):
        print(f"| {number} | {tokens:,} | {loss:.4f} | {item['time'] - begin:.0f} |")
    draw_losses(plot, "SmolLM2-135M-Instruct, LoRA", points)
    print("\n| member | tokens/s | waited in a round, s | rounds |\n|---|---|---|---|")
    for name, own in told["own"].items():
        print(f"| {name} | {own['tokens_per_s']:.1f} | {own['waited_s']:.2f} | {own['rounds']} |")


def tell_memory(peaks: dict[str, Peak], told: dict[str, Any]) -> None:
    print("\n| | told before, MB | most, all processes, PSS, MB | most, main process alone, MB |\n|---|---|---|---|")
    for name, peak in sorted(peaks.items()):
        before = f"{told['predicted'][name] / 1e6:,.0f}" if name in told["predicted"] else ""
        print(f"| {name} | {before} | {peak.pss:,.0f} | {peak.main:,.0f} |")


def tell_answers(base: Path, adapter: Path, pairs: list[tuple[str, str]]) -> None:
    """What base and checkpoint say to the questions that were kept back, with the words that a stranger would type."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peer.training.quiet import no_progress_bars

    with no_progress_bars():
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)

    def answer(question: str) -> str:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        end = tokenizer.eos_token_id
        made = model.generate(**chat, max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end)
        return tokenizer.decode(made[0, chat["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    for question, right in pairs:
        with model.disable_adapter():
            before = answer(question)
        print(f"\nQ: {question}\n  in the data: {right}\n  base:        {before}\n  checkpoint:  {answer(question)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
