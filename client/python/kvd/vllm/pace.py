"""How fast the engine computes prompts: what a hit has to beat."""

import time

#: Steps with fewer tokens are decoding, whose pace says nothing about prompts.
TOKENS_MIN = 256
#: A step counts for so much of what is known.
WEIGHT = 0.25
#: A change that is worth telling.
CHANGE = 0.1


class Pace:
    """Tokens per second of prompts, from the steps of a worker whose forward pass is over when vLLM says so (on CPUs)."""

    def __init__(self) -> None:
        self._begun: tuple[int, float] | None = None
        self._rate = 0.0
        self._told = 0.0

    def begin(self, tokens: int) -> None:
        """A step begins that computes so many tokens."""
        self._begun = (tokens, time.perf_counter()) if tokens >= TOKENS_MIN else None

    def end(self) -> float | None:
        """The step is over. The pace, where it is another than what was told last."""
        if self._begun is None:
            return None
        tokens, begun = self._begun
        self._begun = None
        rate = tokens / max(time.perf_counter() - begun, 1e-6)
        # The first step of an engine is slower than any other: the fastest counts until there are more.
        self._rate = rate if rate > self._rate else self._rate + WEIGHT * (rate - self._rate)
        if abs(self._rate - self._told) <= CHANGE * self._told:
            return None
        self._told = self._rate
        return self._rate
