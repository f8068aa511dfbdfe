"""Reports on finished runs: one HTML page, or the record replayed to W&B or TensorBoard."""
