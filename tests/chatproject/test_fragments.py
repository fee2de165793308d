"""Fragment caching of templates: keys, constants and holes."""

from __future__ import annotations

import pytest
from django.template import Context, Template, TemplateSyntaxError
from django.utils import translation

from chatproject.lib.skeletons import HOLES
from chatproject.templatetags.fragments import MOST, CachedNode

HEAD = "{% load fragments i18n %}"


def test_fragment_is_rendered_once_with_holes():
    """Values of holes are escaped and filled in each time; others come from the first rendering of a key."""
    made = Template(
        HEAD
        + "{% cached staff=user.staff constants word holes name id=item.id %}"
        + "{% if staff %}S{% endif %}{{ word }} {{ name }}{{ id }}{{ name }}{{ secret }}{% endcached %}"
    )

    def render(**values: object) -> str:
        return made.render(Context({"word": "one", "secret": "x", **values}))

    assert render(user={"staff": True}, name="<b>", item={"id": 7}) == "Sone &lt;b&gt;7&lt;b&gt;"
    assert (
        render(user={"staff": True}, name=str(HOLES[1]), word="two") == f"Sone {HOLES[1]}{HOLES[1]}"
    )
    assert render(user={"staff": False}, name="c", word="two") == "two cc"
    assert render(user=None, name=None) == "one NoneNone"  # as a template prints it


def test_fragment_is_kept_by_language_and_token():
    made = Template(HEAD + "{% cached %}{% translate 'Delete' %}{% csrf_token %}{% endcached %}")
    with translation.override("en"):
        english = made.render(Context({"csrf_token": "first"}))
        assert made.render(Context()) == "Delete"
    assert english.startswith("Delete<input")
    with translation.override("de"):
        german = made.render(Context({"csrf_token": "second"}))
    assert german.startswith("Löschen<input")
    assert 'value="first"' in english
    assert 'value="second"' in german


def test_skeletons_of_a_fragment_are_bounded():
    made = Template(HEAD + "{% cached number %}{{ number }}{% endcached %}")
    for number in range(200):
        assert made.render(Context({"number": number})) == str(number)
    [node] = [one for one in made.nodelist if isinstance(one, CachedNode)]
    assert len(node.skeletons) <= MOST


def test_fragment_with_too_many_holes_is_refused():
    holes = " ".join(f"h{n}" for n in range(len(HOLES)))
    with pytest.raises(TemplateSyntaxError):
        Template(f"{HEAD}{{% cached holes {holes} %}}{{% endcached %}}")
