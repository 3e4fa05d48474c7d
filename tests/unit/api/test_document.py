"""Reading of parameters: size, depth and form are bounded before anything looks at the meaning."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from nri_dranet.api.document import MAX_BYTES, MAX_DEPTH, read_document


def messages(parameters: Any) -> list[str]:
    """Return the problems of parameters as text."""
    return [str(error) for error in read_document(parameters)[1]]


@pytest.mark.parametrize("empty", [None, {}, "", "  \n", b"", "null", "{}", bytearray(b"{}")])
def test_nothing_is_an_empty_document(empty: Any) -> None:
    """Absent, null and empty parameters are an empty document."""
    assert read_document(empty) == ({}, [])


def test_null_members_are_absent() -> None:
    """A member that is null is left out at any level; one of a list stays, for the schema to refuse."""
    assert read_document({"a": None, "b": {"c": None, "d": 1}, "e": [None]}) == ({"b": {"d": 1}, "e": [None]}, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be JSON"),
        ("{'a': 1}", "must be JSON"),
        ('{"a": 1,}', "must be JSON"),
        ("[1]", "must be an object"),
        ("nul", "must be JSON"),
        (b"\xff\xfe", "must be UTF-8 text"),
        ('"\ud800"', "must be UTF-8 text"),
        (b'{"a": "\xc3"}', "must be UTF-8 text"),
    ],
)
def test_no_json_is_refused_in_words(text: str | bytes, words: str) -> None:
    """A text that is no JSON object gives one problem that says so."""
    (message,) = messages(text)
    assert words in message


@pytest.mark.parametrize(
    "nested",
    [
        "[" * 5000 + "]" * 5000,
        '{"a":' * 1600 + "1" + "}" * 1600,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        '"\\"[[[[" ' + "[" * 30,
    ],
)
def test_deep_nesting_is_refused_before_parsing(nested: str) -> None:
    """A text with more levels than the limit is refused without a recursive parser seeing it."""
    (message,) = messages(nested)
    assert f"at most {MAX_DEPTH} levels" in message


def test_brackets_within_text_are_no_nesting() -> None:
    """Brackets, quotes and backslashes inside of texts count for nothing."""
    document = {"a": "[{" * 100, "b": '"[[[\\', "c": ["\\"]}
    assert read_document(json.dumps(document)) == (document, [])


def test_deep_decoded_data_is_refused() -> None:
    """Decoded data that is nested too deeply is refused, where text would be."""
    data: Any = {}
    for _ in range(3000):
        data = {"a": data}
    (message,) = messages(data)
    assert f"at most {MAX_DEPTH} levels" in message


@pytest.mark.parametrize(
    "large",
    [
        "x" * (MAX_BYTES + 1),
        "é" * (MAX_BYTES // 2 + 1),
        b" " * (MAX_BYTES + 1),
        {"a": "x" * MAX_BYTES},
        {"a": [[0] * 1000] * 11},
        {"x" * MAX_BYTES: 1},
    ],
)
def test_large_documents_are_refused(large: Any) -> None:
    """A document beyond the limit gives one problem that names the limit, and no data."""
    data, errors = read_document(large)
    assert data == {}
    (error,) = errors
    assert str(error).startswith("configuration: must have at most 10240 bytes")


def test_a_document_at_the_limit_is_read() -> None:
    """What the API server lets through is read."""
    text = json.dumps({"profile": "x" * (MAX_BYTES - 15)})
    assert len(text) == MAX_BYTES
    assert read_document(text)[1] == []


def test_repeated_members_are_named_once_each() -> None:
    """Each member that is given more than once is named with its path, however often it is repeated."""
    text = '{"a": {"b": 1, "b": 2, "b": 3, "c": 1}, "d": 1, "d": null}'
    assert messages(text) == ["d: null: must be given once", "a.b: 3: must be given once"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 41, "-" + "9" * 5000])
def test_numbers_beyond_all_bounds_are_refused(number: str) -> None:
    """Numbers that no field could hold are refused by path, without arithmetic on them."""
    (message,) = messages(f'{{"a": [1, {number}]}}')
    assert message.startswith("a[1]: must be a number that fits a field")


@pytest.mark.parametrize(
    ("data", "start"),
    [
        ({"a": math.nan}, "a: must be a number"),
        ({"a": "\ud800"}, 'a: "\\ud800": must be valid Unicode'),
        ({"a": {"\udfff": 1}}, 'a: "\\udfff": must have valid Unicode as the name'),
        ({"a": {7: 1}}, "a: 7: must have text as the name"),
        ({"a": b"x"}, "a: a bytes: must be JSON"),
        ({"a": {1, 2}}, "a: a set: must be JSON"),
    ],
)
def test_what_is_no_json_data_is_refused(data: Any, start: str) -> None:
    """Decoded data that JSON could not hold is refused by path."""
    (message,) = messages(data)
    assert message.startswith(start)


def test_long_lists_and_objects_are_refused_by_path() -> None:
    """A list or an object with more entries than any field takes is refused before they are looked at."""
    assert messages({"a": {"b": [None] * 5000}}) == ["a.b: […]: must have at most 1024 entries, has 5000"]
    assert messages({str(i): 0 for i in range(1025)}) == [
        "configuration: {…}: must have at most 1024 entries, has 1025"
    ]


def test_problems_of_form_are_bounded() -> None:
    """A document of nothing but repeats or infinities does not give a message for each."""
    assert len(messages({str(i): math.inf for i in range(500)})) <= 51
