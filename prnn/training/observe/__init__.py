"""Observability: metrics, console output, W&B and TensorBoard, profiling, and the watchdog."""
