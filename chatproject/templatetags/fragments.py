"""Fragment caching in templates: a part of a page is rendered once in a process, and its holes each time."""

from __future__ import annotations

from typing import Any

from django import template
from django.contrib.staticfiles.storage import staticfiles_storage
from django.template.base import FilterExpression, NodeList, Parser, Token, render_value_in_context
from django.utils.safestring import SafeString
from django.utils.translation import get_language

from chatproject.lib.skeletons import HOLES, Skeleton

register = template.Library()

MOST = 64  # skeletons of one fragment


@register.tag
def cached(parser: Parser, token: Token) -> CachedNode:
    """Render the content once for each combination of keys, and fill in its holes each time.

    `{% cached is_staff=user.is_staff constants shortcuts holes name id=item.id %} … {% endcached %}`

    The content has no other variables than these. Keys are few values, by which it may vary in any way: the
    language and the version of the static files always are keys. Constants are the same for the whole process.
    Holes are printed without a filter, are never tested, and are escaped. The CSRF token is always one.
    """
    sections: dict[str, dict[str, FilterExpression]] = {"keys": {}, "constants": {}, "holes": {}}
    section = sections["keys"]
    for word in token.split_contents()[1:]:
        if word in sections:
            section = sections[word]
            continue
        name, _equals, value = word.partition("=")
        section[name] = parser.compile_filter(value or name)
    if len(sections["holes"]) >= len(HOLES):
        raise template.TemplateSyntaxError(f"A cached fragment has less than {len(HOLES)} holes.")
    nodelist = parser.parse(("endcached",))
    parser.delete_first_token()
    return CachedNode(nodelist, **sections)


class CachedNode(template.Node):
    """A part of a template with the skeletons made of it, at most MOST; a changed template is another node."""

    def __init__(
        self,
        nodelist: NodeList,
        keys: dict[str, FilterExpression],
        constants: dict[str, FilterExpression],
        holes: dict[str, FilterExpression],
    ) -> None:
        self.nodelist = nodelist
        self.keys = keys
        self.constants = constants
        self.holes = [*holes.items(), ("csrf_token", FilterExpression("csrf_token", Parser([])))]
        self.skeletons: dict[tuple[Any, ...], Skeleton] = {}

    def render(self, context: template.Context) -> SafeString:
        values = [value.resolve(context, ignore_failures=True) for value in self.keys.values()]
        manifest = getattr(staticfiles_storage, "manifest_hash", "")
        # Without a token, as in an event, a form has no field for it.
        has_token = context.get("csrf_token") is not None
        key = (get_language(), manifest, has_token, *values)
        skeleton = self.skeletons.get(key)
        if skeleton is None:
            names = dict(zip(self.keys, values, strict=True))
            names |= {name: value.resolve(context) for name, value in self.constants.items()}
            names |= {name: hole for (name, _), hole in zip(self.holes, HOLES, strict=False)}
            if not has_token:
                del names["csrf_token"]
            skeleton = Skeleton(self.nodelist.render(context.new(names)))
            if len(self.skeletons) >= MOST:
                self.skeletons.clear()
            self.skeletons[key] = skeleton
        return skeleton.fill(
            {
                number: render_value_in_context(self.holes[number][1].resolve(context), context)
                for number in skeleton.holes
            }
        )
