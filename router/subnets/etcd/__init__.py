"""Subnets leased in etcd v3: nodes take theirs themselves, by transactions, and see each other's by a watch.

In the order of a node's life:

holder      which router it is: a process, for another to tell a clone from a predecessor
layout      keys and values, pure; what the store says is checked on reading
claim       which subnets to try for, in which order; pure
claimant    takes them by a transaction
join        from outside to holding: is somebody in the way, adopt what we held, or claim
member      join, hold by keep-alives, and say at any moment whether we hold
roster      the watch: all members as the store says, and what is kept while it forgets
source      a thread around all that, for a router, and one that tells its daemon (relay)
client      calls to etcd: transactions, leases (connection: endpoints, TLS, users, errors), and its watch

A simulator runs many members in one loop over one client and roster: Client(settings), Roster(client, layout, ttl_s),
then for each Member(client, roster, wish, memory).run(listener), beside one roster.run().
"""
