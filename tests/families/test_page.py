"""docs/models.md says what the code does."""

import pytest
import transformers
from tests.families import page

WRITTEN = page.PAGE.read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor"),
    pytest.mark.skipif(
        f"transformers {transformers.__version__} " not in WRITTEN,
        reason=f"the page was written with another transformers than {transformers.__version__}",
    ),
]


def test_the_page_has_the_families_as_they_are():
    assert page.page(page.written_others()) == WRITTEN, "run `make models-page`"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_has_the_other_architectures_as_they_are():
    assert page.others_table() == page.written_others(), "run `make models-page`"
