"""The one exception a person is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's, told in one sentence: what was given, what is expected, which setting.

    Every command catches it, prints the sentence without a traceback, and exits with status 2.
    """
