"""Stands in for ``prnn.train``: writes a record of ten validations, whose losses depend on ``optimizer.lr``."""

import json
import signal
import sys
import time
from pathlib import Path

settings = dict(word.partition("=")[::2] for word in sys.argv[1:])
lr, run_dir = float(settings["optimizer.lr"]), Path(settings["run_dir"])
if lr > 100:
    print("prnn: optimizer.lr must be smaller.")
    sys.exit(2)
if lr > 70:
    raise RuntimeError("unforeseen")
if lr > 50:
    print("Traceback ...\nprnn: the loss diverged.")
    sys.exit(1)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with (run_dir / "metrics.jsonl").open("a") as record:
    for step in range(1, 11):
        for kind in ("train", "val"):
            entry = {"kind": kind, "step": step, "loss": lr + 1 / step, "share": step / 10, "figures": {}}
            record.write(json.dumps(entry) + "\n")
        record.flush()
        time.sleep(float(settings.get("+pace", 0)))
        if settings.get("+slow") and step == 3:
            (run_dir / "waits").touch()
            while not stopped:
                time.sleep(0.01)
        if stopped:
            (run_dir / "stopped").touch()
            sys.exit(143)
