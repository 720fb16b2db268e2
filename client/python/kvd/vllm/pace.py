"""How fast the engine computes prompts: what a hit has to beat."""

from collections import deque

import kvd

#: Steps with fewer tokens are decoding, whose pace says nothing about prompts.
TOKENS_MIN = 256
#: A step counts for so much of what is known.
WEIGHT = 0.25
#: A change that is worth telling.
CHANGE = 0.1
#: Steps that a GPU has not ended are few: vLLM begins one while it computes another.
STEPS_MAX = 8


class Pace:
    """Tokens per second of prompts, from the steps of a worker, by the clock of what computes them."""

    def __init__(self) -> None:
        self._begun: tuple[int, kvd.Mark] | None = None
        self._steps: deque[tuple[int, kvd.Mark, kvd.Mark]] = deque(maxlen=STEPS_MAX)
        self._rate = 0.0
        self._told = 0.0

    def begin(self, tokens: int, mark: kvd.Mark) -> None:
        """A step begins that computes so many tokens."""
        self._begun = (tokens, mark)

    def end(self, mark: kvd.Mark) -> None:
        """All of the step is before this mark."""
        if self._begun is not None:
            self._steps.append((*self._begun, mark))
        self._begun = None

    def news(self) -> float | None:
        """The pace, where it is another than what was told last."""
        try:
            while self._steps and self._steps[0][2].is_reached:
                tokens, begun, ended = self._steps.popleft()
                if (seconds := ended.since(begun)) is not None:
                    self._note(tokens / max(seconds, 1e-6))
        except kvd.KvdError:
            # What fails on the GPU is told by whoever moves blocks there.
            self._steps.clear()
        if abs(self._rate - self._told) <= CHANGE * self._told:
            return None
        self._told = self._rate
        return self._rate

    def _note(self, rate: float) -> None:
        # The first step of an engine is slower than any other: the fastest counts until there are more.
        self._rate = rate if rate > self._rate else self._rate + WEIGHT * (rate - self._rate)
