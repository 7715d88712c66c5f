"""A network as it is used: batches, single rows, users tiled or not, copies, steps, NaN."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from models.networks.build import build
from models.networks.config import DenseFeature
from tests.models.cases import (
    ARCHITECTURES,
    FEATURES,
    GRID,
    TOLERANCE,
    Case,
    Values,
    assert_close,
    example,
    loaded,
    small,
    tasks,
    values,
)


def network(case: Case) -> Any:
    return build(case.config, FEATURES, tasks(case.num_tasks), seed=1).to(case.dtype).eval()


def rows(arguments: tuple[Values, Values, Tensor], which: Any) -> tuple[Values, Values, Tensor]:
    """The arguments of some rows alone, each with its user tiled to it."""
    user, candidate, row_to_request = arguments
    chosen = row_to_request[which]
    return (
        {name: column[chosen] for name, column in user.items()},
        {name: column[which] for name, column in candidate.items()},
        torch.arange(len(chosen)),
    )


@pytest.mark.parametrize("case", GRID, ids=str)
def test_row_scores_alone_as_in_any_batch(case: Case):
    module, arguments = network(case), values(2, case.num_rows)
    together = module(*arguments)
    assert together.shape == (case.num_rows, case.num_tasks)
    for b in range(0, case.num_rows, 37):
        alone = module(*rows(arguments, slice(b, b + 1)))
        assert alone.shape == (1, case.num_tasks)
        assert_close(alone, together[b : b + 1], TOLERANCE[case.dtype])


@pytest.mark.parametrize("case", GRID, ids=str)
def test_user_computed_once_equals_the_user_tiled(case: Case):
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_state_dict_makes_another_network_the_same(architecture):
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


def test_seed_draws_the_same_network_and_leaves_the_generator_alone():
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nan_stays_in_its_row(architecture):
    user, candidate, row_to_request = values(2, 9)
    clean = loaded(architecture)(user, candidate, row_to_request)
    candidate["price"][4] = torch.nan
    dirty = loaded(architecture)(user, candidate, row_to_request)
    assert dirty[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(dirty[others], clean[others])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_users_nan_stays_in_its_request(architecture):
    user, candidate, row_to_request = values(2, 9)
    clean = loaded(architecture)(user, candidate, row_to_request)
    user["age"][0, 1] = torch.nan
    dirty = loaded(architecture)(user, candidate, row_to_request)
    mine = row_to_request == 0
    assert dirty[mine].isnan().all()
    assert torch.equal(dirty[~mine], clean[~mine])


def test_row_of_a_request_that_is_not_there_is_refused():
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
        (FEATURES, tasks(4), "num_task_experts: has 3 entries for 4 tasks"),
    ],
)
def test_inconsistent_arguments_are_named(features, task_list, message):
    with pytest.raises(ValueError, match=message):
        build(small("ple", num_task_experts=(1, 2, 1)), features, task_list)
