"""A network as it is used: whole batches, single rows, copies, threads, scripted and exported."""

import copy
import functools
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from models.config import Architecture, DenseFeature
from models.networks import build
from tests.models.cases import (
    ARCHITECTURES,
    FEATURES,
    GRID,
    Case,
    Values,
    small,
    tasks,
    values,
)

SIZES = [(1, 1), (1, 2), (2, 2), (3, 64)]  # requests, rows
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}


def network(case: Case) -> Any:
    return build(case.config, FEATURES, tasks(case.num_tasks), seed=1).to(case.dtype).eval()


@functools.cache
def example(architecture: Architecture, dtype: torch.dtype = torch.float32) -> Any:
    config = small(architecture, num_task_experts=(1, 2, 1), num_levels=3)
    return build(config, FEATURES, tasks(3), seed=1).to(dtype).eval()


@functools.cache
def loaded(architecture: Architecture, dtype: torch.dtype = torch.float32) -> Any:
    """The example, scripted, frozen, saved and loaded."""
    served = copy.deepcopy(example(architecture, dtype)).requires_grad_(False)
    frozen = torch.jit.freeze(torch.jit.script(served), preserved_attrs=["gate_weights"])
    file = io.BytesIO()
    torch.jit.save(frozen, file)
    file.seek(0)
    return torch.jit.load(file)


def rows(arguments: tuple[Values, Values, Tensor], which: Any) -> tuple[Values, Values, Tensor]:
    """The arguments of some rows alone, each with its user tiled to it."""
    user, candidate, row_to_request = arguments
    chosen = row_to_request[which]
    return (
        {name: column[chosen] for name, column in user.items()},
        {name: column[which] for name, column in candidate.items()},
        torch.arange(len(chosen)),
    )


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", GRID, ids=str)
def test_a_row_scores_alone_as_it_does_in_company(case: Case):
    module, arguments = network(case), values(2, case.num_rows)
    together = module(*arguments)
    assert together.shape == (case.num_rows, case.num_tasks)
    for b in range(0, case.num_rows, 37):
        alone = module(*rows(arguments, slice(b, b + 1)))
        assert alone.shape == (1, case.num_tasks)
        assert_close(alone, together[b : b + 1], TOLERANCE[case.dtype])


@pytest.mark.parametrize("case", GRID, ids=str)
def test_a_user_computed_once_equals_the_user_tiled(case: Case):
    module, arguments = network(case), values(3, case.num_rows)
    tiled = rows(arguments, slice(None))
    assert_close(module(*arguments), module(*tiled), TOLERANCE[case.dtype])


def test_the_order_of_rows_and_of_requests_does_not_matter():
    module, (user, candidate, row_to_request) = example("ple"), values(3, 9)
    expected = module(user, candidate, row_to_request)
    backwards = {name: column.flip(0) for name, column in user.items()}
    assert_close(module(backwards, candidate, 2 - row_to_request), expected, 1e-6)
    reversed_rows = {name: column.flip(0) for name, column in candidate.items()}
    assert_close(module(user, reversed_rows, row_to_request.flip(0)).flip(0), expected, 1e-6)


@pytest.mark.parametrize("side", ["user", "candidate"])
@pytest.mark.parametrize("architecture", ["shared_bottom", "ple"])
def test_features_may_all_be_on_one_side(architecture, side):
    alone = {"shared_with": None}  # the table that the history shares is the candidate's
    features = [f if f.name != "history" else f.model_copy(update=alone) for f in FEATURES]
    features = [feature for feature in features if feature.side == side]
    module = build(small(architecture), features, tasks(3), seed=1).eval()
    arguments = values(2, 7, features=features)
    scripted = torch.jit.script(module)
    outputs = module(*arguments)
    assert outputs.shape == (7, 3)
    assert_close(scripted(*arguments), outputs, 1e-6)
    row_to_request = arguments[2]
    same_request = outputs[row_to_request == row_to_request[0]]
    assert torch.allclose(same_request, outputs[:1], atol=1e-6) is (side == "user")


