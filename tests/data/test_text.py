import json
import sys
import unicodedata

import numpy as np
import pytest

from prnn.data.text import ByteVocabulary, CharVocabulary, Vocabulary, WordVocabulary, from_state, split_words
from prnn.errors import UserError

PROSE = """ROMEO:
O, she doth teach the torches to burn bright!
'Tis o'er--it hangs (upon the cheek), "a rich jewel," she said.

JULIET:
Good-night... I'll prove more true; the players' coats: ay.
"""


def word_vocabulary(text: str) -> WordVocabulary:
    return WordVocabulary(["<unk>", *sorted(set(split_words(text)))])


@pytest.mark.parametrize(
    "vocabulary, text",
    [
        (CharVocabulary("\n !ROabeé€😀"), "aé€\n😀 RO!"),
        (ByteVocabulary(), "aé€\n😀 RO!"),
        (word_vocabulary(PROSE), PROSE),
    ],
)
def test_text_survives_a_round_trip_also_through_the_saved_state(vocabulary: Vocabulary, text: str) -> None:
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    restored = from_state(json.loads(json.dumps(vocabulary.state_dict())))
    assert len(restored) == len(vocabulary) and restored.level == vocabulary.level
    np.testing.assert_array_equal(restored.encode(text), tokens)
    assert restored.decode(tokens) == text


@pytest.mark.parametrize(
    "text, words",
    [
        ("¿Qué dijo «ése»? ¡Sí, señor!", 12),
        ("«Hola», dijo (á Juan): «¡adiós!».", 16),
        ("Il a dit : « Bonjour, l’ami ! » et partit.", 13),
        ("Il a dit\u202f: «\xa0Qui\u202f? ‹\xa0moi\xa0›\xa0». Bon.", 14),
        ("Er sagte: „Er hat ‚Ja‘ gesagt“, und „Nein“.", 17),
        ("»Guten Tag«, sagte er.\n»Ja.«", 13),
        (unicodedata.normalize("NFD", "Él comió jamón, señor: ¿qué?"), 9),
        ("मैं हिन्दी में बोलता हूँ। क्या आप समझते हैं?", 11),
        ("نمی\u200cخواهم ۳٫۱۴ است.", 4),
        ("İstanbul".lower(), 1),
        ("I ❤\ufe0f you.", 4),
        ("Of 3.14, 1,000 or 1.000,50 at 3:16; in 1914–18, -5 (+1/2).", 17),
        ("By 7. Then 8, 9: 50 % or 50%.", 14),
        ("v1.2.3-rc1", 1),
        ('He "says" and "does" so: "he\nnever "read" it.', 19),
        ("as in hello ; world !", 6),
    ],
)
def test_other_languages_and_numbers_survive_a_round_trip(text: str, words: int) -> None:
    vocabulary = word_vocabulary(text)
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text and len(tokens) == words and 0 not in tokens


def test_a_word_holds_whatever_mark_stands_on_its_letters() -> None:
    marks = [chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)).startswith("M")]
    assert len(marks) > 2000 and split_words(" ".join(f"a{mark}b" for mark in marks)) == [f"a{m}b" for m in marks]


def test_a_mark_spaced_otherwise_than_in_the_vocabulary_is_known() -> None:
    vocabulary = word_vocabulary("« oui ! »")
    assert vocabulary.decode(vocabulary.encode("«oui\xa0!»")) == "« oui ! »"
    vocabulary = word_vocabulary("«oui!» ou « non » ?")
    assert vocabulary.decode(vocabulary.encode("«oui !» ou « non »?")) == "«oui!» ou « non » ?"
    assert word_vocabulary("a").encode("« a »").tolist() == [0, 1, 0]


def test_words_told_apart_by_other_rules_are_refused() -> None:
    state = word_vocabulary("a b").state_dict()
    old = {key: value for key, value in state.items() if key != "rules"}
    for other in (old, {**state, "rules": state["rules"] + 1}):
        with pytest.raises(
            UserError, match="the checkpoint's vocabulary was built with the word rules of another version"
        ):
            from_state(other)


@pytest.mark.parametrize("size, dtype", [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.int32)])
def test_tokens_take_the_smallest_type_that_holds_them(size: int, dtype: type) -> None:
    vocabulary = WordVocabulary([str(i) for i in range(size)])
    assert vocabulary.dtype == dtype
    assert vocabulary.encode(str(size - 1)).tolist() == [size - 1]


@pytest.mark.parametrize("text, position", [("abxa", 2), ("é", 0), ("ab\udcff", 2)])
def test_an_unknown_character_is_named(text: str, position: int) -> None:
    with pytest.raises(UserError, match=rf"the prompt holds the character .*position {position}\)"):
        CharVocabulary("ab").encode(text, "the prompt")


def test_an_unknown_word_is_unk() -> None:
    vocabulary = WordVocabulary(["<unk>", "a", "b"])
    assert vocabulary.encode("a zebra b").tolist() == [1, 0, 2]
    assert vocabulary.decode([1, 0, 2]) == "a <unk> b"


def test_bytes_of_one_character_come_out_together() -> None:
    decoder = ByteVocabulary().decoder()
    assert [decoder.push(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert decoder.push("é".encode()[0]) == "" and decoder.flush() == "\ufffd"


def test_start_is_a_new_line_where_there_is_one() -> None:
    assert CharVocabulary(" \nab").start == 1 and CharVocabulary("ab").start == 0
    assert ByteVocabulary().start == 10
    assert WordVocabulary(["<unk>", "a", "\n"]).start == 2


def test_half_a_character_is_no_byte() -> None:
    with pytest.raises(UserError, match=r"the prompt contains a lone surrogate \(U\+D800, position 1\)"):
        ByteVocabulary().encode("a\ud800", "the prompt")
    assert list(ByteVocabulary().encode("a\udcff")) == [ord("a"), 255]
