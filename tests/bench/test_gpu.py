"""Parts of the GPU benchmark that run without a GPU."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from app.engine.gpu.buckets import Bucket
from app.engine.lanes import run
from tests import REPOSITORY
from tests.bench import gpu


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmark_without_a_gpu_exits_with_an_error():
    command = [sys.executable, "-m", "tests.bench.gpu"]
    completed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr == "this benchmark needs a GPU: CUDA is not available\n"


def test_overlap_of_copies_and_kernels_is_read_from_a_trace(tmp_path):
    def event(category, ts, dur):
        return {"ph": "X", "cat": category, "ts": ts, "dur": dur}

    events = [
        event("gpu_memcpy", 0, 10),
        event("gpu_memcpy", 100, 10),
        event("kernel", 5, 20),
        event("kernel", 7, 3),  # overlaps with another kernel: counted once
        event("cuda_runtime", 0, 1000),
        {"ph": "M", "cat": "kernel"},
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    assert gpu.overlap(trace) == pytest.approx((20e-6, 5e-6))


def test_every_form_of_the_benchmark_model_gives_the_same_scores():
    device = torch.device("cpu")
    scores = []
    for model in (
        gpu.served(device),
        gpu.served(device, loop=True),
        gpu.served(device, torch.bfloat16),
    ):
        result = run(model, gpu.chunks(Bucket(33, 2)))
        assert not isinstance(result.scores, Exception)
        scores.append(result.scores)
    assert scores[0].shape == (33, 3)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
    np.testing.assert_allclose(scores[0], scores[2], atol=0.02)


def test_part_by_keys_prints_a_line_for_each_way_to_gather(tmp_path, capsys):
    gpu.by_keys(torch.device("cpu"), tmp_path, 64, 1, items=1000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| 64 candidates of 1,000 items |")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| features",
        "| keys, gathered on the host",
        "| keys, gathered on the GPU",
    ]


@pytest.mark.slow
def test_http_part_prints_a_line_per_form_and_load(capsys):
    gpu.over_http("cpu", 0.2, rows=20, items=1000)
    lines = capsys.readouterr().out.splitlines()[2:]
    forms = ("binary", "JSON", "keys, table on the host", "keys, table on the GPU")
    assert [line.split(" | ")[0] for line in lines] == [f"| {f}" for f in forms for _ in range(2)]
    assert all(float(line.split(" | ")[2].replace(",", "")) > 0 for line in lines)
