"""The phase controller: run one phase, run all phases with gates between them, write the report."""
