"""What one ended request adds to the metrics."""

from __future__ import annotations

import time

from frontend.metrics import Metrics
from frontend.stream import Stream
from ipc.messages import Finished


def observe(metrics: Metrics, stream: Stream, reason: str, finished: Finished | None) -> None:
    """Count a request that ended for `reason` and its times; `finished` is the scheduler's word on it, if there was one."""
    work = stream.work
    metrics.count("request_success", reason)
    now = time.monotonic_ns()
    metrics.observe("e2e_request_latency_seconds", (now - work.arrival_ns) * 1e-9)
    metrics.observe("request_prompt_tokens", len(work.prompt_ids))
    if not work.embed:
        _observe_output(metrics, stream)
    if finished is not None:
        metrics.observe("request_num_preemptions", finished.num_preemptions)
    if stream.started is not None:
        metrics.observe("request_queue_time_seconds", stream.started.queued_ns * 1e-9)
        if stream.first_ns:
            first_step = work.arrival_ns + stream.started.queued_ns
            metrics.observe("request_prefill_time_seconds", max(0, stream.first_ns - first_step) * 1e-9)
            metrics.observe("request_inference_time_seconds", max(0, now - first_step) * 1e-9)


def _observe_output(metrics: Metrics, stream: Stream) -> None:
    """What only requests that generate have."""
    work, count = stream.work, len(stream.ids)
    metrics.observe("request_generation_tokens", count)
    if work.index == 0:
        metrics.observe("request_params_n", work.params.n)
    metrics.observe("request_params_max_tokens", work.params.max_tokens or 0)
    if stream.first_ns:
        metrics.observe("time_to_first_token_seconds", (stream.first_ns - work.arrival_ns) * 1e-9)
        metrics.observe("request_decode_time_seconds", (stream.last_ns - stream.first_ns) * 1e-9)
        if count > 1:
            metrics.observe("request_time_per_output_token_seconds", (stream.last_ns - stream.first_ns) * 1e-9 / (count - 1))
