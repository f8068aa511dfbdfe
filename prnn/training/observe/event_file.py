"""TensorBoard event files, written synchronously by the training thread.

tensorboard's EventFileWriter writes from a background thread. At the first error that thread prints a traceback and
exits with a partial event in the file, and readers ignore everything after it. Here tensorboard's RecordWriter only
frames the events, and events that a full disk rejects are kept and retried.
"""

from __future__ import annotations

import errno
import io
import itertools
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class EventFile:
    """A new event file in ``folder``; ``purge_step`` makes readers drop earlier files' events from that step on.

    Raises ``ImportError`` if tensorboard is not installed, and ``OSError``.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._frame = Event, RecordWriter
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"  # sortable
        self._path = next(path for i in itertools.count() if not (path := folder / f"{stem}.{i}").exists())
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._size, self._pending, self._delayed = 0, b"", False
        self.add(file_version="brain.Event:2")
        if purge_step is not None:
            self.add(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add(self, **fields: Any) -> None:
        """Buffer one event with these fields of tensorboard's ``Event``; ``flush`` writes it."""
        framed = io.BytesIO()
        self._frame(framed).write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._pending += framed.getvalue()

    def flush(self) -> None:
        """Write the buffered events; those that cannot be written stay buffered, with one warning.

        Raises ``FileNotFoundError`` if the file was deleted.
        """
        if os.fstat(self._handle).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "it was deleted", str(self._path))
        try:
            while self._pending:
                written = os.pwrite(self._handle, self._pending, self._size)
                self._size, self._pending = self._size + written, self._pending[written:]
            self._delayed = False
        except OSError as error:
            if not self._delayed:
                _log.warning("%s cannot be written (%s); trying again at the next record", self._path, error.strerror)
            self._delayed = True

    def close(self) -> None:
        """Write the remaining events, if possible, and close the file."""
        try:
            self.flush()
        finally:
            os.close(self._handle)
        if self._pending:
            _log.warning(
                "the last events of %s could not be written: metrics.jsonl has them, for prnn-report to=tensorboard "
                "once this folder is removed",
                self._path,
            )
