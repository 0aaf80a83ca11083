"""docs/models.md says what the code does."""

import pytest
import transformers
from tests.families import page

pytestmark = pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")


def test_the_page_has_the_families_as_they_are():
    assert page.page(page.written_others()) == page.PAGE.read_text(encoding="utf-8"), "run `make models-page`"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_has_the_other_architectures_as_they_are():
    written = page.PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} " not in written:
        pytest.skip(f"the page was written with another transformers than {transformers.__version__}")
    assert page.others_table() == page.written_others(), "run `make models-page`"
