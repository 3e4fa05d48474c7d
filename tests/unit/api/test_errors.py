"""Problems as text: one line, bounded, with nothing dropped in silence."""

from __future__ import annotations

from nri_dranet.api.errors import MAX_ERRORS, ConfigError, FieldError, show, show_path


def test_an_error_names_path_value_message_and_origin() -> None:
    """The text of a problem has everything that a user needs to correct it."""
    assert str(FieldError("interface.mtu", "10", "must be 68 to 65535", "claim")) == (
        "interface.mtu: 10: must be 68 to 65535 (claim)"
    )
    assert str(FieldError("", "", "must be JSON")) == "configuration: must be JSON"


def test_more_errors_than_the_limit_are_counted() -> None:
    """Problems beyond the limit are counted, also through a second error made of the first."""
    first = ConfigError(FieldError(f"a[{i}]", "", "is wrong") for i in range(MAX_ERRORS + 7))
    assert len(first.errors) == MAX_ERRORS
    assert first.unlisted == 7
    second = ConfigError(first.errors, first.unlisted)
    assert str(second) == str(first)
    assert str(second).endswith("; and 7 more")


def test_a_summary_is_cut_between_problems() -> None:
    """A summary lists as many whole problems as fit and counts all others."""
    error = ConfigError([FieldError(f"field{i}", "", "is wrong") for i in range(MAX_ERRORS)], unlisted=3)
    text = error.summary(102)
    assert (
        text == "field0: is wrong; field1: is wrong; field2: is wrong; field3: is wrong; field4: is wrong; and 48 more"
    )
    assert len(text) <= 102
    assert error.summary(100_000) == str(error)


def test_a_summary_of_one_long_problem_is_cut() -> None:
    """One problem that is longer than the limit is cut and marked so."""
    error = ConfigError([FieldError("a", "", "x" * 500), FieldError("b", "", "y")])
    assert error.summary(50) == ("a: " + "x" * 46 + "…")


def test_values_are_shown_short_and_printable() -> None:
    """Any value is shown in one short line of ASCII."""
    assert show("a\nb\x00ж") == '"a\\nb\\u0000\\u0436"'
    assert show("x" * 500) == '"' + "x" * 63 + "…"
    assert show({}) == "{}"
    assert show({"a": 1}) == "{…}"
    assert show([]) == "[]"
    assert show([1]) == "[…]"
    assert show(10**1000) == "a number of 3322 bits"
    assert show(True) == "true"
    assert show(None) == "null"
    assert show(b"x") == "a bytes"


def test_paths_are_written_as_in_messages() -> None:
    """Names that are no plain words are quoted in a path."""
    assert show_path(()) == ""
    assert show_path(("routes", 0, "gateway")) == "routes[0].gateway"
    assert show_path(("ethtool", "features", "a b")) == 'ethtool.features["a b"]'
    assert show_path(("tx-checksum-ipv4",)) == "tx-checksum-ipv4"
    assert show_path(("",)) == '[""]'
