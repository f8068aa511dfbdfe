"""``trainer.profile``: torch.profiler traces of a few steps, one file per rank, for https://ui.perfetto.dev."""

from __future__ import annotations

import logging
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from prnn.config import PROFILE
from prnn.training.distributed import World
from prnn.training.observe.activity import Activity
from prnn.training.run_files import TRACES

_log = logging.getLogger(__name__)


class Tracer:
    """Profiles the steps selected by ``setting`` (``START+STEPS``, with ``+memory`` or ``+stacks``; None: none).

    Validations and checkpoints between these steps are profiled too. Profiled steps take longer.
    """

    def __init__(self, setting: str | None, run_dir: Path, world: World, activity: Activity) -> None:
        match = PROFILE.fullmatch(setting or "")
        # The first step to profile; 0: none.
        self.start, steps = (int(match[1]), int(match[2])) if match else (0, 0)
        self._last = self.start + steps - 1
        self._options = match[3].split("+")[1:] if match else []
        self._folder, self._world, self._activity = run_dir / TRACES, world, activity
        self._profile: profile | None = None
        self._step = 0  # the last profiled step

    def before(self, step: int) -> None:
        """Start the profiler if ``step``, which comes next, is the first to profile."""
        if step != self.start:
            return
        activities = [ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        memory, stacks = ("memory" in self._options), ("stacks" in self._options)
        self._profile = profile(activities=activities, profile_memory=memory, with_stack=stacks, acc_events=True)
        self._profile.start()
        self._activity.trace(True)

    def after(self, step: int) -> None:
        """Write the trace if ``step``, just completed, is the last to profile."""
        self._step = step
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Stop the profiler and write its trace, if it is running: training may end before the last step."""
        recorded, self._profile = self._profile, None
        if recorded is None:
            return
        self._activity.trace(False)
        recorded.stop()
        self._activity.enter("trace")
        path = self._folder / f"rank_{self._world.rank}_steps_{self.start}-{self._step}.json.gz"
        try:
            self._folder.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(path))
        except OSError as error:
            _log.warning("%s cannot be written (%s); training goes on", path, error.strerror)
            return
        if self._world.is_main:
            what = f"trace of steps {self.start}-{self._step}"
            _log.info("%s, one file per rank: %s (open them in ui.perfetto.dev)", what, self._folder)
