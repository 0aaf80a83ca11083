"""Templates escape what HTML would act upon, and fail where a value is missing; numbers are short."""

import pytest
from jinja2 import DictLoader, Environment, UndefinedError

from longlora.support.wording import short_number, templates


def with_template(name: str, text: str, environment: Environment) -> Environment:
    return environment.overlay(loader=DictLoader({name: text}))


@pytest.mark.parametrize(("name", "written"), [("page.html.j2", "&lt;b&gt; &amp;"), ("page.md.j2", "<b> &")])
def test_what_html_templates_print_is_escaped(name: str, written: str) -> None:
    environment = with_template(name, "{{ text }}", templates("report/templates"))
    assert environment.get_template(name).render(text="<b> &") == written


def test_a_missing_value_fails() -> None:
    environment = with_template("a.md.j2", "{{ forgotten }}", templates("report/templates"))
    with pytest.raises(UndefinedError, match="forgotten"):
        environment.get_template("a.md.j2").render()


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (999, "999"), (1640, "1.64 k"), (1.638e6, "1.64 M"), (999.9e6, "1 B"), (15.6e12, "15.6 T")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text
