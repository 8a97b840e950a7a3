"""The rendezvous: a node that trains nothing and is always there, where peers of a run first meet.

The host starts one beside the coordinator:

    python -m peer.net.rendezvous --identity FILE --listen 0.0.0.0:4701 [--announce HOST]

It prints one JSON line, {"addresses": [...]}, when it can be reached, and ends when its standard input is closed: so it
goes when the host goes, even on kill -9. Nothing it says is believed: it only carries records that peers signed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from peer.net.node import Node
from peer.net.records import RecordValidator
from protocol.errors import PotluckError


async def run(identity_path: Path, listen: str, announce: str | None) -> None:
    """Be a rendezvous until standard input is closed."""
    node = await Node.start(identity_path, listen=listen, announce=announce, validator=RecordValidator())
    try:
        sys.stdout.write(json.dumps({"addresses": await node.addresses()}) + "\n")
        sys.stdout.flush()
        closed = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), lambda: closed.set() if not os.read(sys.stdin.fileno(), 4096) else None)
        loop.add_signal_handler(signal.SIGTERM, closed.set)
        await closed.wait()
    finally:
        await node.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m peer.net.rendezvous")
    parser.add_argument("--identity", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--announce")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to handle
    try:
        asyncio.run(run(arguments.identity, arguments.listen, arguments.announce))
    except PotluckError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
