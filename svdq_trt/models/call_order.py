"""Which calls of a denoiser follow each other from step to step, for a runner that compares them."""

from __future__ import annotations

_MOST_CALLS = 4  # of one step; more is another picture of the same step


class CallOrder:
    """The calls of one picture at a time.

    Guidance may call a denoiser twice a step, in contexts that the pipeline names or one after the other. The n-th
    calls of a context at each timestep follow each other. Timesteps run one way: a turn back begins another picture.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}  # by context: timestep, calls at it before this one
        self._rises: bool | None = None

    def restart(self) -> None:
        """Begin a picture."""
        self._last, self._rises = {}, None

    def next(self, context: str, timestep: float) -> tuple[int, bool]:
        """Count a call.

        Returns:
            how many calls of its context were at its timestep; whether it is the first of another picture.
        """
        last, calls = self._last.get(context, (timestep, -1))
        rises, other = timestep > last, False
        if timestep != last:
            other = self._rises is not None and rises != self._rises
            calls, self._rises = 0, rises
        elif calls + 1 < _MOST_CALLS:
            calls += 1
        else:
            calls, other = 0, True
        if other:
            self.restart()
        self._last[context] = timestep, calls
        return calls, other
