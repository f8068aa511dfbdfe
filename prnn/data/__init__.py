"""Data as numpy arrays: knows no torch, and no task."""
