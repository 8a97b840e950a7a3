"""The demo: a community run on one machine, every part of it real, each in a process of its own.

Run it by `scripts/demo` (or `scripts/demo --lora`). It hosts examples/shakespeare with a coordinator and three peers on
loopback sockets, shows the run while it happens, and at the end verifies what was published: with `potluck verify`,
with the stock `model_signing` command, and once more after flipping one byte.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.host_screen import run_view
from lab import REPOSITORY
from protocol.checkpoint import read_info, step_name
from protocol.run_card import RunCard
from protocol.status import RunStatus

EXAMPLE = REPOSITORY / "examples" / "shakespeare"
PEERS = 3
START_TIMEOUT_S = 90.0
RUN_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 15.0
PROMPT = "ROMEO\n"


class Failed(Exception):
    """A part of the demo ended as it should not."""


class Part:
    """One process of the demo: its JSON lines come to a queue, what it says on standard error goes to a file."""

    def __init__(self, name: str, arguments: list[str], out: Path) -> None:
        self.name, self.log = name, out / f"{name}.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "POTLUCK_HOME": str(out / "home")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "potluck", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is handled here, and passed on once
        )
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.put(json.loads(line))

    def drain(self) -> list[dict[str, Any]]:
        """The events that came since the last call."""
        found = []
        while not self.events.empty():
            found.append(self.events.get_nowait())
        return found

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def check(self) -> None:
        """Raises Failed when the process has ended badly."""
        if self.ended and self._process.returncode != 0:
            tail = "\n".join(self.log.read_text().splitlines()[-8:])
            raise Failed(f"{self.name} ended with exit code {self._process.returncode}:\n{tail}")

    def interrupt(self) -> None:
        if not self.ended:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


class Demo:
    """The whole of it."""

    def __init__(self, *, lora: bool, out: Path) -> None:
        self.lora, self.out, self.run, self.example = lora, out, out / "run", out / "example"
        self.console = Console(highlight=False)
        self.parts: list[Part] = []
        self.notes: dict[str, str] = {}
        self.status: RunStatus | None = None

    def prepare(self) -> None:
        """Write the real model and the real text, and beside them the example's run.toml, on any two free ports."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.console.print("1. converting the glassllm weights and writing Shakespeare's plays …")
        subprocess.run([sys.executable, str(EXAMPLE / "prepare.py"), str(self.example)], check=True, timeout=120)
        config = (EXAMPLE / ("run-lora.toml" if self.lora else "run.toml")).read_text()
        (self.example / "run.toml").write_text(config.replace(":4700", ":0").replace(":4701", ":0"))

    def launch(self) -> None:
        self.console.print("2. starting a coordinator, which makes and signs the genesis checkpoint …")
        host = self._start(
            "coordinator",
            "host",
            str(self.example / "run.toml"),
            "--folder",
            str(self.run),
            "--until-finished",
            "--json",
        )
        invite = self._wait_for(host, "started")["invite"]
        self.console.print(f"3. its invite: {invite[:60]}…\n   {PEERS} peers join with it:\n")
        for number in range(1, PEERS + 1):
            home = self.out / f"peer-{number}"
            self._start(
                f"peer-{number}", "join", invite, "--yes", "--json", "--home", str(home),
                "--device", "cpu", "--threads", "1", "--listen", "127.0.0.1:0",
            )  # fmt: skip

    def watch(self) -> None:
        """Show the run until all processes have ended."""
        deadline = time.monotonic() + RUN_TIMEOUT_S
        with Live(console=self.console, auto_refresh=False) as live:
            while not all(part.ended for part in self.parts):
                for part in self.parts:
                    part.check()
                    for event in part.drain():
                        self._note(part, event)
                if self.console.is_terminal:
                    live.update(self._view(), refresh=True)
                if time.monotonic() > deadline:
                    raise Failed(f"the run took longer than {RUN_TIMEOUT_S:.0f} s")
                time.sleep(0.2)
            for part in self.parts:
                part.check()
                for event in part.drain():
                    self._note(part, event)
            live.update(self._view(), refresh=True)

    def _note(self, part: Part, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in ("status", "ended"):
            self._read_status(event)
            if not self.console.is_terminal and kind == "status" and self.status is not None:
                losses = [item.held_out_loss for item in self.status.evaluations]
                loss = f", held-out loss {losses[-1]:.4f}" if losses else ""
                self.console.print(f"   round {self.status.round}/{self.status.rounds}{loss}")
        elif kind == "step":
            self.notes[part.name] = event["step"].replace("-", " ")
        elif kind == "worked":
            self.notes[part.name] = (
                f"round {event['round']}: {event['tokens']:,} tokens done, own loss {event['loss']:.3f}"
            )
        elif kind == "committed":
            text = f"round {event['round']} agreed with {event['members']} members, state {event['state'][:12]}…, "
            text += f"waited {event['waited_s']:.2f} s"
            self.notes[part.name] = text

    def _read_status(self, event: dict[str, Any]) -> None:
        self.status = RunStatus.model_validate(event["status"])

    def _view(self) -> Group:
        table = Table(box=None, show_header=False, padding=(0, 2))
        for part in self.parts[1:]:
            table.add_row(part.name, self.notes.get(part.name, "starting"))
        return Group(run_view(self.status) if self.status else Text("waiting for the first round …"), Text(""), table)

    def report(self) -> None:
        """What came of it, and whether strangers can check it."""
        assert self.status is not None
        if not self.status.finished:
            raise Failed("the run ended before its last round was published")
        before, after = self.status.evaluations[0], self.status.evaluations[-1]
        step = self.run / "checkpoints" / step_name(after.round)
        print_ = self.console.print
        print_(
            f"\n4. held-out loss: {before.held_out_loss:.4f} before, {after.held_out_loss:.4f} "
            f"after {after.round} rounds"
        )
        print_("   who contributed how much (agreed, and in the ledger):")
        total = sum(item.tokens for item in read_info(step).contributors)
        for item in read_info(step).contributors:
            print_(f"     {item.peer_id}  {item.tokens:>9,} tokens  {item.tokens / total:6.1%}  {item.flops:.3g} FLOPs")
        print_(f"   signed checkpoint: {_shown(step)}\n   loss plot:         {_shown(self.run / 'loss.png')}")
        self._verify(step)
        self._samples(step)

    def _verify(self, step: Path) -> None:
        key, checkpoints = str(self.run / "coordinator.pub"), str(step.parent)
        print_ = self.console.print
        print_(f"\n5. potluck verify {_shown(step)} --key …/coordinator.pub --checkpoints …")
        potluck = [sys.executable, "-m", "potluck", "verify"]
        self._expect(0, [*potluck, str(step), "--key", key, "--checkpoints", checkpoints])
        print_(
            "\n6. the stock command: model_signing verify key …/model --signature …/model.sig "
            "--public_key …/coordinator.pub"
        )
        stock = [str(Path(sys.executable).with_name("model_signing")), "verify", "key"]
        stock_end = ["--public_key", key, "--no-ignore-git-paths"]
        self._expect(0, [*stock, str(step / "model"), "--signature", str(step / "model.sig"), *stock_end])
        copy = self.out / "one-byte-flipped"
        shutil.copytree(step, copy)
        weights = next((copy / "model").glob("*.safetensors"))
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
        print_(f"\n7. the same after flipping one byte of a copy's {weights.name}:")
        self._expect(1, [*potluck, str(copy), "--key", key])
        self._expect(1, [*stock, str(copy / "model"), "--signature", str(copy / "model.sig"), *stock_end])

    def _expect(self, code: int, command: list[str]) -> None:
        environment = os.environ | {"POTLUCK_HOME": str(self.out / "nobody")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        for line in (done.stdout + done.stderr).strip().splitlines():
            self.console.print("   │ " + line, markup=False, soft_wrap=True)
        self.console.print(f"   └ exit code {done.returncode}")
        if done.returncode != code:
            raise Failed(f"{' '.join(command[:4])} … ended with exit code {done.returncode}, expected {code}")

    def _samples(self, step: Path) -> None:
        from peer.training.model import load_trainable

        self.console.print(f"\n8. the model goes on from {PROMPT!r}:")
        for name, folder in (("before", step.with_name(step_name(0))), ("after", step)):
            info = read_info(folder)
            spec = RunCard.open(info.run_card_bytes, info.public_key).spec
            model = load_trainable(spec, folder / "model", self.example / "glassllm-en" if self.lora else None)
            sample = model.generate(PROMPT, max_new_tokens=48, seed=1)
            self.console.print(
                f"   {name}:\n" + "\n".join(f"     {line}" for line in sample.splitlines()[:6]), markup=False
            )

    def stop(self) -> None:
        for parts in (self.parts[1:], self.parts[:1]):  # peers first, so that their last claims reach the coordinator
            for part in parts:
                part.interrupt()
            for part in parts:
                part.wait()

    def _start(self, name: str, *arguments: str) -> Part:
        part = Part(name, list(arguments), self.out)
        self.parts.append(part)
        return part

    def _wait_for(self, part: Part, kind: str) -> dict[str, Any]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            part.check()
            for event in part.drain():
                if event["event"] == kind:
                    return event
            time.sleep(0.1)
        raise Failed(f"{part.name} did not start within {START_TIMEOUT_S:.0f} s; see {_shown(part.log)}")


def _shown(path: Path) -> str:
    return os.path.relpath(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lora", action="store_true", help="train an adapter instead of the whole model")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "demo-out", help="where everything goes; emptied first"
    )
    arguments = parser.parse_args()
    demo = Demo(lora=arguments.lora, out=arguments.out)
    for number in (signal.SIGINT, signal.SIGTERM):  # a script's background job starts with Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    started = time.monotonic()
    try:
        demo.prepare()
        demo.launch()
        demo.watch()
        demo.report()
    except Failed as error:
        sys.stderr.write(f"error: {error}\nhint: the processes' own words are in {_shown(demo.out)}/*.log\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopping …\n")
        return 130
    finally:
        demo.stop()
    demo.console.print(f"\nall of it took {time.monotonic() - started:.0f} s. To look around: {_shown(demo.run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
