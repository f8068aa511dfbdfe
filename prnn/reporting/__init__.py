"""What runs left behind, for people: one HTML page, and what W&B and TensorBoard are given afterwards."""
