"""Comparison of addresses in any case: `str.casefold` for every store, so that one filter finds the same everywhere."""

from __future__ import annotations

from functools import cache


def contains(text: str, part: str) -> bool:
    """True where `part` is a part of `text`, in any case."""
    return part.casefold() in text.casefold()


@cache
def _tables() -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """(characters, what each becomes, characters that become several)."""
    single: dict[str, str] = {}
    several: list[tuple[str, str]] = []
    # No character beyond these planes has a case.
    for code in range(0x20000):
        folded = chr(code).casefold()
        if len(folded) > 1:
            several.append((chr(code), folded))
        elif folded != chr(code):
            single[chr(code)] = folded
    return "".join(single), "".join(single.values()), tuple(several)


@cache
def casefold_sql(expression: str) -> str:
    """Returns SQL of PostgreSQL that folds a text as Python does. Its own lower() depends on the database's locale."""
    before, after, several = _tables()
    folded = expression
    for character, text in several:
        folded = f"replace({folded}, '{character}', '{text}')"
    # An address in ASCII, the usual case, needs none of it.
    return (
        f"CASE WHEN octet_length({expression}) = char_length({expression}) "
        f"THEN translate({expression}, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz') "
        f"ELSE translate({folded}, '{before}', '{after}') END"
    )
