"""Live updates: every event of every job, over WebSocket and server-sent events, none lost.

`messages` turns stored events into what clients read; `hub` reads each new event once for all
clients and gives old ones to whoever comes back; `socket` and `stream` are the two ways to listen.
A client's place is the number of the last message that it has, so nothing is kept for it here.
"""
