"""Data as numpy arrays. Imports neither torch nor the tasks."""
