"""What tests and scripts stand on: whole communities of real processes, a WAN to put them on, faults and attacks to plant.

The product imports nothing of this and the wheel does not hold it. Start from the repository root, as `scripts/` and pytest
do: `python -m` and pytest find the package there.

    processes         a host and its peers as real `potluck` processes; warm_start forks them in a fraction of a second
    small_community   the smallest inputs that a community trains on; outcomes: what a finished run's ledger and disks say
    wan/              each host in a network namespace of its own, on a slow line that can be cut while it runs
    faults, attackers what is done to a peer at a chosen instant; one that does not keep the rules
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
