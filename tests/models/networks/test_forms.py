"""Every form of a network, eager, scripted, frozen, loaded, gives the same scores."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from models.networks.build import build
from tests.models.cases import (
    ARCHITECTURES,
    FEATURES,
    TOLERANCE,
    assert_close,
    example,
    loaded,
    small,
    tasks,
    values,
)

SIZES = [(1, 1), (1, 2), (2, 2), (3, 64)]  # requests, rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_form_of_a_network_gives_the_same_scores(architecture, dtype):
    module = example(architecture, dtype)
    scripted = torch.jit.script(module)
    frozen = torch.jit.freeze(scripted)
    for size in SIZES:
        arguments = values(*size)
        expected = module(*arguments)
        assert expected.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for form in (scripted, frozen, loaded(architecture, dtype)):
            for _ in range(3):  # a profiled run and optimised ones
                assert_close(form(*arguments), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["mmoe", "ple"])
def test_chunked_experts_give_the_same_scores(architecture, dtype):
    config = small(architecture, expert_hidden_units=(128, 16), num_experts=5)
    module = build(config, FEATURES, tasks(3), seed=1).to(dtype).eval().requires_grad_(False)
    arguments = values(4, 1500)  # 1500 rows of 128 units in float32 are 0.75 of a megabyte
    assert_close(torch.jit.script(module)(*arguments), module(*arguments), TOLERANCE[dtype])


@pytest.mark.parametrize("architecture", ["shared_bottom", "ple"])
def test_reduced_precision_stays_near(architecture):
    arguments = values(2, 64)
    expected = example(architecture, torch.float32)(*arguments)
    assert_close(example(architecture, torch.bfloat16)(*arguments), expected, 3e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eight_threads_score_as_one_does(architecture):
    module = loaded(architecture)
    batches = [values(1 + seed % 3, 1 + 5 * seed, seed) for seed in range(8)]
    expected = [module(*batch) for batch in batches]

    def score(i: int) -> bool:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return torch.equal(module(*batches[i % 8]), expected[i % 8])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(score, range(64)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "shapes"),
    [
        ("single_task", []),
        ("shared_bottom", []),
        ("moe", [(9, 1, 4)]),
        ("mmoe", [(9, 3, 4)]),
        ("cgc", [(9, 3, 6)]),
        ("ple", [(9, 4, 6), (9, 4, 6), (9, 3, 6)]),
        ("esmm", [(9, 4, 6), (9, 4, 6), (9, 3, 6)]),
    ],
)
def test_gate_weights_sum_to_one(architecture, shapes, dtype):
    arguments = values(2, 9)
    weights = loaded(architecture, dtype).gate_weights(*arguments)
    assert [tuple(level.shape) for level in weights] == shapes
    for level, expected in zip(
        weights, example(architecture, dtype).gate_weights(*arguments), strict=True
    ):
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        assert level.dtype == exact
        assert_close(level.sum(2), torch.ones_like(level[:, :, 0]), 1e-6)
        assert_close(level, expected, TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gpu_scores_as_the_cpu_does(architecture):
    served = copy.deepcopy(example(architecture)).requires_grad_(False).cuda()
    frozen = torch.jit.freeze(torch.jit.script(served))
    for size in [(1, 0), *SIZES]:
        user, candidate, row_to_request = values(*size)
        outputs = frozen(
            {name: column.cuda() for name, column in user.items()},
            {name: column.cuda() for name, column in candidate.items()},
            row_to_request.cuda(),
        )
        expected = example(architecture)(user, candidate, row_to_request)
        assert_close(outputs.cpu(), expected, 1e-4)
