"""The sending side: routes, lanes, the SMTP client, DSNs."""
