"""TensorBoard event files, written by the thread that trains.

tensorboard's EventFileWriter hands events to a thread. At the first error that thread prints a traceback and ends, with
a part of an event in the file; nothing that is written afterwards is read again. Its RecordWriter frames the events
here, and what a full disk refuses is kept until it is taken.
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
    """A new file in ``folder``; with ``purge_step`` readers forget earlier files' events from that step on.

    Raises ``ImportError`` where tensorboard is not installed, and ``OSError``.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._frame = Event, RecordWriter
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"  # read in this order
        self._path = next(path for i in itertools.count() if not (path := folder / f"{stem}.{i}").exists())
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._size, self._pending, self._delayed = 0, b"", False
        self.add(file_version="brain.Event:2")
        if purge_step is not None:
            self.add(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add(self, **fields: Any) -> None:
        """One more event, of these fields of tensorboard's ``Event``; ``flush`` writes it."""
        framed = io.BytesIO()
        self._frame(framed).write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._pending += framed.getvalue()

    def flush(self) -> None:
        """Hand the events to the system; those that it does not take wait for the next call, with one warning.

        Raises ``FileNotFoundError`` where the file was deleted.
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
        """Write what is left, if it can be, and close the file."""
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
