"""Faults planted on purpose, a patch each: the simulation finds every one of them (`python -m tests.mutants`)."""
