"""A daemon that does not answer in time is not asked by every request: each would wait for its deadline."""

import time

#: For so long it is left alone.
PAUSE = 1.0


class Patience:
    """Ends with a call that took too long, and comes back by itself."""

    def __init__(self) -> None:
        self._until = float("-inf")

    def is_over(self) -> bool:
        return time.monotonic() < self._until

    def note(self, reason: str | None) -> None:
        """What a call ended with."""
        if reason == "timeout":
            self._until = time.monotonic() + PAUSE
