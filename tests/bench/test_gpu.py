"""What of the GPU's bench needs none: it says so, and it reads a trace."""

import json
import subprocess
import sys

import pytest
import torch

from app.engine.gpu.buckets import Bucket
from app.engine.lanes import run
from tests import REPOSITORY
from tests.bench import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses():
    command = [sys.executable, "-m", "tests.bench.gpu"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "this measures a GPU, and there is none: CUDA is not available\n"


def test_what_of_copies_lay_beside_kernels_is_read_from_a_trace(tmp_path):
    def event(category, ts, dur):
        return {"ph": "X", "cat": category, "ts": ts, "dur": dur}

    events = [
        event("gpu_memcpy", 0, 10),
        event("gpu_memcpy", 100, 10),
        event("kernel", 5, 20),
        event("kernel", 7, 3),  # beside another: counted once
        event("cuda_runtime", 0, 1000),
        {"ph": "M", "cat": "kernel"},
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    assert gpu.overlap(trace) == pytest.approx((20e-6, 5e-6))


def test_model_and_batches_of_the_benchmark_fit_each_other():
    model = gpu.served(torch.device("cpu"))
    result = run(model, gpu.chunks(Bucket(33, 2)))
    assert not isinstance(result.scores, Exception)
    assert result.scores.shape == (33, 3)
