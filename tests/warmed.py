"""Imported by the process that all calls are forked from (tests/warm.py), and nowhere else: what each would do again."""

import dns.asyncresolver
import idna
import psycopg_pool
import typer.main
import uvloop

import pillarbox.admin.server
import pillarbox.app
import pillarbox.daemon.serve
import pillarbox.queue.postgres
import pillarbox.queue.whole
from pillarbox.cli.main import app

__all__ = ["dns", "idna", "pillarbox", "psycopg_pool", "uvloop"]

# The table of commands and options, made of the functions' annotations: a sixteenth of a second.
_command = typer.main.get_command(app)
typer.main.get_command = lambda _: _command
