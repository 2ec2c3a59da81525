"""One merge method a file, found by its name. See `agent_forge.merge.method` for what a file must hold."""
