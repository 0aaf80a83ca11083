"""docs/reliability.md says what was counted."""

from tests.faults import page


def test_the_page_has_the_counts_as_they_are() -> None:
    written = page.PAGE.read_text(encoding="utf-8")
    assert page.page(page.read_counts()) == written, "run `python -m tests.faults.page`"
