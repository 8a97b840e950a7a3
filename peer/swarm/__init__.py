"""Everything that stands on hivemind: the node, the members' talk, the all-reduce, the rounds.

hivemind is imported in this package only, and of it only the DHT node and the P2P streams (libp2p's daemon): its
processes, its Optimizer, its matchmaking and its state sharing stay unused. ARCHITECTURE.md says why.
"""
