"""How far each stream is: what a checkpoint keeps of the data, valid for any number of ranks and workers."""

from collections import deque
from typing import Any

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.streams.token_stream import StreamState

# A trainer asks for the state at the step that it has just finished, after at most the next step's first micro-batches
# were fetched.
_STEPS_KEPT = 3


class StreamPositions:
    """The states of all streams at the beginning of each of the last few steps.

    Args:
        sources: how many there are; each stream has one state for each. streams: over all ranks.
    """

    def __init__(self, sources: int, streams: int) -> None:
        self.sources = sources
        self.streams = streams
        self._now = {(stream, source): StreamState() for stream in range(streams) for source in range(sources)}
        self._at: deque[tuple[int, dict[tuple[int, int], StreamState]]] = deque(maxlen=_STEPS_KEPT)
        self.begin(0)

    def begin(self, step: int) -> None:
        """Note that the next window is the first one of `step`."""
        self._at.append((step, dict(self._now)))

    def move(self, stream: int, source: int, state: StreamState) -> None:
        """Note that a window was taken from `source` in `stream`, which left it at `state`."""
        self._now[stream, source] = state

    def now(self, stream: int, source: int) -> StreamState:
        """The state after the last window taken."""
        return self._now[stream, source]

    def at(self, step: int, streams: range) -> dict[int, list[list[Any]]]:
        """The states of `streams` at the beginning of `step`, by stream and then source, as plain values.

        Raises:
            DataError: that step was not the last one fetched, nor one of the few before it.
        """
        for known, states in self._at:
            if known == step:
                return {
                    stream: [states[stream, source].plain() for source in range(self.sources)] for stream in streams
                }
        raise DataError(f"the position of the data at step {step} is not known (only at {[at for at, _ in self._at]}).")

    def restore(self, step: int, states: dict[int, list[list[Any]]]) -> None:
        """Go back to what `at` gave for all streams, by one rank or by several together.

        Raises:
            DataError: other streams or sources than these.
        """
        found = {
            (stream, source): StreamState.from_plain(state)
            for stream, of_sources in states.items()
            for source, state in enumerate(of_sources)
        }
        if found.keys() != self._now.keys():
            raise DataError(
                f"the saved position is that of {counted(len(states), 'stream')}, and the recipe sets "
                f"{counted(self.streams, 'stream')} of {counted(self.sources, 'source')}. Use the recipe that it "
                "was saved with."
            )
        self._now = found
        self._at.clear()
        self.begin(step)
