"""SMTP itself, both sides, without I/O: bytes in, events out (RFC 5321).

Nothing in this room imports asyncio, socket, ssl, time or logging; it uses the standard library only.
"""
