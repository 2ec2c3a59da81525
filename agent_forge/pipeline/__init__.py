"""The phase controller: one door to run a phase, the run of all phases with gates between, and the report."""
