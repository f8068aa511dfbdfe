"""Sweeps that learn: trials of ``prnn-train`` whose settings Optuna proposes. Does not import torch."""
