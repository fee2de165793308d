"""The tools for tables and charts, the parts that they add to a reply, and their downloads."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest
from django.template.loader import render_to_string
from django.test import Client
from django.urls import reverse

from chat.documents.models import TableResult
from chat.models import Message, MessagePart
from chat.rendering import colours
from chat.tools.builtin import make_chart, query_table
from chat.tools.charts import compiler, svg
from chat.tools.charts.schema import Chart, ChartRefused
from chat.tools.registry import ToolContext, ToolError
from tests.support import tables
from tests.support.conversations import begin
from tests.support.people import assistant, owner, stranger

__all__ = ["assistant", "owner", "stranger"]

WORDS = {"months": [f"M{number}" for number in range(1, 13)], "other": "Other"}
DAYS = [
    {"name": "day", "type": "date"},
    {"name": "shop", "type": "text"},
    {"name": "n", "type": "integer"},
]
ROWS = [[f"{year}-{month:02}-01", f"Shop {month % 3}", year % 7 + month] for year in (2023, 2024) for month in range(1, 13)]  # fmt: skip


@pytest.fixture
def reply(owner, assistant, settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path
    chat = begin(owner, assistant)
    return Message.objects.create(
        conversation=chat, role="assistant", text="Here.", html="<p>Here.</p>"
    )


def context(reply: Message, *documents) -> ToolContext:
    chat = reply.conversation
    return ToolContext(
        uuid4(), chat.owner_id, chat.pk, None, "1", "en", time.monotonic() + 60, documents
    )


def test_query_and_chart_are_parts_with_downloads(reply, owner, stranger):
    """One reply with both, as one process of the sandbox takes a second."""
    rows = "".join(f"North,{number}\n" for number in range(1, 70))
    made = tables.dataset(owner, f"shop,n\n{rows}=1+1,70\n")
    scope = context(reply, made.document_id)
    assert query_table.has_tables(scope)
    found = query_table.query_table.call(
        scope, {"sql": "FROM sales ORDER BY n DESC", "title": "All"}
    )
    assert found.untrusted
    assert found.text.startswith("70 rows, the first 50:\nshop,n\n'=1+1,70")
    (shown,) = found.parts
    assert (shown.data["total"], len(shown.data["rows"])) == (70, 50)
    table = MessagePart.objects.create(message=reply, position=0, kind=shown.kind, data=shown.data)
    charted = make_chart.make_chart.call(
        scope,
        {
            "sql": "SELECT shop, sum(n) AS total FROM sales GROUP BY ALL",
            "kind": "bar", "title": "By <shop>", "description": "Sums.", "x": "shop", "y": ["total"],
        },
    )  # fmt: skip
    (drawn,) = charted.parts
    assert drawn.data["rows"] == [["North", 2415], ["=1+1", 70]]
    chart = MessagePart.objects.create(message=reply, position=1, kind=drawn.kind, data=drawn.data)

    html = render_to_string(
        "chat/parts/chart.html", {"data": drawn.data, "part": chart.pk, "message": reply.pk}
    )
    assert 'role="img" aria-label="By &lt;shop&gt;. Sums."' in html
    assert "var(--part-1)" in html
    assert "<script" not in html
    html = render_to_string(
        "chat/parts/table.html", {"data": shown.data, "part": table.pk, "message": reply.pk}
    )
    assert "The first 50 of 70 rows" in " ".join(html.split())

    client, other = Client(), Client()
    client.force_login(owner)
    other.force_login(stranger)
    whole = client.get(reverse("chat:part_data", args=[table.pk]))
    assert whole.content.decode().splitlines()[1] == "'=1+1,70"
    assert len(whole.content.splitlines()) == 71
    TableResult.objects.all().delete()
    assert len(client.get(reverse("chat:part_data", args=[table.pk])).content.splitlines()) == 51
    picture = client.get(reverse("chat:chart_picture", args=[chart.pk]))
    assert picture.content.startswith(b"\x89PNG")
    assert client.get(reverse("chat:chart_picture", args=[table.pk])).status_code == 404
    for address in ("chat:part_data", "chat:chart_picture"):
        assert other.get(reverse(address, args=[chart.pk])).status_code == 404


def test_faulty_calls_are_explained(reply, owner):
    scope = context(reply)
    assert not query_table.has_tables(scope)
    with pytest.raises(ToolError, match="no tables"):
        query_table.query_table.call(scope, {"sql": "SELECT 1", "title": ""})
    made = tables.dataset(owner, "shop,n\nNorth,1\n")
    with pytest.raises(ToolError) as refused:
        query_table.query_table.call(
            context(reply, made.document_id), {"sql": "FROM salez", "title": ""}
        )
    assert "The tables are: sales" in refused.value.for_model()


@pytest.mark.parametrize("kind", ["line", "area", "bar", "scatter", "year_over_year"])
def test_kinds_compile(kind):
    chart = Chart(kind=kind, title="A", x="Day", y=["n"])
    spec = compiler.compile(chart, DAYS, ROWS, WORDS)
    assert spec["data"]["values"]
    assert "url" not in str(spec["data"])
    if kind == "year_over_year":
        assert {row["series"] for row in spec["data"]["values"]} == {"2023", "2024"}


def test_pie_sums_up_the_rest():
    rows = [["2024-01-01", f"Shop {number}", 10 - number] for number in range(9)]
    spec = compiler.compile(Chart(kind="pie", title="A", x="shop", y=["n"]), DAYS, rows, WORDS)
    names = [row["series"] for row in spec["data"]["values"]]
    assert len(names) == compiler.MAX_SERIES
    assert names[-1].startswith("Other")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"x": "week"}, "Its columns are"),
        ({"y": ["shop"]}, "no numbers"),
        ({"kind": "heatmap"}, "series for its rows"),
        ({"kind": "year_over_year", "x": "shop"}, "dates"),
        ({"kind": "scatter", "x": "shop"}, "numbers or dates"),
        ({"series": "day"}, "series; at most 6"),
    ],
    ids=["column", "numbers", "rows", "dates", "scatter", "series"],
)
def test_unfit_chart_is_refused(fields, said):
    chart = Chart(**({"kind": "line", "title": "A", "x": "day", "y": ["n"]} | fields))
    with pytest.raises(ChartRefused, match=said):
        compiler.compile(chart, DAYS, ROWS, WORDS)


def test_drawing_keeps_shapes_alone():
    hostile = (
        '<svg viewBox="0 0 4 4" onload="alert(1)" style="x"><script>alert(1)</script><style>a</style>'
        '<g fill="url(http://a)" stroke="var(--text)"><a href="javascript:alert(1)"><text x="1">a&lt;b</text></a>'
        '<image href="http://a"/><use href="#a"/><foreignObject><p>b</p></foreignObject><path d="M0,0h1.23456"/></g></svg>'
    )
    cleaned = svg.clean(hostile)
    assert '<g stroke="var(--text)"><text x="1">a&lt;b</text>' in cleaned
    assert 'd="M0,0h1.2"' in cleaned
    for word in ("alert", "url(", "href", "style", "onload", "image", "foreign"):
        assert word not in cleaned
    assert svg.clean("<p>no drawing</p>") == ""
    assert "var(" not in svg.picture(cleaned, "A <title>", dark=True)


def test_colours_are_the_design_tokens(settings):
    css = (settings.BASE_DIR / "static" / "css" / "tokens.css").read_text()
    for name, (light, dark) in colours.TOKENS.items():
        assert f"{name}: light-dark({light}, {dark});" in css
