from pathlib import Path

from service.codes_page import codes_page

PAGE = Path(__file__).parents[2] / "docs" / "codes.md"


def test_the_page_in_the_repository_is_that_of_the_code() -> None:
    """Renew it with `python -m service.codes_page > docs/codes.md`."""
    assert PAGE.read_text() == codes_page()
