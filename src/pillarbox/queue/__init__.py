"""The durable queue: what a message is there, where it is kept, when it is tried again, and who works on it."""
