"""Third-party programs, with torch.nn's recurrent layers and with prnn's.

    pip install -c constraints.txt '.[programs]'
    python -m benchmarks.programs [--threads 2] [--rounds 9] [--out benchmarks/results/MACHINE] [--programs REGEX]

Each program is a package from PyPI with its own models, training steps and calls, on data made here: a file in this
folder. prnn comes in by one call: ``prnn.convert`` on the model that was built, or ``prnn.patch`` around a program that
constructs its model itself. A program runs in a process of its own.

Correctness first: from the same seed, the losses or outputs of the first three steps, and the gradient of the first,
are compared with torch.nn's. If they differ by more than TOLERANCE of the largest element, or if a layer is still
torch.nn's, the program reports that instead of a speed, and the run exits with status 1. A program that is not
installed is absent.

A ratio is torch.nn's time over prnn's in the same round, of a whole step: also of the program's other layers, its
optimizer and its Python. The result is the median over rounds (smallest, largest). Results go to OUT/programs.json,
which ``python -m benchmarks.report`` renders and ``python -m benchmarks.programs.picture`` draws.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable

from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from benchmarks.common.files import ROOT
from benchmarks.kernels.peers import OURS, REFERENCE
from benchmarks.programs.program import TOLERANCE, Record

# file of this folder -> what tables call it
PROGRAMS = {
    "captum_attribution": "Captum",
    "darts_rnn": "Darts RNNModel",
    "encodec_audio": "EnCodec",
    "flair_tagger": "Flair SequenceTagger",
    "gluonts_deepar": "GluonTS DeepAR",
    "neuralforecast_lstm": "NeuralForecast LSTM",
    "open_unmix": "Open-Unmix",
    "pytorch_forecasting_deepar": "PyTorch Forecasting DeepAR",
    "sb3_recurrent_ppo": "SB3 RecurrentPPO",
    "speechbrain_crdnn": "SpeechBrain CRDNN",
    "stanza_charlm": "Stanza language model",
    "torchrl_lstm": "TorchRL LSTMModule",
}


def run(names: Iterable[str], threads: int, rounds: int) -> list[Record]:
    """The record of each program; a line of each is printed."""
    records = []
    for name in names:
        record = {"name": PROGRAMS.get(name, name)} | in_process(name, threads, rounds)
        records.append(record)
        print(line(record), flush=True)
    return records


def in_process(name: str, threads: int, rounds: int) -> Record:
    """The record of one program; it is the last line that its process prints."""
    command = [sys.executable, "-m", "benchmarks.programs.program", name, f"--threads={threads}", f"--rounds={rounds}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing printed"])[-1]
        return {"disagreement": [f"its process ended with status {done.returncode}: {last}"]}
    return json.loads(done.stdout.splitlines()[-1])


def line(record: Record) -> str:
    name = f"{record['name']:28}"
    if "absent" in record:
        return f"{name}absent: {record['absent']}"
    if "disagreement" in record:
        return f"{name}WRONG, no speed: {'; '.join(record['disagreement'])}"
    took, ratio = record["milliseconds"], record["ratio"]
    times = f"{took[OURS]['median']:9.1f} ms, {REFERENCE} {took[REFERENCE]['median']:9.1f}"
    return f"{name}{times}, {ratio['median']:5.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}] by {record['by']}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=at_least(1), default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument("--programs", default="", help="a regular expression: run only these")
    parser.add_argument("--out", type=folder, help="folder for programs.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    print(f"{machine.processor()}, {options.threads} threads")
    stats.limit_threads(options.threads)  # what the record says; each process does the same
    records = run([name for name in PROGRAMS if re.search(options.programs, name)], options.threads, options.rounds)
    if options.out:
        head = {"benchmark": "programs", "machine": machine.describe(), "rounds": options.rounds}
        stats.write(options.out, "programs", head | {"tolerance": TOLERANCE, "cases": records})
    if any("disagreement" in record for record in records):
        sys.exit("a program's results differ from those with torch.nn: see above")


if __name__ == "__main__":
    main()
