"""Values: envelope, content, header section, trace fields, DSN. No I/O but reading a spool file; no asyncio."""
