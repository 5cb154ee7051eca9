"""The server as a program of its own: logs, readiness, signals."""
