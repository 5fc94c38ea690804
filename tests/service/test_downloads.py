"""Ranges and names of downloads."""

from hypothesis import given
from hypothesis import strategies as st

from service.downloads import content_disposition, parse_range
from service.errors import RangeNotSatisfiable

NUMBER = st.integers(0, 30).map(str) | st.just("")


@given(first=NUMBER, last=NUMBER, size=st.integers(0, 25))
def test_range_is_what_its_definition_says(first: str, last: str, size: int) -> None:
    every = list(range(size))
    if (first and last and int(last) < int(first)) or (not first and not last):
        expected = every  # no range at all: the whole file
    elif first:
        expected = [i for i in every if i >= int(first) and (not last or i <= int(last))]
    else:
        expected = every[-int(last) :] if int(last) else []
    try:
        found = parse_range(f"bytes={first}-{last}", size)
    except RangeNotSatisfiable:
        assert expected == []
    else:
        start, end = found if found is not None else (0, size)
        assert every[start:end] == expected


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=50))
def test_name_stands_in_the_header_whatever_it_is(filename: str) -> None:
    header = content_disposition(filename)
    header.encode("ascii")
    assert header.startswith('attachment; filename="')
    assert header.split("; filename*=")[0].count('"') == 2