@pytest.mark.parametrize("num_requests", [0, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_rows_give_no_scores(architecture, num_requests):
    arguments = values(num_requests, 0)
    assert example(architecture)(*arguments).shape == (0, 3)
    assert loaded(architecture)(*arguments).shape == (0, 3)


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exported_program_takes_any_number_of_requests_and_rows(architecture):
    user, candidate, row_to_request = values(3, 7)
    R, B = torch.export.Dim("R", min=1, max=1024), torch.export.Dim("B", min=1, max=65536)
    program = torch.export.export(
        example(architecture),
        (user, candidate, row_to_request),
        dynamic_shapes=({n: {0: R} for n in user}, {n: {0: B} for n in candidate}, {0: B}),
    ).module()
    for size in SIZES:
        arguments = values(*size)
        assert_close(program(*arguments), example(architecture)(*arguments), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["mmoe", "ple"])
def test_many_rows_run_fewer_experts_at_a_time_and_score_the_same(architecture, dtype):
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_state_dict_makes_another_network_the_same(architecture):
    source, target = example(architecture), copy.deepcopy(example(architecture))
    for parameter in target.parameters():
        torch.nn.init.normal_(parameter)
    arguments = values(2, 9)
    assert not torch.allclose(target(*arguments), source(*arguments))
    result = target.load_state_dict(source.state_dict())
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(target(*arguments), source(*arguments))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_step_changes_every_parameter(architecture):
    module = copy.deepcopy(example(architecture)).train()
    before = {name: value.clone() for name, value in module.named_parameters()}
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    module(*values(5, 257)).square().sum().backward()
    optimiser.step()
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_a_seed_draws_the_same_network_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = (build(small("ple"), FEATURES, tasks(3), seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_dropout_acts_in_training_only_and_never_in_a_gate():
    module = build(small("ple", dropout=0.5, num_levels=1), FEATURES, tasks(3), seed=1)
    arguments = values(2, 9)
    assert not torch.equal(module(*arguments), module(*arguments))
    trained, again = module.gate_weights(*arguments)[0], module.gate_weights(*arguments)[0]
    assert torch.equal(trained, again)
    module.eval()
    assert torch.equal(module(*arguments), module(*arguments))
    assert_close(torch.jit.script(module)(*arguments), module(*arguments), 1e-6)


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
def test_gate_weights_can_be_watched_and_sum_to_one(architecture, shapes, dtype):
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_nan_stays_in_its_row(architecture):
    user, candidate, row_to_request = values(2, 9)
    clean = loaded(architecture)(user, candidate, row_to_request)
    candidate["price"][4] = torch.nan
    dirty = loaded(architecture)(user, candidate, row_to_request)
    assert dirty[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(dirty[others], clean[others])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_users_nan_stays_in_its_request(architecture):
    user, candidate, row_to_request = values(2, 9)
    clean = loaded(architecture)(user, candidate, row_to_request)
    user["age"][0, 1] = torch.nan
    dirty = loaded(architecture)(user, candidate, row_to_request)
    mine = row_to_request == 0
    assert dirty[mine].isnan().all()
    assert torch.equal(dirty[~mine], clean[~mine])


def test_a_row_of_a_request_that_is_not_there_is_refused():
    user, candidate, row_to_request = values(2, 9)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        example("mmoe")(user, candidate, row_to_request + 2)


@pytest.mark.parametrize(
    ("features", "task_list", "message"),
    [
        ([], tasks(2), "features: at least one"),
        (FEATURES, [], "tasks: at least one"),
        (FEATURES, tasks(2) + tasks(1), "tasks: the name 'click' is used twice"),
        ([*FEATURES, DenseFeature(name="city", side="user")], tasks(1), "'city' is used twice"),
        (FEATURES, tasks(4), "num_task_experts: 3 counts for 4 tasks"),
    ],
)
def test_what_does_not_fit_together_is_named(features, task_list, message):
    with pytest.raises(ValueError, match=message):
        build(small("ple", num_task_experts=(1, 2, 1)), features, task_list)
