"""The round: what a member decides, and nothing that it does. `(state, event, now) -> actions`, plain data in and out.

`peer.net.driver` turns messages and clocks into events and carries the actions out; the simulator in the tests steps the
same core over a network in memory. Nothing here knows asyncio, sockets, threads, files or tensors.

    core      `Core.step`: one event in, a list of actions out          events, actions, state    what goes in, out, and stays
    box       promises and votes, kept on disk before anyone hears      quorum    majorities, locks: after Paxos
    turns     who is there, who leads, whom to ask                      views     what the others last said of themselves
    lead, bound, tally    an attempt: its leader, who follows it, the votes
    follow    when the others are further                               leave, own, blame, length, shares, group, farewells
"""
