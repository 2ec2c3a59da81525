"""Compose settings in one warm process of its own, and ask it from the server.

Hydra's composition keeps global state, so threads of a server cannot share it, and a first
composition takes most of a second. `child` composes one request after the other; `client` starts
it, asks it and starts it again when it has died or takes too long.
"""
