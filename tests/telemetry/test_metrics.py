"""Metrics: the names, units and initial zeros that dashboards and alerts depend on."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import LATENCY_BUCKETS, ROW_BUCKETS, Metrics
from app.telemetry.requests import GPU_STAGES, STAGES, RequestRecord, VersionStatistics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"gatehouse_{name}", labels)


def test_every_metric_has_its_name_and_a_help_text(metrics):
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    assert set(families) >= {
        "gatehouse_requests",
        "gatehouse_request_duration_seconds",
        "gatehouse_stage_duration_seconds",
        "gatehouse_request_candidates",
        "gatehouse_batch_rows",
        "gatehouse_batch_requests",
        "gatehouse_lane_busy_seconds",
        "gatehouse_shed",
        "gatehouse_failures",
        "gatehouse_unknown_id",
        "gatehouse_model_info",
        "gatehouse_model_swaps",
    }
    for name, family in families.items():
        assert name.startswith(("gatehouse_", "process_"))
        assert family.documentation.endswith(".")


def test_known_label_values_start_at_zero(metrics):
    for reason in ("overloaded", "deadline-exceeded"):
        assert value(metrics, "shed_total", reason=reason) == 0
    for kind in ("model", "non-finite"):
        assert value(metrics, "failures_total", kind=kind) == 0
    for stage in GPU_STAGES:
        assert value(metrics, "stage_duration_seconds_count", stage=stage) == 0
    for name in ("request_candidates", "batch_rows", "batch_requests"):
        assert value(metrics, f"{name}_count") == 0


def test_request_is_counted_by_route_model_and_status(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.004))
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.2))
    metrics.record(RequestRecord("/v1/score", "feed", 422, 0.001))
    route = {"route": "/v1/score", "model": "feed"}
    assert value(metrics, "requests_total", **route, status="200") == 2
    assert value(metrics, "requests_total", **route, status="422") == 1
    assert value(metrics, "request_duration_seconds_count", **route) == 3
    assert value(metrics, "request_duration_seconds_sum", **route) == pytest.approx(0.205)
    assert value(metrics, "request_duration_seconds_bucket", **route, le="0.005") == 2


def test_request_is_counted_by_key_and_by_policy_if_it_has_them(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.004, key="anna", policy="live"))
    metrics.record(RequestRecord("/v1/score", "feed", 401, 0.004))
    assert value(metrics, "requests_by_key_total", key="anna", status="200") == 1
    assert value(metrics, "requests_by_key_total", key="", status="401") is None
    assert value(metrics, "policy_applied_total", policy="live") == 1
    assert value(metrics, "policy_applied_total", policy="") is None


STAGES_S = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007)
GPU_STAGES_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_scored_request_is_measured_by_stage(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.1, candidates=50, stages=STAGES_S))
    assert value(metrics, "request_candidates_sum") == 50
    for stage, stage_s in zip(STAGES, STAGES_S, strict=True):
        assert value(metrics, "stage_duration_seconds_sum", stage=stage) == stage_s
    assert value(metrics, "stage_duration_seconds_count", stage="copy_in") == 0


def test_copies_to_and_from_a_gpu_are_stages_of_their_own(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 200, 5, candidates=1, stages=GPU_STAGES_S))
    for stage, stage_s in zip(GPU_STAGES, GPU_STAGES_S, strict=True):
        assert value(metrics, "stage_duration_seconds_sum", stage=stage) == stage_s


def test_request_without_scores_has_no_stages_and_no_candidates(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 422, 0.1))
    assert value(metrics, "request_candidates_count") == 0
    for stage in GPU_STAGES:
        assert value(metrics, "stage_duration_seconds_count", stage=stage) == 0


def test_unknown_number_of_stages_is_an_error(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.1, stages=STAGES_S[:-1]))
    with pytest.raises(ValueError, match="zip"):
        metrics.drain()


def test_each_record_is_counted_once(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.1))
    metrics.drain()
    metrics.drain()
    text = metrics.render() + metrics.render()
    assert text.count(b'model="feed",route="/v1/score",status="200"} 1.0') == 2


def test_scrape_counts_what_was_recorded_before_it(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.1))
    assert b'requests_total{model="feed",route="/v1/score",status="200"} 1.0' in metrics.render()


def test_records_appended_by_one_thread_and_drained_by_others_are_all_counted(metrics):
    with ThreadPoolExecutor(4) as pool:
        draining = [pool.submit(lambda: [metrics.drain() for _ in range(500)]) for _ in range(4)]
        for _ in range(20_000):
            metrics.record(RequestRecord("/v1/score", "feed", 200, 0.001))
        for future in draining:
            future.result()
    route = {"route": "/v1/score", "model": "feed"}
    assert value(metrics, "requests_total", **route, status="200") == 20_000
    assert value(metrics, "request_duration_seconds_count", **route) == 20_000


def test_statistics_of_a_version_are_sums_over_its_requests_and_batches(metrics):
    scored = RequestRecord("/v1/score", "feed", 200, 0.1, "feed/1", candidates=50, stages=STAGES_S)
    before = time.time()
    metrics.record(scored)
    metrics.record(scored._replace(stages=GPU_STAGES_S, candidates=2, duration_s=0.2))
    metrics.record(RequestRecord("/v1/score", "feed", 422, 0.5, "feed/1"))
    metrics.record(RequestRecord("/v1/score", "feed", 422, 0.5, "feed/2"))
    metrics.batch("feed/1", rows=52, requests=2, lane="lane-0", busy_s=0.1)
    found = metrics.requests.version("feed/1")
    assert (found.succeeded, found.failed, found.rows, found.batches) == (2, 1, 52, 1)
    assert found.succeeded_s == pytest.approx(0.3)
    assert found.failed_s == pytest.approx(0.5)
    assert found.queue_s == pytest.approx(0.003 + 0.3)
    assert found.collate_s == pytest.approx(0.004 + 0.4)
    assert found.compute_s == pytest.approx(0.005 + 0.6)
    assert found.respond_s == pytest.approx(0.006 + 0.007 + 0.8 + 0.9)
    assert before <= found.last_unix_s <= time.time()


def test_statistics_of_a_freed_version_are_dropped(metrics):
    metrics.record(RequestRecord("/v1/score", "feed", 422, 0.5, "feed/1"))
    assert metrics.requests.version("feed/1").failed == 1
    metrics.versions.activated("feed", 1, "a" * 64)
    metrics.versions.retired("feed", 1, "a" * 64)
    assert metrics.requests.version("feed/1").failed == 1  # it may be kept for a rollback
    metrics.freed("feed/1")
    assert metrics.requests.version("feed/1") == VersionStatistics()


def test_what_late_requests_leave_of_a_freed_version_is_removed(metrics):
    metrics.freed("feed/1")
    metrics.record(RequestRecord("/v1/score", "feed", 200, 0.5, "feed/1"))
    metrics.batch_limit("feed/1", 64)
    metrics.drain()
    metrics.keep_only({"feed/2"})
    assert metrics.requests._versions == {}
    assert b"gatehouse_batch_limit_rows{" not in metrics.render()


def test_batch_counts_its_rows_requests_and_time(metrics):
    metrics.batch("feed/1", rows=96, requests=3, lane="lane-0", busy_s=0.25)
    metrics.batch("feed/1", rows=4, requests=1, lane="lane-0", busy_s=0.5)
    assert value(metrics, "batch_rows_sum") == 100
    assert value(metrics, "batch_rows_bucket", le="4.0") == 1
    assert value(metrics, "batch_requests_sum") == 4
    assert value(metrics, "lane_busy_seconds_total", lane="lane-0") == 0.75


def test_shed_requests_failures_and_unknown_ids_are_counted_by_label(metrics):
    metrics.shed("overloaded")
    metrics.failed("non-finite")
    metrics.unknown("feed", {"item": 3, "tags": 1})
    metrics.unknown("feed", {"item": 2})
    assert value(metrics, "shed_total", reason="overloaded") == 1
    assert value(metrics, "failures_total", kind="non-finite") == 1
    assert value(metrics, "unknown_id_total", model="feed", feature="item") == 5
    assert value(metrics, "unknown_id_total", model="feed", feature="tags") == 1


def test_model_info_shows_a_version_only_while_it_is_active(metrics):
    metrics.versions.activated("feed", 1, "a" * 64)
    metrics.versions.activated("feed", 2, "b" * 64)
    metrics.versions.retired("feed", 1, "a" * 64)
    assert value(metrics, "model_info", model="feed", version="2", sha="b" * 12) == 1
    assert value(metrics, "model_info", model="feed", version="1", sha="a" * 12) is None


def test_loaded_versions_are_counted_by_result(metrics):
    metrics.versions.tried("feed", activated=True)
    metrics.versions.tried("feed", activated=False)
    metrics.versions.tried("feed", activated=False)
    assert value(metrics, "model_swaps_total", model="feed", result="activated") == 1
    assert value(metrics, "model_swaps_total", model="feed", result="refused") == 2


def test_watched_gauge_is_read_at_each_scrape(metrics):
    waiting = [3.0]
    metrics.watch("queue_rows", "Rows that wait.", lambda: waiting[0])
    assert value(metrics, "queue_rows") == 3
    waiting[0] = 5
    assert b"gatehouse_queue_rows 5.0" in metrics.render()


def test_a_watched_total_is_a_counter_read_at_each_scrape(metrics):
    dropped = [3]
    metrics.watch_total("log_records_dropped_total", "Records lost.", lambda: dropped[0])
    assert value(metrics, "log_records_dropped_total") == 3
    dropped[0] = 5
    text = metrics.render().decode()
    assert "# TYPE gatehouse_log_records_dropped_total counter" in text
    assert "gatehouse_log_records_dropped_total 5.0" in text


def test_two_services_in_one_process_do_not_share_metrics():
    one, other = Metrics(), Metrics(CollectorRegistry())
    one.shed("overloaded")
    assert value(other, "shed_total", reason="overloaded") == 0


@pytest.mark.parametrize("buckets", [LATENCY_BUCKETS, ROW_BUCKETS])
def test_buckets_ascend(buckets):
    assert list(buckets) == sorted(set(buckets))
