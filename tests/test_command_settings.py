"""The settings of commands of a single process, as KEY=VALUE."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from prnn import command_settings
from prnn.command_settings import setting
from prnn.errors import UserError


@dataclass
class Settings:
    name: str = setting("", "a name")
    text: str | None = setting(None, "a text", escapes=True)
    form: str = setting("a", "a form", ("a", "b", "c"))
    count: int = setting(3, "a count")
    limit: int | None = setting(None, "a limit")
    ratio: float = setting(0.5, "a ratio")
    check: bool = setting(True, "a check")
    run: list[str] = setting([], "runs")  # noqa: RUF009


def parse(*arguments):
    return command_settings.parse(Settings, arguments, "prnn-x", "count=2")


def test_values_have_the_types_of_their_fields():
    found = parse(
        r"name=a\nb",
        r"text=a\nb\\n\x",
        "form=b",
        "count=1e3",
        "limit=-2",
        "ratio=1e-3",
        "check=off",
        "run=x",
        "run=y=z",
    )
    assert found == Settings(r"a\nb", "a\nb\\n\\x", "b", 1000, -2, 0.001, False, ["x", "y=z"])
    assert type(found.count) is int
    assert parse("limit=null") == Settings() and parse("text=null").text == "null"
    assert command_settings.changed(found, ["name", "check"]) == r"name=a\nb"
    assert command_settings.changed(found, ["check", "count"]) == "check=false"
    assert command_settings.changed(Settings(), ["check", "count"]) is None


@pytest.mark.parametrize(
    "argument, sentence",
    [
        ("count=1.5", "count=1.5 must be an integer."),
        ("count=inf", "count=inf must be an integer."),
        ("count=", "count= must be an integer."),
        ("limit=x", "limit=x must be an integer or null."),
        ("ratio=x", "ratio=x must be a number."),
        ("check=maybe", "check=maybe must be true or false."),
        ("form=d", "form=d must be one of a, b, c."),
        ("cuont=2", "cuont is not a setting of prnn-x; did you mean count?"),
        ("count", "'count' is not KEY=VALUE, such as count=2; --help lists the settings."),
        ("--count=2", "'--count=2': settings are written without dashes, as KEY=VALUE, such as count=2."),
    ],
)
def test_a_wrong_argument_is_one_sentence(argument, sentence):
    with pytest.raises(UserError) as raised:
        parse(argument)
    assert str(raised.value) == sentence


def test_a_setting_given_twice():
    with pytest.raises(UserError, match="count is given twice: only run may be given more than once"):
        parse("count=1", "count=1")


def test_the_help_has_a_line_for_each():
    text = command_settings.help_text("What it does.", Settings, "A note.")
    assert text.splitlines()[:4] == ["What it does.", "", "Settings (KEY=VALUE):", "  name   a name"]
    assert "  count  a count [3]" in text and "  check  a check [true]" in text and text.endswith("\nA note.")
