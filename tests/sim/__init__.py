"""A deterministic simulation of servers, their network, DNS, clocks and disks: `python -m tests.sim` (docs/explanation/simulation.md)."""
