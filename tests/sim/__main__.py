"""`python -m tests.sim [--seeds N] [--first N] [--jobs N] [--trace SEED]`: worlds by the thousand, or one with all that happened."""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import multiprocessing
import os
import random
import sys
import time
from typing import NamedTuple

_perf = time.perf_counter


class Outcome(NamedTuple):
    """Of one seed."""

    seed: int
    violations: list[str]
    digest: str
    messages: int
    recipients: int
    simulated_s: float


def simulate(seed: int) -> Outcome:
    """One world. The digest is of everything that happened in it, in order."""
    from .world import World

    world = World(seed)
    violations = world.run()
    digest = hashlib.sha256("\n".join(world.told).encode()).hexdigest()[:16]
    recipients = sum(len(m.recipients) for m in world.mails)
    outcome = Outcome(seed, violations, digest, len(world.mails), recipients, world.loop.now - 1000)
    world.loop.close()
    del world
    if seed % 20 == 0:
        gc.collect()
    return outcome


def quiet() -> None:
    """What servers log is in the way: it is the trace that counts."""
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    # Worlds make their own chance; whatever else asks is given the same each time.
    random.seed(0)
    gc.disable()


def main() -> int:
    """Exit code 1 when an invariant does not hold."""
    parser = argparse.ArgumentParser(description="simulated worlds, from seeds")
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--most", type=int, default=3, help="stop after so many seeds that fail")
    parser.add_argument("--trace", type=int, metavar="SEED", help="one seed, with all that happened")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of words is chance, too: a seed must mean the same in every process.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    quiet()
    if given.trace is not None:
        return trace(given.trace)
    began, failed, done, recipients, simulated = _perf(), 0, 0, 0, 0.0
    with multiprocessing.get_context("fork").Pool(given.jobs, initializer=quiet) as pool:
        for outcome in pool.imap_unordered(simulate, range(given.first, given.first + given.seeds), chunksize=4):
            done += 1
            recipients += outcome.recipients
            simulated += outcome.simulated_s
            if outcome.violations:
                failed += 1
                print(f"seed {outcome.seed}:")
                for text in outcome.violations:
                    print(f"  {text}")
                print(f"  replay: make sim ARGS='--trace {outcome.seed}'", flush=True)
                if failed >= given.most:
                    pool.terminate()
                    break
    seconds = _perf() - began
    print(
        f"{done} worlds, {recipients} recipients, {simulated / 86400:.1f} simulated days in {seconds:.0f} s: "
        + (f"{failed} FAILED" if failed else "every invariant holds")
    )
    return 1 if failed else 0


def trace(seed: int) -> int:
    """Everything that happened, and its digest."""
    from .world import World

    world = World(seed)
    violations = world.run()
    print("\n".join(world.told))
    print(f"digest {hashlib.sha256(chr(10).join(world.told).encode()).hexdigest()[:16]}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
