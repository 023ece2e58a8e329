"""Mutation testing: do the tests notice when a line of the core is wrong? `python -m bench.mutants --help`."""
