"""The long run: a lab under traffic that is checked to the last byte, while everything that may fail does, by a seed.

`python -m tests.chaos --minutes 10 --seed N`, or `make chaos`; docs/chaos.md says what is held to be true, and how tightly.

    schedule.py   what is done when: a list, made by one seeded generator; pure
    payload.py    what packets carry: who to whom, and bytes that follow from where they belong; pure
    flows.py      what was sent, and what came of it; pure
    pod.py        the sockets of one Pod     traffic.py  all of them in one loop      icmp.py spoof.py  made by hand
    rig.py        the lab, the routers' supervisor, and how each action is done        runner.py  the list, done in time
    accounts.py   counters of routers that come and go, added up and held to; pure
    excuses.py    times at which a loss needs no counter; pure
    store.py      an independent witness of etcd; its rules are pure
    oracle.py     looks every second         quiet.py    looks at the end              leaks.py   what is left on the machine
    planted.py    a router with a bug, to prove that the oracle sees it
"""
