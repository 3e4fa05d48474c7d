"""Text for the outside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.text import clean, within_bytes, within_characters

ANY = st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape"))


def test_what_is_no_utf8_is_replaced() -> None:
    """Names of the kernel may be any bytes; a user sees where something was."""
    assert clean(b"eth\xff".decode("utf-8", "surrogateescape")) == "eth\ufffd"
    assert clean("é") == "é"


def test_control_characters_are_replaced() -> None:
    """The API server takes none of them in a server-side apply; tab and line feed are escaped."""
    assert clean("a\x00\x1b[2J\x7f\x85\x9f\u2028\ufeff\uffff") == "a\ufffd\ufffd[2J" + "\ufffd" * 6
    assert clean("a\tb\nc") == "a\tb\nc"


def test_a_text_that_is_cut_says_so() -> None:
    """It ends in an ellipsis, at a whole character."""
    assert within_bytes("ééé", 6) == "ééé"
    assert within_bytes("éééé", 6) == "é…"
    assert within_characters("abcd", 4) == "abcd"
    assert within_characters("abcde", 4) == "abc…"


@given(text=ANY, limit=st.integers(3, 20))
def test_no_text_is_too_long(text: str, limit: int) -> None:
    """Whatever the name, the result is Unicode within the limit."""
    assert len(within_bytes(text, limit).encode()) <= limit
    assert len(within_characters(text, limit)) <= limit
