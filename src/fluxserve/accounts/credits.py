"""Credits: whole thousandths, never floats. A ledger only grows: grant, reserve, lower, settle, refund.

`amount` is how the balance moves. A task reserves its price when it is accepted; where pictures that are still to come
decide it, the most it can be, which is lowered once they are there. Later it either settles (gives back what it did not
use, usually 0) or refunds; so at every moment balance = sum of amounts.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

from fluxserve.errors import ConfigurationError

UNITS = 1000


class Move(StrEnum):
    """The ledger's moves."""

    GRANT = "grant"
    RESERVE = "reserve"
    LOWER = "lower"
    SETTLE = "settle"
    REFUND = "refund"


def to_credits(amount: int) -> float:
    """Thousandths as the number of credits the wire shows."""
    return amount / UNITS


def format_credits(amount: int) -> str:
    """Thousandths as an exact decimal: 12500 -> "12.5"."""
    return f"{Decimal(amount) / UNITS:f}"


def parse_credits(text: str) -> int:
    """`"12.5"` -> 12500; raises ConfigurationError for anything that is no positive number of thousandths."""
    try:
        exact = Decimal(text) * UNITS
        amount = int(exact) if 0 < exact < 2**53 else 0  # the digits of "1e999990" take long to write out
    except (ArithmeticError, ValueError):
        exact, amount = Decimal(), 0
    if not amount or amount != exact:
        raise ConfigurationError(
            f"{text!r} is not a positive number of credits with at most three decimals, up to {2**53 // UNITS}."
        )
    return amount


def settled(reserved: int, used: int) -> int:
    """The settle amount: what goes back to the balance. Never more was taken than reserved."""
    return reserved - min(max(used, 0), reserved)
