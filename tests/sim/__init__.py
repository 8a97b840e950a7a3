"""A run in memory: the core that ships, over a network that does its worst. `world.simulate` plays a `plans.Plan`.

plans      what goes wrong, as data: drawn, replayed, shrunk, told as a story
member     one member: its core, its disk, its trainer; and what a hostile one changes of what its core says
world      the clock, the network, and who looks on
bugs       rules to be broken on purpose
"""
