"""Cursors."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from service.db.base import new_id
from service.pagination import decode_cursor, encode_cursor


def test_cursor_holds_an_id() -> None:
    last = new_id("job")
    assert decode_cursor(encode_cursor(last)) == last


@given(st.text(max_size=80))
def test_anything_else_is_no_cursor_or_means_an_id(text: str) -> None:
    with suppress(ValueError):
        assert decode_cursor(text).replace("_", "").isalnum()
