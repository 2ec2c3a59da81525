"""Merge methods, one per file, found by the file's name.

See `agent_forge.merge.method` for what a file must hold.
"""
