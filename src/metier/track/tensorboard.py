"""TensorBoard's event files, by its own writer: `<out>/<recipe>/tensorboard/<step>/<key>/`.

A folder for each key keeps a changed setting apart from what it was before, so that TensorBoard shows both. Needs no
torch; values are kept as float32, as everywhere in TensorBoard.
"""

from collections.abc import Mapping
from pathlib import Path

from metier.core.errors import MissingExtra
from metier.track.tracker import Tracker

FLUSH_SECONDS = 1


class TensorBoard(Tracker):
    """Writes below `folder`/tensorboard. Raises MissingExtra where the package is not installed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise MissingExtra("tensorboard", "track", needed_by="--track tensorboard") from error
        self._folder = folder / "tensorboard"
        self._new_writer = EventFileWriter
        self.what = f"tensorboard --logdir {self._folder}"

    def begin(self, step: str, key: str) -> Mapping[str, int]:
        """Read where the curves ended; each start adds a file of its own."""
        folder = self._folder / step / key
        last = last_steps(folder)
        self._writer = self._new_writer(str(folder), flush_secs=FLUSH_SECONDS)
        return last

    def write(self, values: Mapping[str, float], *, at: int, time: float) -> None:
        """One scalar for each value."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.add_event(Event(wall_time=time, step=at, summary=summary))

    def end(self, *, failed: bool) -> None:  # noqa: ARG002 - an event file does not say how a step ended
        """Flush and close the file."""
        self._writer.close()


def last_steps(folder: Path) -> dict[str, int]:
    """The last optimizer step of each curve in a folder of event files, each read up to where a crash cut it off."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last: dict[str, int] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                last[value.tag] = max(last.get(value.tag, -1), event.step)
    return last
