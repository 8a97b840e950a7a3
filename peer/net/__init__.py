"""The network: the node, what members say to each other, the all-reduce, and the driver that steps the round's core.

hivemind is imported in this package only, and of it only the DHT node and the P2P streams (libp2p's daemon): its
processes, its Optimizer, its matchmaking and its state sharing stay unused. ARCHITECTURE.md says why.
"""
