"""Lists are decoded item by item, to the same as at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nri_dranet.kube.client import ApiError, KubeClient
from nri_dranet.kube.lists import decode_list

if TYPE_CHECKING:
    from collections.abc import Callable

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    items=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=6),
    others=st.dictionaries(st.text().filter(lambda name: name not in ("items", "metadata")), values, max_size=4),
    version=st.text(),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    order=st.randoms(),
)
def test_a_list_is_decoded_as_json_is(  # noqa: PLR0917 - one example
    items: list[Any], others: dict[str, Any], version: str, indent: int | None, ascii_only: bool, order: Any
) -> None:
    """Whatever the members, their order, spaces and escapes."""
    members = [*others.items(), ("items", items), ("metadata", {"resourceVersion": version})]
    order.shuffle(members)
    text = json.dumps(dict(members), indent=indent, ensure_ascii=ascii_only)
    assert decode_list(text, dict) == (version, items)
    assert decode_list(f" {text}\n", lambda item: {"n": len(item)})[1] == [{"n": len(item)} for item in items]


@pytest.mark.parametrize("text", ["{}", '{"items": null}', '{"items": {}}', '{"metadata": 1, "items": [1, "x", null]}'])
def test_odd_lists_are_empty(text: str) -> None:
    """What has no objects in it has no items."""
    assert decode_list(text, dict) == ("", [])


@pytest.mark.parametrize(
    "text", ["", "[]", "<html>", "{", '{"items": [', '{"items": [{}', '{"items": [{} {}]}', '{"a" 1}']
)
def test_what_is_no_list_is_an_error(
    serve: Callable[..., Any], reply: Any, client_of: Callable[..., KubeClient], text: str
) -> None:
    """A broken answer is said to be one."""
    with pytest.raises(ValueError, match=r"\d|Expecting"):
        decode_list(text, dict)
    client = client_of(serve(lambda _: reply(200, text.encode())).url)
    with pytest.raises(ApiError, match="is no list"):
        client.items("/api/v1/pods")
