"""Sending again: as long as the server asks to wait, else exponentially longer each time, never for ever."""

import email.utils
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from efficient_empathy.distill.judges import BUSY, NoAnswerError, OnLost, send_again

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
# A server may ask for hours; past this the question is given up, counted, and asked again by the next run.
_LONGEST_RETRY_AFTER_S = 600.0
# What a gateway says when the server behind it, which may have worked on, did not answer in time.
_GATEWAY = frozenset({502, 503, 504})
# Of the HTTP client, by name: what goes wrong before a question is sent.
_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"})

Result = TypeVar("Result")


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait, or None.

    Args:
        headers: of the response; ``Retry-After`` holds seconds or an HTTP date, ``retry-after-ms`` milliseconds.
        now: seconds since the epoch, for the date.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            parsed = email.utils.parsedate_tz(value)
            if parsed is None:
                continue
            seconds = email.utils.mktime_tz(parsed) - now
        if seconds == seconds:
            return max(0.0, seconds)
    return None


def backoff(attempt: int, jitter: float) -> float:
    """Seconds before the next attempt: 0.5, 1, 2, … up to 30, less up to a half so that callers come back one by one.

    Args:
        attempt: attempts made so far, from 1.
        jitter: from 0 to 1.
    """
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (attempt - 1)) * (1 - jitter / 2)


def reached(error: Exception) -> bool:
    """Whether a question got as far as the server before the connection was lost."""
    return type(error.__cause__).__name__ not in _NOT_SENT


class Retries:
    """Runs a call up to ``attempts`` times; waits end at once when ``stop`` is called."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self._stopped = threading.Event()
        # Spreads the waits only; no result depends on it.
        self._random = random.Random()  # noqa: S311

    def stop(self) -> None:
        """Make every wait end and every later retry fail."""
        self._stopped.set()

    def run(self, call: Callable[[], Result], on_lost: OnLost = send_again) -> Result:
        """Call, and call again where the server is busy, failing or away; not where it is slow.

        Args:
            call: sends the question.
            on_lost: told of each attempt that was sent and ends in a timeout, a lost connection or HTTP 502, 503 or 504; where it
                says no, that attempt is the last.

        Raises:
            openai.APIError: the last attempt's error, or the first that no repetition can mend.
            NoAnswerError: the server asked for a longer wait than ten minutes, or the run is being stopped.
        """
        import openai

        for attempt in range(1, self.attempts + 1):
            try:
                return call()
            except openai.APIStatusError as error:
                again = error.status_code not in _GATEWAY or on_lost()
                if not again or not _worth_repeating(error) or attempt == self.attempts:
                    raise
                asked = retry_after(error.response.headers, time.time())
            except openai.APIConnectionError as error:
                again = not reached(error) or on_lost()
                if reached(error) and isinstance(error, openai.APITimeoutError):
                    raise  # the server may still be answering, and would bill each question that is sent again
                if not again or attempt == self.attempts:
                    raise
                asked = None
            if asked is not None and asked > _LONGEST_RETRY_AFTER_S:
                raise NoAnswerError("asked-to-wait", f"the server asked to wait {asked:.0f} s") from None
            # A little is added to what was asked for, so that all callers do not come back in the same moment.
            spread = self._random.random()
            if self._stopped.wait(backoff(attempt, spread) if asked is None else asked + 0.1 * spread):
                raise NoAnswerError("stopped", "the run was stopped while waiting") from None
        raise AssertionError("the last attempt returns or raises")


def _worth_repeating(error: object) -> bool:
    status = getattr(error, "status_code", 0)
    if getattr(error, "code", None) == "insufficient_quota":
        return False
    return status in BUSY or status >= 500
