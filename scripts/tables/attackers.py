"""Six honest members and one attacker, in real processes: what is left of the run, and what the attacker gets of it.

The demo's model on the plays, the default wire codec, rounds of a fixed number of tokens, so that a round is the same
work whoever does it. The attacker is the real client with one thing changed (see `lab.attackers`), and joins with the
invite as everybody does. A row in which nobody makes a round for two minutes ends, and says so.

    scripts/bench attackers                                         all rows
    scripts/bench attackers --only "clean,negated x10" --json attackers.json
    scripts/bench attackers --audit 0.05                            other rows: work is replayed, credit on hold

Goal: within 10 % of the clean loss, and all rounds made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from lab.attack_rows import Row
from lab.attack_scenarios import AUDITED, HONEST, SCENARIOS, Scenario, Terms, play
from lab.small_community import Inputs, real_inputs
from lab.warm_start import WarmStart

MOST_CHARS = 2000  # of what is told of a row that could not be played
CODECS = ("fp32", "fp16", "int8", "int4", "int2", "topk")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench attackers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=_scenarios, help=",".join(item.name for item in (*SCENARIOS, *AUDITED[2:])))
    parser.add_argument("--audit", type=float, default=0.0, help="share of the claims that are replayed")
    parser.add_argument("--codecs", type=_codecs, default=["int4"], help=",".join(CODECS))
    parser.add_argument("--rounds", type=int, default=Terms.rounds)
    parser.add_argument("--round-tokens", type=int, default=Terms.round_tokens, help="of all members together")
    parser.add_argument("--stall-s", type=float, default=Terms.stall_s, help="without a round, before a row ends")
    parser.add_argument("--limit-s", type=float, default=Terms.limit_s, help="of a row")
    parser.add_argument("--json", type=Path, help="write the rows there, too, after each row")
    parser.add_argument("--out", type=Path, help="an empty folder: keep there what the processes leave")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # a job in the background starts with Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    try:
        return play_all(options)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130


def play_all(options: argparse.Namespace) -> int:
    """Row after row; the table at the end."""
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as name, WarmStart() as starter:
        folder = (options.out or Path(name)).resolve()
        inputs = real_inputs(folder / "inputs")
        for wire in options.codecs:
            terms = Terms(wire, options.rounds, options.round_tokens, options.stall_s, options.limit_s, options.audit)
            for scenario in options.only or (AUDITED if options.audit else SCENARIOS):
                try:
                    rows.append(one(scenario, folder / f"{scenario.name}, {wire}", inputs, starter, terms))
                except AssertionError as error:  # a process did not do what it should in time: on with the others
                    failed.append(f"{scenario.name}, {wire}")
                    sys.stderr.write(f"    failed: {str(error)[:MOST_CHARS]}\n")
                if options.json:
                    options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
        tell(rows, failed, options)
    return 0 if not failed and all(row.one_state for row in rows) else 1


def one(scenario: Scenario, folder: Path, inputs: Inputs, starter: WarmStart, terms: Terms) -> Row:
    """Play one row, with a line before and one after."""
    folder.mkdir()
    started = time.monotonic()
    sys.stderr.write(f"{scenario.name}, {terms.wire} …\n")
    row = play(scenario, folder, inputs, starter, terms)
    sys.stderr.write(
        f"    loss {row.loss:.4f} after {row.loss_round} rounds; {row.rounds} made in {row.seconds:.0f} s, "
        f"{row.ended}; all of it {time.monotonic() - started:.0f} s\n"
    )
    return row


def tell(rows: list[Row], failed: list[str], options: argparse.Namespace) -> None:
    print(
        f"\n{HONEST} honest members, the demo's model on the plays, {options.rounds} rounds of "
        f"{options.round_tokens:,} tokens, {time.strftime('%Y-%m-%d')}\n"
    )
    print(Row.audited_header() if options.audit else Row.header())
    clean = {row.wire: row for row in rows if row.name == SCENARIOS[0].name}
    for row in rows:
        print((row.audited_markdown if options.audit else row.to_markdown)(clean.get(row.wire)))
    print(f"\nrows in which a round had two states: {sum(not row.one_state for row in rows)}; goal: none")
    if failed:
        print(f"rows that could not be played: {'; '.join(failed)}")


def _scenarios(text: str) -> tuple[Scenario, ...]:
    found = {scenario.name: scenario for scenario in (*SCENARIOS, *AUDITED)}
    return tuple(found[name] for name in _some_of(list(found), text))


def _codecs(text: str) -> list[str]:
    return _some_of(list(CODECS), text)


def _some_of(known: list[str], text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}: expected some of {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
