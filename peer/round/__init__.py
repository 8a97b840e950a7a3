"""The round: what a member decides, and nothing that it does. `(state, event, now) -> actions`, plain data in and out.

`peer.net.driver` turns messages and clocks into events and carries the actions out; the simulator in the tests steps
the same core over a network in memory. Nothing here knows asyncio, sockets, threads, files or tensors.

    core                     `Core.step`: one event in, a list of actions out
    events, actions, state   what goes in, what comes out, what stays
    box, quorum              promises and votes, on disk before anyone hears; majorities and locks, after Paxos
    views, turns             what the others last said of themselves; who leads, and whom to ask
    attempt                  how an attempt is promised, given up, or leads to a new head
    lead, bound, tally       its leader, who follows it, the votes
    follow, leave, word      when the others are further; when this member goes; what the coordinator says
    group, farewells         who averages together; who speaks for whom
    blame, length, shares    whom to leave out for a while; how long to work; who reduces how much
    report                   what is said of a round to people
"""
