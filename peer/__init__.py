"""Everything on the volunteer's machine: joining, training, the swarm, and the link to the coordinator."""
