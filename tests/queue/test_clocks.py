"""A wall clock that is wrong for a while: pauses, ages and expiry of what was queued meanwhile."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from pillarbox.queue.clocks import StepWatch
from pillarbox.testing.clock import ManualClock
from pillarbox.testing.scripted import ScriptedServer

from ..conftest import run_async
from .test_delivery import in_state, put, relaying, view

YEAR = 365 * 86400.0


def test_step_watch_finds_steps_and_not_time_that_passes() -> None:
    clock = ManualClock()
    watch = StepWatch(clock)
    clock.advance(86400)
    assert watch.step_s() == 0.0
    clock.step_wall(30)
    assert watch.step_s() == 0.0
    clock.step_wall(YEAR)
    assert watch.step_s() == pytest.approx(YEAR + 30) and watch.step_s() == 0.0
    clock.step_wall(-YEAR)
    assert watch.step_s() == pytest.approx(-YEAR)


@pytest.mark.parametrize("step_s", [-YEAR, -3600.0, YEAR])
def test_message_deferred_with_a_wrong_clock_is_tried_within_the_longest_pause(
    tmp_path: Path, step_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT="450 4.2.0 later") as peer, relaying(tmp_path, peer.port) as (server, clock):
            uid = put(server)
            await in_state(server, uid, "deferred")
            clock.step_wall(step_s)
            peer.script("RCPT", "250 OK")
            for _ in range(400):
                clock.advance(60)
                await asyncio.sleep(0.002)
                if view(server, uid).recipients[0].state != "deferred":
                    break
            assert view(server, uid).recipients[0].state == "delivered"
            assert len([r for r in caplog.records if "clock: set by" in r.message]) == 1

    caplog.set_level(logging.WARNING)
    run_async(main)


def test_jump_of_the_clock_beyond_the_expiry_expires_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT="450 4.2.0 later") as peer, relaying(tmp_path, peer.port) as (server, clock):
            uid = put(server)
            await in_state(server, uid, "deferred")
            clock.step_wall(YEAR)
            for _ in range(30):
                clock.advance(60)
                await asyncio.sleep(0.002)
            found = view(server, uid)
            assert found.recipients[0].state == "deferred" and found.recipients[0].attempts > 1
            assert found.expires_at > clock.time() + 3 * 86400

    run_async(main)


def test_restart_with_the_clock_set_back_mends_what_was_queued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ScriptedServer(RCPT="450 4.2.0 later") as peer:
            async with relaying(tmp_path, peer.port, store="sqlite") as (server, clock):
                clock.step_wall(YEAR)
                uid = put(server)
                await in_state(server, uid, "deferred")
            peer.script("RCPT", "250 OK")
            async with relaying(tmp_path, peer.port, store="sqlite") as (server, clock):
                await in_state(server, uid, "delivered")
                assert view(server, uid).received_at <= clock.time()
            assert len([r for r in caplog.records if "written with a wrong clock" in r.message]) == 1

    caplog.set_level(logging.WARNING)
    run_async(main)
