"""Many light members on one machine: the whole protocol between real processes, and no training.

plan        what a community is: how many members, in groups of how many, rounds of how long; its keys and its run card
swarm       the only place that knows how the product's swarm is made, and what is read from it
member      one process: works by sleeping, hands over a tiny update, writes down each round
community   forks the members from a process that has imported all, and waits for them; `run` is what others call
log         what the members wrote, added up: rounds taken, work counted, processor time, bytes of control
"""
