"""When to try again: exponential with jitter, from minutes to hours (RFC 5321 section 4.5.4.1). Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds. The first pause is `first_s`, each further one `factor` times longer, `longest_s` at most; then jitter.

    A message is given up after `expire_s`, and its sender told of a delay after `delay_notice_s` (None: never).
    """

    first_s: float = 300.0
    longest_s: float = 4 * 3600.0
    factor: float = 2.0
    jitter: float = 0.2
    expire_s: float = 4 * 86400.0
    delay_notice_s: float | None = None


def pause_s(policy: RetryPolicy, attempts: int, rng: random.Random) -> float:
    """The pause after the `attempts`-th try (1, 2, ...), spread so that a crowd does not come back as a crowd."""
    exponent = min(max(attempts, 1) - 1, 64)
    pause = min(policy.first_s * policy.factor**exponent, policy.longest_s)
    return pause * (1.0 + policy.jitter * (2.0 * rng.random() - 1.0))
