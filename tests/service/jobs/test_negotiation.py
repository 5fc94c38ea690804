"""Which representation a client gets."""

import pytest

from service.errors import NotAcceptable
from service.jobs.negotiation import EVENT_STREAM, HTML, JSON, preferred


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html", HTML),
        ("TEXT/HTML", HTML),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("application/json, text/html;q=0.5", JSON),
        ("application/json;q=0.1, text/*", HTML),
        ("text/html;q=0, */*", JSON),
        ("text/html;level=1;q=0.9, application/json;q=0.2", HTML),
    ],
)
def test_best_liked_type_is_chosen(accept: str, expected: str) -> None:
    assert preferred(accept, JSON, HTML) == expected


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0", "*/*;q=x"])
def test_client_that_likes_none_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        preferred(accept, JSON, EVENT_STREAM)
