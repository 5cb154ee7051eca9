"""Octets that nobody would think of: targets for a coverage-guided fuzzer (`make fuzz`), and a corpus that the suite replays."""
