"""The receiving side: asyncio around smtp.server. Decides and moves bytes; keeps nothing itself."""
