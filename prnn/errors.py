"""The exceptions whose message is meant for the user."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's in one sentence: what was given, what is expected, which setting.

    Every command catches it, prints the sentence without a traceback, and exits with ``exit_status``.
    """

    exit_status = 2


class AgreedError(UserError):
    """An error that every process of the job raises at the same point; rank 0 alone reports it."""


def one_line(error: Exception) -> str:
    """The message on one line; the error's type name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
