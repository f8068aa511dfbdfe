"""The names of a run's files; docs/observability.md says what is in them."""

METRICS, SAMPLES, SUMMARY = "metrics.jsonl", "samples.txt", "summary.json"
LOG = "train.log"
CHECKPOINTS = "checkpoints"
HEARTBEAT, HANG = "heartbeat", "hang"  # folders with a file for each rank
TRACES = "profile"  # the folder of the profiler's traces
NOTES, NOTE, LOCK = ".hydra", "job.json", ".lock"  # NOTES is Hydra's folder: config.yaml, overrides.yaml
SWEEP_NOTE = "multirun.yaml"  # Hydra's, in the directory of a sweep
TRIAL_LOG = "trial.log"  # prnn-tune's, in the directory of a trial
