"""A run in memory: the core that ships, over a network that does its worst. `world.simulate` plays a `plans.Plan`.

plans      what goes wrong, as data: drawn, replayed, shrunk, told as a story
member     one member: its core, its disk, its trainer       hostile    what a hostile one changes of what its core says
network    which faults are in force, and what they do to a message
papers     certificates, where some end
carry      what a core's actions do in this world            tasks      what of it takes a while
referee    who looks on, and knows everything               host       its ledger, and its word where they are too few
world      the clock, and a plan from its first tick to its last
rotation   who is in which round of a run that is larger than its groups: the rules alone, no messages
bugs       rules to be broken on purpose
"""
