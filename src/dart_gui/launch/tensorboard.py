"""A sink that follows ``metrics.jsonl`` and writes TensorBoard events, without torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as EventProto
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from dart_gui.files import writing
from dart_gui.launch.progress import Event, Progress, number

_ENVELOPE = frozenset({"at", "train_step", "elapsed_s"})


def scalars(event: Event, progress: Progress) -> Iterator[tuple[str, float, int]]:
    """(tag, value, step) of one event. ``progress`` has folded it already.

    Steps are train steps for the trainer and evaluations, numbers of episodes for the rest.
    """
    match event.get("event"):
        case "alarm":
            subject = str(event.get("subject") or "").replace(" ", "_")
            tag = "/".join(filter(None, ["alarms", str(event.get("alarm")), subject]))
            yield tag, float(event.get("state") == "raised"), progress.train_step
        case "train_step":
            for key in sorted(set(event) - _ENVELOPE):
                if (value := number(event, key)) is not None:
                    yield f"train/{key}", value, progress.train_step
        case "episode":
            if progress.success_rate is not None:
                yield "episodes/success_rate", progress.success_rate, progress.num_episodes
            for key in ("reward", "num_steps", "wall_s"):
                if (value := number(event, key)) is not None:
                    yield f"episodes/{key}", value, progress.num_episodes
        case "runner":
            for key in sorted(set(event) - _ENVELOPE):
                if (value := number(event, key)) is not None:
                    yield f"runner/{key}", value, progress.num_episodes
        case "eval":
            value = number(event, "success_rate")
            temperature = number(event, "temperature")
            if value is not None:
                tag = f"eval/{event.get('phase')}_temperature_{temperature:g}"
                yield tag, value, int(number(event, "train_step") or 0)


class TensorBoardSink:
    """Feed it each event once, in order. A resumed run writes a further event file."""

    def __init__(self, directory: Path) -> None:
        # Not TensorBoard's own EventFileWriter: its thread dies of a full disk with a stack trace.
        path = directory / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}.dart-gui"
        with writing(f"the TensorBoard events {path}"):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        self._add(EventProto(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, events: Sequence[Event], progress: Progress) -> None:
        for event in events:
            at = number(event, "at") or 0.0
            for tag, value, step in scalars(event, progress):
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                self._add(EventProto(wall_time=at, step=step, summary=summary))
        self.flush()

    def _add(self, event: EventProto) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Raises ``OSError`` where the disk is full, as ``write`` does."""
        self._file.flush()

    def abandon(self) -> None:
        """Give up after an error: what is not on the disk yet is lost."""
        self._file.raw.close()

    def close(self) -> None:
        self._file.close()
