"""Tests of ``prnn.export``."""
