"""Text for the outside: Unicode whatever the kernel's names are made of, and no longer than a field may be. Pure."""

from __future__ import annotations

import re
from typing import Final

_ELLIPSIS: Final = "…"

# The API server reads server-side apply as YAML, which has no control characters and takes some others for line breaks
# (YAML 1.2, 5.1 and 5.4). Tab and line feed are escaped by JSON.
_UNWRITABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def clean(text: str) -> str:
    """Return a text as Unicode that can be shown. The kernel's names may be any bytes: what is no UTF-8 becomes U+FFFD.

    Control characters do so too.
    """
    return _UNWRITABLE.sub("\ufffd", text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def within_bytes(text: str, limit: int) -> str:
    """Return a clean text of at most so many bytes of UTF-8; one that is cut ends in an ellipsis."""
    data = clean(text).encode()
    if len(data) <= limit:
        return data.decode()
    return data[: limit - len(_ELLIPSIS.encode())].decode("utf-8", "ignore") + _ELLIPSIS


def within_characters(text: str, limit: int) -> str:
    """Return a clean text of at most so many characters; one that is cut ends in an ellipsis."""
    found = clean(text)
    return found if len(found) <= limit else found[: limit - 1] + _ELLIPSIS
