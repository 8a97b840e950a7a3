"""What tests and scripts stand on: whole communities of real processes, a WAN for them, faults and attacks to plant.

The product imports nothing of this, and the wheel does not hold it. Start from the repository root, as `scripts/` does:
`python -m` finds the package there, and pytest does anyhow.

    processes          a host and its peers as real `potluck` processes; warm_start forks them in a fraction of a second
    small_community    the smallest inputs that a community trains on; outcomes: what its ledger says afterwards
    mirror             a folder of shards on the web: slow, counted, and broken when asked to be
    wan/               each host in a network namespace of its own, on a slow line that can be cut while it runs
    light/             members without training, as many as the machine has room for
    faults, attackers  what is done to a peer at a chosen instant; a member that does not keep the rules
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
