"""What users have put into an object never keeps the object from being read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.api.document import MAX_DEPTH as DOCUMENT_DEPTH
from nri_dranet.api.document import keep_repeated
from nri_dranet.api.errors import ConfigError
from nri_dranet.api.resolve import ConfigSource, resolve
from nri_dranet.kube.decode import MAX_DEPTH, decode, flattened
from nri_dranet.kube.lists import decode_list

NESTED = "[" * 1600 + "]" * 1600
DIGITS = "9" * 5000


def claim(parameters: str) -> str:
    """Return the text of a claim with these parameters."""
    return '{"metadata": {"name": "c"}, "status": {"allocation": {"parameters": ' + parameters + "}}}"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ('{"interface": ' + NESTED + "}", f"at most {DOCUMENT_DEPTH} levels"),
        ('{"interface": ' + '{"a":' * 1500 + "1" + "}" * 1501, f"at most {DOCUMENT_DEPTH} levels"),
        ('{"interface": {"mtu": ' + DIGITS + "}}", "beyond all bounds"),
        ('{"interface": {"mtu": 1500, "mtu": 1400}}', "must be given once"),
    ],
)
def test_parameters_that_no_parser_takes_are_refused_in_words(parameters: str, said: str) -> None:
    """The claim can be read, alone and in a list, and its parameters say what is wrong with them."""
    one = decode(claim(parameters), keep_repeated)
    version, (other,) = decode_list(
        '{"metadata": {"resourceVersion": "7"}, "items": [' + claim(parameters) + "]}", dict, keep_repeated
    )
    assert version == "7"
    for found in (one, other):
        assert found["metadata"]["name"] == "c"
        with pytest.raises(ConfigError, match=said):
            resolve([ConfigSource("claim", found["status"]["allocation"]["parameters"])])


def test_what_is_no_json_is_an_error() -> None:
    """Deep or not."""
    for text in ("", "{", "[" * 9000, '{"a": ' + NESTED, NESTED + "]"):
        with pytest.raises(ValueError, match="line 1"):
            decode(text)


def test_brackets_in_texts_do_not_count() -> None:
    """Neither do escaped quotation marks before them."""
    inner = json.dumps({"a": '"[[[{{\\"' * 200, "b": [1, 2]})
    assert flattened(inner) == inner
    deep = "[" * (MAX_DEPTH - 1) + inner + "]" * (MAX_DEPTH - 1)
    assert json.loads(flattened(deep)) == json.loads("[" * (MAX_DEPTH - 1) + "{}" + "]" * (MAX_DEPTH - 1))


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=5) | st.integers(), lambda x: st.lists(x, max_size=3)))
def test_what_is_not_deep_is_kept(value: Any) -> None:
    """Nothing of an ordinary document is lost."""
    text = json.dumps(value)
    assert flattened(text) == text
    assert decode(text.encode()) == value


def test_a_number_that_fits_stays_a_number() -> None:
    """Beside one that does not."""
    assert decode(f"[12, {DIGITS}]") == [12, math.inf]
