"""Durations, sizes, rates and paths as people write them, and the types of options that take them.

A number without a unit is seconds or octets. Must not know any option.
"""

from __future__ import annotations

import datetime
import os
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SECONDS = {
    "ms": 0.001,
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
}
# kB and MB are powers of 1000 (ISO 80000-13); KiB and MiB powers of 1024, and so are the letters alone, as in systemd.
_OCTETS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
    **{letter: 1024**power for power, letter in enumerate("kmgt", 1)},
}
_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}\s*([a-z]+)\s*)+\Z", re.IGNORECASE | re.ASCII)
_DURATION_PART = re.compile(rf"{_NUMBER}\s*([a-z]+)", re.IGNORECASE | re.ASCII)
_SIZE = re.compile(rf"{_NUMBER}\s*([a-z]+)\Z", re.IGNORECASE | re.ASCII)


def parse_duration(value: Any) -> Any:
    """Seconds of "90s", "5m", "1h30m" or a timedelta; any other value is returned as it is, for the type to judge.

    ValueError for a text that is not a duration.
    """
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bool):
        raise ValueError("a truth value is not a duration")
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _DURATION.match(text):
        parts = _DURATION_PART.findall(text)
        if all(unit.lower() in _SECONDS for _, unit in parts):
            return sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)
    return float(text)


def parse_size(value: Any) -> Any:
    """Octets of "512kB", "10MB" or "64MiB"; any other value is returned as it is, for the type to judge.

    ValueError for a text that is not a size.
    """
    if isinstance(value, bool):
        raise ValueError("a truth value is not a size")
    if not isinstance(value, str):
        return value
    text = value.strip()
    found = _SIZE.match(text)
    if found is not None and found[2].lower() in _OCTETS:
        return round(float(found[1]) * _OCTETS[found[2].lower()])
    return int(text)


def parse_path(value: Any) -> Any:
    """The text of a path that is an os.PathLike; any other value is returned as it is."""
    return os.fsdecode(value) if isinstance(value, os.PathLike) else value


def none_of(value: Any) -> Any:
    """None for the word "none": a file and the environment have no other way to write it."""
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


Seconds = Annotated[float, BeforeValidator(parse_duration)]
Octets = Annotated[int, BeforeValidator(parse_size)]
PathText = Annotated[str, BeforeValidator(parse_path)]
SecondsOrNone = Annotated[Seconds | None, BeforeValidator(none_of)]

_RATE_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_rate(rate: str) -> tuple[int, int]:
    """(number, seconds) of a rate such as "600/m". ValueError says what is wrong with it."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*([smhd])\s*", rate)
    if found is None or int(found[1]) == 0:
        raise ValueError(
            "a rate is a number of messages, at least 1, and a unit of time: 10/s, 600/m, 5000/h or 20000/d"
        )
    return int(found[1]), _RATE_UNITS_S[found[2]]


def interval_s(rate: str) -> float:
    """Seconds between two events at a rate. ValueError says what is wrong with it."""
    number, seconds = parse_rate(rate)
    return seconds / number
