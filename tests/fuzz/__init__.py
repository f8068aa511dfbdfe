"""Fuzzing: hostile records, checkpoints and command lines, operator calls and cells, from a seed.

Each target is a module ``tests/fuzz/NAME.py`` with

    TRIALS                    how many trials the tests run: about twenty seconds of them
    trial(rng, folder)        one trial in an empty folder, drawn from ``rng``; raises AssertionError for a fault

A trial is a function of its seed alone: ``python -m tests.fuzz NAME --seed N --trials 1`` repeats trial N.
"""
