import json

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
