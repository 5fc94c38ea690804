from pathlib import Path

from service.settings import Settings
from service.settings_page import settings_page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_in_the_repository_is_that_of_the_class() -> None:
    """Renew it with `python -m service.settings_page > docs/settings.md`."""
    assert PAGE.read_text() == settings_page()


def test_every_setting_says_what_it_is_for() -> None:
    silent = [name for name, field in Settings.model_fields.items() if not field.description]
    assert silent == []
