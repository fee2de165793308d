"""The bench can fail: it reports wrong replies, worse figures and missing rounds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import websockets
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from bench import figures, load, plan, processes, report, results, websocket
from bench.load import Reply
from bench.parley import Tab
from bench.peers.systems import Proxy, ProxyClient
from bench.results import Measurement, Results, Summary
from bench.systems import ON_DEMAND, SYSTEMS, WrongReply
from bench.tally import Tally
from bench.targets import http as http_target
from bench.targets import requests, statements
from tests.support.fake_llm.fixture import provider, provider_process

__all__ = ["provider", "provider_process"]


# --- Arrived tokens -----------------------------------------------------------------------------


def token(index: int) -> str:
    return f" 0000{36}.{index};"


def tally_of(*indexes: int, expected: int = 5) -> Tally:
    tally = Tally(expected)
    for index in indexes:
        tally.feed(token(index))
    return tally


@pytest.mark.parametrize(
    ("indexes", "faults"),
    [
        ((0, 1, 2, 3, 4), ""),
        ((0, 1, 3, 4), "1 lost"),
        ((0, 1, 2), "2 lost"),
        ((), "5 lost"),
        ((0, 1, 1, 2, 3, 4), "1 doubled"),
        ((0, 2, 1, 3, 4), "1 out of order"),
        ((0, 1, 4, 2), "1 lost, 1 out of order"),
        ((0, 1, 2, 3, 4, 5), "1 garbled"),
    ],
)
def test_tally_counts_each_kind_of_fault(indexes, faults):
    tally = tally_of(*indexes)
    assert tally.faults() == faults
    assert tally.is_clean == (not faults)


@pytest.mark.parametrize("text", ["Sorry;", " 000036.x;", " 000036;", " 000036.0"])
def test_text_without_a_token_is_garbled(text):
    tally = Tally(0)
    tally.feed(text)
    assert not tally.is_clean


def test_tally_accepts_pieces_cut_anywhere():
    text = "".join(token(index) for index in range(5))
    for size in range(1, len(text)):
        tally = Tally(5)
        for start in range(0, len(text), size):
            tally.feed(text[start : start + size])
        assert tally.is_clean, size
        assert tally.arrived == 5


def test_wrong_reply_is_a_failure_of_its_round():
    broken = Reply(tally_of(0, 1, 2, 3, 4), failure="the socket was closed with 1011")
    found = load.judge([Reply(tally_of(0, 1, 2, 3, 4)), Reply(tally_of(0, 0, 3)), broken])
    assert found.figures == {
        "lost": 3, "doubled": 1, "out_of_order": 0, "garbled": 0, "failed": 2,
    }  # fmt: skip
    assert found.failures == ["3 lost, 1 doubled", "the socket was closed with 1011"]


# --- The tab ----------------------------------------------------------------------------------


@asynccontextmanager
async def tab_that_receives(script: Sequence[Mapping[str, Any]]) -> AsyncIterator[Tab]:
    """A tab at a server that answers a message with these frames and closes the socket."""

    async def serve(connection: websockets.ServerConnection) -> None:
        await connection.send('{"type": "ready", "user": 1}')
        asked = json.loads(await connection.recv())
        queued = {"type": "run.queued", "run": "r", "conversation": "c", "position": 0}
        await connection.send(json.dumps({**queued, "client_id": asked["client_id"]}))
        for frame in script:
            await connection.send(json.dumps({"run": "r", "attempt": 1, **frame}))

    async with websockets.serve(serve, "127.0.0.1", 0) as server:
        tab = Tab()
        await tab.open(server.sockets[0].getsockname()[1], "session")
        yield tab
        await tab.close()


STARTED = {"type": "run.started", "seq": 1}
ONE = {"type": "text.delta", "seq": 2, "text": "one"}
TWO = {"type": "text.delta", "seq": 3, "text": " two"}
DONE = {"type": "run.done", "seq": 4, "text": "one two"}


async def test_reply_by_the_protocol_is_read():
    foreign = {"type": "text.delta", "run": "other", "seq": 9, "text": "no"}
    waiting = {"type": "run.waiting", "position": 1}
    async with tab_that_receives([waiting, STARTED, ONE, foreign, TWO, DONE]) as tab:
        assert [piece async for piece in tab.send("Hello")] == ["one", " two"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([STARTED, TWO, DONE], "event 3 came after 1"),
        ([STARTED, ONE, ONE, TWO, DONE], "event 2 came after 2"),
        ([STARTED, TWO, ONE, DONE], "event 3 came after 1"),
        ([ONE, TWO, DONE], "event 2 came after 0"),
        ([STARTED, ONE, DONE], "the end 4 came after 2"),
        ([STARTED, ONE, TWO, {**DONE, "text": "one"}], "the text of run.done differs"),
        ([STARTED, ONE, {"type": "run.restarted", "seq": 10_000_001}, DONE], "run.restarted"),
        ([STARTED, {**DONE, "type": "run.failed", "code": "internal"}], "run.failed internal"),
        ([{"type": "error", "run": "", "code": "busy", "message": "Wait."}], "error busy: Wait."),
    ],
)
async def test_violation_of_the_protocol_is_reported(script, reason):
    async with tab_that_receives(script) as tab:
        with pytest.raises(WrongReply, match=reason):
            [piece async for piece in tab.send("Hello")]


async def test_lost_connection_is_reported():
    async with tab_that_receives([STARTED, ONE]) as tab:
        with pytest.raises(ConnectionError, match="1000"):
            [piece async for piece in tab.send("Hello")]


async def test_frames_arrive_in_pieces_of_any_size():
    texts = [b"a", b"b" * 200, b"\xc3\xa4" * 40_000]
    sent = [websockets.Frame(websockets.Opcode.TEXT, text).serialize(mask=False) for text in texts]
    data = b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + b"".join(sent)
    for cut in (1, 36, 37, 38, 39, 41, 243, 250, 30_000, len(data) - 1):
        received: list[bytes] = []
        closes: list[int] = []
        socket = websocket.Socket(b"", received.append, closes.append)
        socket.data_received(data[:cut])
        socket.data_received(data[cut:])
        assert (received, closes) == (texts, []), cut


# --- A whole measurement ----------------------------------------------------------------------


class Spoiled(Proxy):
    """The proxy, whose clients receive the token with the number 7 `times` times."""

    times: int

    async def connect(self, user: int) -> ProxyClient:
        client = await super().connect(user)
        client.send = partial(self.spoil, client.send)  # type: ignore[method-assign]
        return client

    async def spoil(self, send: Any, prompt: str) -> AsyncGenerator[str]:
        async for piece in send(prompt):
            yield re.sub(r" \w{6}\.7;", lambda token: token[0] * self.times, piece)


@pytest.mark.parametrize(("times", "lost", "doubled"), [(1, 0, 0), (0, 3, 0), (2, 0, 3)])
async def test_stream_finds_lost_and_doubled_tokens(
    provider, tmp_path, monkeypatch, times, lost, doubled
):
    monkeypatch.setattr(load, "SETTLE", 0.5)
    monkeypatch.setattr(Spoiled, "times", times, raising=False)
    place = Spoiled(provider_url=provider.url, folder=tmp_path, users=3)
    place.start()
    try:
        found = await load.stream(place, provider, 3, seconds=0.5)
    finally:
        place.stop()
    assert (found.figures["lost"], found.figures["doubled"]) == (lost, doubled)
    assert len(found.failures) == (3 if lost or doubled else 0)
    assert found.figures["tokens_per_s"] > 0
    assert found.figures["delay_ms.p50"] >= 0
    assert "cpu_us_per_token.web" in found.figures


def test_cpu_is_divided_between_tokens_and_messages():
    readings = [{"web": 1.0, "clock": 0.0}, {"web": 3.0, "clock": 1.0}]
    readings += [{"web": 3.5, "clock": 1.2}, {"web": 6.0, "clock": 1.5}]
    cost = load.costs(readings, in_window=1000, in_all=4000, messages=10)
    assert cost["cpu_us_per_token"] == pytest.approx(500)  # the clock is shown, not counted
    assert cost["cpu_us_per_token.clock"] == pytest.approx(200)
    assert cost["cpu_ms_per_message"] == pytest.approx(1000 * (5.0 - 4000 * 0.0005) / 10)


def test_cost_of_a_process_includes_ended_children():
    spend = "import time\nwhile time.process_time() < 0.2: pass"
    burn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spend!r}]); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    roles = {"worker": [process.pid]}
    give_up_at = time.monotonic() + 60
    while processes.cpu(roles)["worker"] < 0.1:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert processes.memory(roles)["worker"] > 1
    assert processes.alive(roles) == ["worker"]
    process.communicate(b"\n")
    assert processes.alive(roles) == []


def test_statements_are_counted_without_transaction_control(tmp_path):
    log = tmp_path / "postgres.log"
    log.write_text("web|LOG:  statement: SELECT 1\n")
    start = log.stat().st_size
    with log.open("a") as more:
        more.write(
            "web|LOG:  statement: BEGIN\n"
            "web|LOG:  execute <unnamed>: INSERT INTO chat_run\n\t(id) VALUES ($1)\n"
            "web|DETAIL:  Parameters: $1 = 'web|LOG'\n"
            "worker|LOG:  execute _pg3_0: UPDATE chat_run SET status = $1\n"
            "worker|LOG:  statement: COMMIT\n"
            "clock|LOG:  statement: SELECT 2\n"
        )
    assert statements.count(log, start) == Counter(web=1, worker=1)


# --- Requests ---------------------------------------------------------------------------------


async def test_each_response_is_checked():
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.method)

    def problem(status: int, body: bytes) -> str:
        return "" if (status, body) == (200, b"GET") else f"HTTP {status} {body.decode()}"

    application = web.Application()
    application.router.add_route("*", "/thing", answer)
    answers = http_target.Answers([], [])
    async with TestServer(application) as server, ClientSession(server.make_url("/")) as client:
        await answers.ask(client, http_target.Request("/thing", problem))
        await answers.ask(client, http_target.Request("/thing", problem, form=dict))
        await answers.ask(client, http_target.Request("/nothing", problem))
    assert len(answers.times) == 3
    assert min(answers.times) > 0
    assert answers.problems == ["/thing: HTTP 200 POST", "/nothing: HTTP 404 404: Not Found"]


def test_json_response_is_compared_field_by_field():
    says = requests.says(202, status="queued", run=None)
    assert says(202, b'{"status": "queued", "run": null, "id": 1}') == ""
    assert "failed" in says(202, b'{"status": "failed", "run": null}')
    assert "HTTP 429" in says(429, b'{"status": "queued", "run": null}')


# --- Figures, comparisons, summary ------------------------------------------------------------


def test_percentiles_are_values_of_the_sample():
    sample = [float(value) for value in range(1, 101)]
    found = [figures.percentile(sample, part) for part in (0, 50, 95, 99, 100)]
    assert found == [1, 50, 95, 99, 100]
    assert figures.percentile([7.0], 99) == 7
    assert figures.spread("x", []) == {}
    with pytest.raises(ValueError, match="empty sample"):
        figures.percentile([], 50)


def summary_of(**values: list[float]) -> Summary:
    """The summary of one measurement whose figures had these values in its rounds."""
    rounds = [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]
    one = Measurement("stream", "proxy", 10, rounds, clean=[True] * len(rounds))
    return report.summary(Results(measurements=[one]))


@pytest.mark.parametrize(
    ("figure", "before", "now", "is_worse"),
    [
        ("cpu_us_per_token", [100, 101, 99], [110, 111, 109], True),
        ("cpu_us_per_token", [100, 101, 99], [90, 91, 89], False),
        ("cpu_us_per_token", [100, 101, 99], [103, 104, 102], False),  # hardly more
        ("cpu_us_per_token", [100, 120, 80], [110, 111, 109], False),  # the noise is larger
        ("delay_ms.p99", [100, 101, 99], [150, 90, 130], False),
        ("lost", [0, 0, 0], [0, 1, 0], True),
        ("tokens_per_s", [100, 100, 100], [200, 200, 200], False),
        ("cpu_us_per_token.load", [10, 10, 10], [20, 20, 20], False),
    ],
)
def test_regression_is_more_than_the_noise(tmp_path, figure, before, now, is_worse):
    always = [5.0, 5.0, 5.0]
    path = tmp_path / "summary.json"
    results.save(summary_of(**{figure: before, "rss_mb.web": always}), path)
    new = summary_of(**{figure: now, "rss_mb.web": always})
    assert bool(results.regressions(results.load(path), new)) == is_worse


def test_comparison_that_could_not_fail_is_refused():
    one = summary_of(lost=[0.0])
    with pytest.raises(ValueError, match="fewer than two"):
        results.regressions(one, one)
    two = summary_of(lost=[0.0, 0.0])
    other = msgspec.structs.replace(
        two, measurements=[results.Row("ttft", "proxy", 10, 2, two.measurements[0].figures)]
    )
    with pytest.raises(ValueError, match="no figure in common"):
        results.regressions(two, other)


def test_row_spreads_clean_rounds_and_counts_faults():
    one = Measurement(
        "stream",
        "proxy",
        10,
        [{"lost": 0, "x": 1.0}, {"lost": 2}, {"lost": 0, "x": 3.0, "x.min": 0.5}],
        clean=[True, False, True],
    )
    assert one.row().rounds == 2
    assert one.row().figures == {"lost": results.Spread(0, 0, 2), "x": results.Spread(1, 2, 3)}


KEYS = [
    "cpu_ratio_proxy", "cpu_ratio_chainlit", "ttft_p50_ms_10", "ttft_p95_ms_10", "delay_p50_ms_10",
    "delay_p99_ms_200", "delay_p99_ms_500", "lost", "doubled", "out_of_order", "db_statements_per_message",
    "db_statements_per_token", "worker_rss_mb_500", "resume_ms_4000", "loop_blocks_over_100ms_200",
]  # fmt: skip
FIGURES = [
    "cpu_us_per_token", "ttft_ms.p50", "ttft_ms.p95", "delay_ms.p50", "delay_ms.p99", "rss_mb.worker",
    "resume_ms.p50", "statements_per_message", "statements_per_token", "loop_blocks.web", "loop_blocks.worker",
]  # fmt: skip


def complete_results(rounds: int = 3) -> Results:
    """Every measurement of a whole bench, with a figure that differs from round to round."""
    found = Results(rounds=rounds)
    for target in plan.TARGETS.values():
        for system, sizes in target.sizes.items():
            for users in sizes:
                one = found.get(target.name, system, users)
                factor = 2.0 if system.startswith("parley") else 1.0
                faults = dict.fromkeys(("lost", "doubled", "out_of_order"), 0.0)
                for number in range(rounds):
                    one.rounds.append(dict.fromkeys(FIGURES, factor * (number + 1)) | faults)
                    one.clean.append(True)
    return found


def test_headline_figures_are_medians_of_the_rounds():
    found = report.headline_figures(complete_results())
    assert list(found) == KEYS
    assert found["cpu_ratio_chainlit"] == 2
    assert found["delay_p99_ms_500"] == 4
    assert found["loop_blocks_over_100ms_200"] == 8
    assert found["lost"] == 0


def test_headline_figures_need_three_clean_rounds():
    assert report.headline_figures(complete_results(rounds=2)) == {}
    found = complete_results()
    found.get("stream", "chainlit", 200).rounds.clear()
    found.get("ttft", "parley", 10).clean[1] = False
    found.get("resume", "parley", 1).rounds[0].pop("resume_ms.p50")
    missing = {*KEYS} - {*report.headline_figures(found)}
    assert missing == {"cpu_ratio_chainlit", "ttft_p50_ms_10", "ttft_p95_ms_10", "resume_ms_4000"}


def test_one_lost_token_is_in_the_headline():
    found = complete_results()
    found.get("burst", "parley", 200).rounds[1]["lost"] = 1
    found.get("burst", "parley", 200).clean[1] = False
    assert report.headline_figures(found)["lost"] == 1


def test_summary_is_the_same_after_saving(tmp_path):
    found = report.summary(complete_results())
    path = tmp_path / "summary.json"
    results.save(found, path)
    assert results.load(path) == found
    assert len(path.read_text().splitlines()) < len(found.measurements) + 40
    path.write_text("{")
    with pytest.raises(msgspec.DecodeError):
        results.load(path)


def test_tables_show_every_measurement():
    text = report.markdown(report.summary(complete_results()))
    for target in plan.TARGETS.values():
        for system in target.sizes:
            assert f"| {system} |" in text
    assert "3 rounds" in text


def test_soak_of_its_own_run_joins_the_tables():
    found = report.summary(complete_results())
    soak = Summary(measurements=[one for one in found.measurements if one.target == "soak"])
    found.measurements = [one for one in found.measurements if one.target != "soak"]
    assert "### Soak" not in report.markdown(found)
    assert "### Soak" in report.markdown(found, soak)


def test_page_shows_the_stored_results():
    page = report.PAGE.read_text()
    assert report.in_page(page, report.stored_tables()) == page
    with pytest.raises(ValueError, match="marks"):
        report.in_page("A page without them", "")


# --- The plan ---------------------------------------------------------------------------------


def test_compared_streams_are_measured_first():
    first = list(plan.steps([]))[:3]
    assert [step.system for step in first] == ["parley", "proxy", "chainlit"]
    for step in first:
        assert [(target.name, users) for target, users in step.measurements] == [("stream", 200)]
    assert {*plan.COMPARED} == {*SYSTEMS}
    measured = [
        (step.system, target.name, users)
        for step in plan.steps([])
        for target, users in step.measurements
    ]
    assert len(measured) == len(set(measured))


def test_each_setup_starts_a_system_once():
    steps = list(plan.steps([]))[3:]
    starts = [(step.system, str(step.measurements[0][0].setup)) for step in steps]
    assert len(starts) == len(set(starts))
    assert {step.system for step in steps} == {*SYSTEMS} - ON_DEMAND
    named = {target.name for step in steps for target, _ in step.measurements}
    assert named == {*plan.TARGETS} - {"soak"}


def test_targets_systems_and_users_can_be_named():
    [step] = plan.steps(["stream"], ["proxy"], [7, 9])
    assert (step.system, step.users) == ("proxy", 9)
    assert [(target.name, users) for target, users in step.measurements] == [
        ("stream", 7),
        ("stream", 9),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [("fairness --system proxy", 1, "nothing was measured"), ("steam", 2, "there is no steam")],
)
def test_bench_without_measurements_fails(arguments, code, reason):
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments.split()],
        cwd=report.PAGE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert reason in done.stdout + done.stderr
