"""Phrases that several messages share."""

from collections.abc import Iterable
from difflib import get_close_matches


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 object, 2 objects."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, with the nearest known one, or else with all of them."""
    known = list(known)
    nearest = get_close_matches(name, known, 1)
    if nearest:
        return f"unknown {kind} '{name}': did you mean '{nearest[0]}'?"
    return f"unknown {kind} '{name}': expected {', '.join(known) or 'none'}"
