"""Alert rules and dashboard: accepted by promtool, firing when they should, on metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from chatproject.lib.metrics.shared import Publisher
from chatproject.ops.metrics import SiteCollector

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "parley.json"

MINUTES = 75  # at which the alerts are judged; the longest `for` is an hour

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing. On Debian: apt-get install --no-install-recommends prometheus",
)


def promtool(*arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr


# A series is `first value + growth per minute`.
HEALTHY = {
    "parley_database_up": "1+0",
    "parley_redis_up": "1+0",
    "parley_redis_evicts": "0+0",
    "parley_redis_memory_bytes": "500+0",
    "parley_redis_memory_limit_bytes": "1000+0",
    'parley_db_pool_failed_calls_total{role="web"}': "7+0",
    'parley_db_pool_wait_seconds_total{role="web"}': "3+6",
    "parley_live_events_dropped_total": "50+1",
    'parley_workers{queue="chat"}': "2+0",
    'parley_workers{queue="billing"}': "1+0",
    'parley_workers{queue="low"}': "1+0",
    "parley_clock_alive": "1+0",
    'parley_clock_task_failures_total{task="sweep runs"}': "2+0",
    'parley_jobs_failed{queue="low"}': "4+0",
    "parley_attempts_lost_total": "9+0",
    'parley_loop_blocks_total{role="web"}': "0+1",
    'parley_runs_ended_total{outcome="done",code="",cause=""}': "0+100",
    'parley_runs_ended_total{outcome="failed",code="provider_error",cause="busy"}': "0+5",
    'parley_provider_requests_total{provider="a",outcome="ok"}': "0+100",
    'parley_provider_requests_total{provider="a",outcome="cancelled"}': "0+90",
    'parley_provider_requests_total{provider="a",outcome="busy"}': "0+10",
    'parley_provider_requests_total{provider="a",outcome="key"}': "3+0",
    'parley_first_token_seconds_bucket{le="5.0"}': "0+99",
    'parley_first_token_seconds_bucket{le="60.0"}': "0+100",
    'parley_first_token_seconds_bucket{le="+Inf"}': "0+100",
    "parley_queue_expected_wait_seconds": "2+0",
    'parley_queue_runs{state="queued"}': "3+0",
    'parley_queue_runs{state="throttled"}': "4000+0",
    "parley_queue_limit_runs": "2000+0",
    "parley_run_wait_seconds_count": "0+100",
    "parley_slow_runs_total": "40+0",
    'parley_delivery_seconds_bucket{le="0.1"}': "0+1000",
    'parley_delivery_seconds_bucket{le="5.0"}': "0+1001",
    'parley_delivery_seconds_bucket{le="+Inf"}': "0+1001",
    "parley_tick_failures_total": "3+0",
    'parley_http_requests_total{area="chat",status="200"}': "0+1000",
    'parley_http_requests_total{area="chat",status="500"}': "0+1",
    'parley_http_requests_total{area="health",status="503"}': "0+900",
    'parley_http_request_seconds_bucket{area="chat",le="0.1"}': "0+1000",
    'parley_http_request_seconds_bucket{area="chat",le="10.0"}': "0+1001",
    'parley_http_request_seconds_bucket{area="chat",le="+Inf"}': "0+1001",
    "parley_ledger_problems": "0+0",
    "parley_ledger_checked_timestamp_seconds": "0+0",
    "parley_holds_overdue": "0+0",
    "parley_money_busy_total": "1+0",
    'parley_money_retries_total{sqlstate="55P03"}': "0+5",
    'parley_webhooks_unprocessed{status="received"}': "0+0",
    'parley_webhooks_unprocessed{status="failed"}': "0+0",
    "parley_mail_server_failing": "0+0",
    "parley_mails_oldest_seconds": "100+0",
    'parley_webhook_deliveries_total{outcome="delivered"}': "0+10",
    "parley_webhook_deliveries_oldest_seconds": "2000+0",
}

# The alerts that fire when these series differ from the healthy ones.
FIRING: dict[str, dict[str, str]] = {
    "ParleyDatabaseUnreachable": {"parley_database_up": "0+0"},
    "ParleyRedisEvicts": {"parley_redis_evicts": "1+0"},
    "ParleyRedisMemory": {"parley_redis_memory_bytes": "901+0"},
    "ParleyPoolExhausted": {'parley_db_pool_failed_calls_total{role="web"}': "0+1"},
    "ParleyPoolWaits": {'parley_db_pool_wait_seconds_total{role="web"}': "0+90"},
    "ParleyLiveEventsDropped": {"parley_live_events_dropped_total": "0+20"},
    "ParleyNoWorker": {'parley_workers{queue="chat"}': "0+0"},
    "ParleyNoJobWorker": {'parley_workers{queue="low"}': "0+0"},
    "ParleyClockStopped": {"parley_clock_alive": "0+0"},
    "ParleyClockTaskFails": {'parley_clock_task_failures_total{task="sweep runs"}': "0+1"},
    "ParleyJobsFail": {'parley_jobs_failed{queue="low"}': "0+1"},
    "ParleyWorkersDie": {"parley_attempts_lost_total": "0+1"},
    "ParleyLoopBlocked": {'parley_loop_blocks_total{role="web"}': "0+20"},
    "ParleyRunsFail": {
        'parley_runs_ended_total{outcome="failed",code="provider_error",cause="busy"}': "0+15"
    },
    "ParleyProviderFails": {'parley_provider_requests_total{provider="a",outcome="busy"}': "0+60"},
    "ParleyProviderSetUp": {'parley_provider_requests_total{provider="a",outcome="key"}': "0+1"},
    "ParleyFirstTokenSlow": {'parley_first_token_seconds_bucket{le="5.0"}': "0+80"},
    "ParleyQueueWaits": {"parley_queue_expected_wait_seconds": "40+0"},
    "ParleyQueueStuck": {"parley_run_wait_seconds_count": "100+0"},
    "ParleyQueueFull": {'parley_queue_runs{state="queued"}': "1700+0"},
    "ParleyRunsSlow": {"parley_slow_runs_total": "0+1"},
    "ParleyDeliverySlow": {'parley_delivery_seconds_bucket{le="0.1"}': "0+900"},
    "ParleyTicksFail": {"parley_tick_failures_total": "0+100"},
    "ParleyPagesFail": {'parley_http_requests_total{area="chat",status="500"}': "0+30"},
    "ParleyPagesSlow": {'parley_http_request_seconds_bucket{area="chat",le="0.1"}': "0+800"},
    "ParleyLedgerMismatch": {"parley_ledger_problems": "1+0"},
    "ParleyLedgerUnchecked": {"parley_ledger_checked_timestamp_seconds": "-200000+0"},
    "ParleyHoldsOverdue": {"parley_holds_overdue": "1+0"},
    "ParleyMoneyBusy": {"parley_money_busy_total": "0+1"},
    "ParleyMoneyRetries": {'parley_money_retries_total{sqlstate="55P03"}': "0+20"},
    "ParleyWebhooksWait": {'parley_webhooks_unprocessed{status="received"}': "2+0"},
    "ParleyWebhookDeliveriesWait": {'parley_webhook_deliveries_total{outcome="delivered"}': "10+0"},
    "ParleyMailsWait": {"parley_mails_oldest_seconds": "1000+0"},
}

# Cases near a threshold, or in which one cause must bring one alert alone.
SINGLE: list[tuple[set[str], dict[str, str | None]]] = [
    ({"ParleyUnreachable"}, dict.fromkeys(HEALTHY)),
    # Redis lost: all totals are missing with it, and that is no other alert.
    (
        {"ParleyRedisUnreachable"},
        {
            **{name: None for name in HEALTHY if re.search(r"_(total|bucket|count)\b", name)},
            **{name: None for name in HEALTHY if re.match("parley_(workers|queue)", name)},
            "parley_redis_up": "0+0",
        },
    ),
    ({"ParleyMailsWait"}, {"parley_mail_server_failing": "1+0"}),
    # Few failures on a quiet site, a Redis without a limit, a short pause of the queue.
    (
        set(),
        {
            'parley_runs_ended_total{outcome="done",code="",cause=""}': "0+0",
            'parley_runs_ended_total{outcome="failed",code="provider_error",cause="busy"}': "3+0",
        },
    ),
    (set(), {"parley_redis_memory_limit_bytes": "0+0"}),
    (set(), {"parley_run_wait_seconds_count": "0+0", 'parley_queue_runs{state="queued"}': "0+0"}),
]


def group(expected: set[str], changes: dict[str, Any]) -> dict[str, Any]:
    """A test of promtool: exactly these alerts fire at the end."""
    series = {**HEALTHY, **changes}
    return {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": f"{values}x{MINUTES + 1}"}
            for name, values in series.items()
            if values is not None
        ],
        "promql_expr_test": [
            {
                "expr": 'sum by (alertname) (ALERTS{alertstate="firing"}) > bool 0',
                "eval_time": f"{MINUTES}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)
                ],
            }
        ],
    }


@needs_promtool
def test_each_alert_fires_for_its_cause_alone(tmp_path):
    names = re.findall(r"- alert: (\w+)", RULES.read_text())
    tested = {*FIRING, *(name for expected, _ in SINGLE for name in expected)}
    assert sorted(names) == sorted(tested)
    groups = [group(set(), {})]
    groups += [group({name}, changes) for name, changes in FIRING.items()]
    groups += [group(expected, changes) for expected, changes in SINGLE]
    tests = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": groups}
    (tmp_path / "test.json").write_text(json.dumps(tests))
    promtool("test", "rules", "test.json", cwd=tmp_path)


@needs_promtool
def test_rules_are_accepted():
    promtool("check", "rules", str(RULES), cwd=DEPLOY)


@needs_promtool
def test_queries_of_the_dashboard_are_accepted(tmp_path):
    queries = [*dashboard_queries()]
    assert len(queries) > 20
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries)]
    content = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.json").write_text(json.dumps(content))
    promtool("check", "rules", "rules.json", cwd=tmp_path)


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [
        target["expr"].replace("$__rate_interval", "5m")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


@needs_promtool
@pytest.mark.django_db
@pytest.mark.usefixtures("valkey_url")
def test_scrape_follows_the_conventions_of_prometheus():
    Publisher().publish()
    scrape = generate_latest(SiteCollector())
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape, capture_output=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert scrape.count(b"# HELP") > 50


@pytest.mark.django_db
@pytest.mark.usefixtures("valkey_url")
def test_rules_and_dashboard_name_existing_metrics():
    existing = {
        f"{one.name}{suffix}" for one in SiteCollector().collect() for suffix in SUFFIXES[one.type]
    }
    expressions = re.sub(r"^\s*#.*$", "", RULES.read_text(), flags=re.MULTILINE)
    expressions = re.sub(r"^\s*action:.*$", "", expressions, flags=re.MULTILINE)
    named = set(re.findall(r"\bparley_\w+", expressions + "\n".join(dashboard_queries())))
    assert len(named) > 30
    assert named - existing == set()


SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def test_dashboard_can_be_imported():
    """Panels have ids, titles and places of their own, and none names a data source of one Grafana."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert (dashboard["uid"], dashboard["id"]) == ("parley", None)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] for panel in panels)
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
