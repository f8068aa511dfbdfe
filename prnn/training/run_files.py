"""The names of a run's files, relative to its directory."""

METRICS, SAMPLES, SUMMARY = "metrics.jsonl", "samples.txt", "summary.json"
LOG = "train.log"
CHECKPOINTS = "checkpoints"
HEARTBEAT, HANG = "heartbeat", "hang"  # folders with a file for each rank
TRACES = "profile"  # the folder of the profiler's traces
BEAT = f"{HEARTBEAT}/rank_0.json"
NOTES, NOTE, LOCK = ".hydra", "job.json", ".lock"  # NOTES is a folder, as Hydra calls it
CONFIG, OVERRIDES = f"{NOTES}/config.yaml", f"{NOTES}/overrides.yaml"
SWEEP_NOTE = "multirun.yaml"  # Hydra's, in the directory of a sweep
TRIAL_LOG = "trial.log"  # prnn-tune's, in the directory of a trial
