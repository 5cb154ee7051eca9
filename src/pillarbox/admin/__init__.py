"""The admin side: HTTP API, metrics, event stream, dashboard. Looks at a server from outside; sessions do not know it."""
