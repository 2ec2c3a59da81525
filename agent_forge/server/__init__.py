"""Serve agents and runs: jobs, live updates, an OpenAI-compatible chat, models, keys and an audit log.

Nothing here is imported by the rooms below; `forge serve` and `forge mcp` open it. Importing this
package needs none of the extras.
"""
