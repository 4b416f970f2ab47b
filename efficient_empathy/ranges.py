"""Numbers that an option may have."""

from efficient_empathy.errors import EmpathyError


def within(name: str, value: float, low: float, high: float) -> None:
    """See that an option lies in its range, both ends included.

    Raises:
        EmpathyError: it does not; names it, its value and the range.
    """
    if not low <= value <= high:
        raise EmpathyError(f"{name} must be from {_shown(low)} to {_shown(high)}, not {value}.")


def _shown(end: float) -> str:
    return f"{end:,}" if isinstance(end, int) else f"{end:g}"
