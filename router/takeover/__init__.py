"""A router gives its work over to its successor, and no packet is lost; `podwire router run --takeover`.

    successor                                  the router that runs (predecessor)
    hello: who it is                     ──►   refuses, or
                                         ◄──   freezes (gate.py): no change from now on; estate and fds.     Its engine goes on.
    journal, table, engine with all attached
    ready                                ──►
                                         ◄──   stopped: its engine has finished its last batch
    starts its engine; running           ──►
                                         ◄──   counters, which go on where they stood
    follows the table, asks the peers
    leave                                ──►   closes the TUNs
                                         ◄──   left
    takes the control socket's path, and ends the connection ──► ends its control, exits 0

    channel.py      the connection: messages of JSON, and fds          predecessor.py, successor.py   the two sides of it
    owner.py        what a predecessor does with its daemon             inherited.py   fds from it, or from systemd (fdstore.py)
    counts.py, continued.py   counters over the change

Until `leave` the predecessor takes its work back whenever the successor goes: it thaws, and starts its engine again. A predecessor
that dies leaves its successor all there is. While no engine runs, for about a millisecond, packets wait in the rings of the
TUNs (1,000 each) and in the socket.
"""
