"""What a round costs a peer's own processor and disk, beside training and line: all of the state against what changed.

A full fine-tune of many parameters whose rounds average one of `--fragments` parts, by int2 (the `full` preset). Each
round is done once; what is then hashed, written and taken over is timed both ways, one after the other.

    scripts/bench commit
    scripts/bench commit --millions 300 --rounds 24
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNIT_VALUES = 1536  # of one more unit in each MLP of the demo's model: 4 layers, 3 matrices, 128 wide


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench commit", description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=100, help="parameters of the model")
    parser.add_argument("--fragments", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        times, sizes = measure(options, Path(folder))
    print(
        f"{options.millions} M parameters, a round averages one of {options.fragments} parts; "
        f"medians of {options.rounds} rounds\n"
    )
    print("| in a round | all of it, s | what changed, s | times |")
    print("|---|---|---|---|")
    for what in ("hash the new state", "keep it on disk", "take it over"):
        whole, part = (statistics.median(times[what, which]) for which in ("all", "changed"))
        print(f"| {what} | {whole:.3f} | {part:.3f} | {whole / part:.1f} |")
    for what in ("encode the update", "outer step"):
        print(f"| {what} | | {statistics.median(times[what, 'changed']):.3f} | |")
    whole, part = (statistics.median(sizes[which]) / 1e6 for which in ("all", "changed"))
    print(
        f"\nwritten: {whole:.1f} MB a state, {part:.2f} MB an average; with a state every 33 rounds "
        f"{whole / ((32 * part + whole) / 33):.0f} times less"
    )
    return 0


def _catch_up(own: Any, new: Any, old: Any) -> None:
    own.add_(new - old)


def measure(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[tuple[str, str], list[float]], dict[str, list[int]]]:
    """Seconds of each chore, both ways, a value a round; bytes written."""
    from lab.small_community import real_inputs, run_config
    from peer.sync.averages import Average
    from peer.training.codecs.codec import EncodedUpdate
    from peer.training.outer import outer_step
    from peer.training.state import SharedState
    from scripts.wan.model import inputs_of
    from scripts.wan.training import Task, average, sections

    inputs = inputs_of(options.millions * 1_000_000 // UNIT_VALUES, real_inputs(folder / "inputs"), folder)
    sync = {"wire": "int2", "fragments": options.fragments, "overlap": True, "round_tokens": 1}
    (folder / "task").mkdir()
    bench = Task.make(folder / "task", run_config(inputs, **sections("full", 1e-3, 1), sync=sync)).open()
    work, state, sent = bench.work("peer"), bench.genesis, None
    times: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, list[int]] = {}

    def timed(what: str, which: str, chore: Callable[..., Any], *given: Any) -> Any:
        started = time.perf_counter()
        result = chore(*given)
        times.setdefault((what, which), []).append(time.perf_counter() - started)
        return result

    for _ in range(options.rounds + 1):
        if work._base is not None:
            own, new, old = state.parameters.clone(), state.parameters, work._base.parameters
            timed("take it over", "all", _catch_up, own, new, old)
        timed("take it over", "changed", work.rebase, state, sent)
        work.step()
        sent = timed("encode the update", "changed", EncodedUpdate.encode, work.finish().vector, "int2")
        averaged = average([sent], bench.spec.sync.clip)
        kept = Average("int2", sent.values, sent.chunks)  # of one member: what it sent
        state = timed("outer step", "changed", outer_step, bench.spec, state, averaged)
        timed("hash the new state", "changed", state.leaf_hashes)
        again = SharedState(state.round, state.names_shapes, state.parameters, state.outer, state.outer_steps)
        assert timed("hash the new state", "all", again.leaf_hashes) == state.leaf_hashes()
        for which, thing in (("all", state), ("changed", kept)):
            timed("keep it on disk", which, thing.save, folder / which)
            sizes.setdefault(which, []).append((folder / which).stat().st_size)
    for values in times.values():
        del values[0]  # first times touch memory and files that are not there yet
    return times, sizes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
