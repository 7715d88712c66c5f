import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional

from models.networks.config import Task
from models.training.losses import (
    bce_with_log_probability,
    row_losses,
    target,
    task_losses,
    task_weights,
    weighted_logistic,
)

NAN = math.nan
CLICK = Task(name="click", kind="binary")
LIKE = Task(name="like", kind="binary", sample_space="click")
DWELL = Task(name="dwell", kind="duration", sample_space="click")
LABELS = {
    "click": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    "like": torch.tensor([1.0, NAN, 0.0, NAN]),
    "dwell": torch.tensor([12.0, NAN, 3.0, NAN]),
}
TASKS = [CLICK, LIKE, DWELL]
LINKS = [task.link for task in TASKS]


def test_labels_outside_the_sample_space_have_no_effect():
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()

    losses = task_losses(outputs, LABELS, TASKS, LINKS)
    losses.sum().backward()

    inside = outputs.detach()[[0, 2]]
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert (outputs.grad[[1, 3], 1:] == 0).all()
    assert (outputs.grad[[0, 2]] != 0).all()
    assert (outputs.grad[:, 0] != 0).all()
    like = functional.binary_cross_entropy_with_logits(inside[:, 1], torch.tensor([1.0, 0.0]))
    dwell = weighted_logistic(inside[:, 2], torch.tensor([12.0, 3.0])).mean()
    torch.testing.assert_close(losses[1:], torch.stack([like, dwell]))


def test_task_without_rows_in_its_sample_space_has_zero_loss():
    outputs = torch.zeros(4, 3, requires_grad=True)
    labels = LABELS | {"click": torch.zeros(4)}

    losses = task_losses(outputs, labels, TASKS, LINKS)
    losses.sum().backward()

    assert losses[1:].tolist() == [0, 0]
    assert outputs.grad is not None
    assert (outputs.grad[:, 1:] == 0).all()


def test_esmm_column_learns_from_every_row():
    label, inside = target(LIKE, "exp", LABELS)

    assert label.tolist() == [1, 0, 0, 0]
    assert inside.all()


def test_conditional_column_learns_from_its_sample_space_only():
    label, inside = target(LIKE, "sigmoid", LABELS)

    assert label.tolist() == [1, 0, 0, 0]
    assert inside.tolist() == [True, False, True, False]


def test_duration_task_with_an_exp_link_is_no_esmm_column():
    _, inside = target(DWELL, "exp", LABELS)

    assert inside.tolist() == [True, False, True, False]


@pytest.mark.parametrize("start", [-3.0, 0.0, 5.0])
def test_duration_loss_of_a_constant_is_minimal_at_the_mean(start):
    seconds = torch.tensor([0.0, 0.0, 1.5, 40.0, 7.0], dtype=torch.float64)
    z = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = weighted_logistic(z.expand(5), seconds).mean()
        loss.backward()
        return loss

    optimizer.step(closure)

    assert math.exp(z.item()) == pytest.approx(seconds.mean().item(), rel=1e-4)


def test_the_duration_loss_is_one_negative_and_t_positives():
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    seconds = torch.arange(9, dtype=torch.float64)

    expected = -seconds * torch.log(torch.sigmoid(z)) - torch.log(1 - torch.sigmoid(z))

    torch.testing.assert_close(weighted_logistic(z, seconds), expected)


@pytest.mark.parametrize(
    ("loss", "link", "best"),
    [
        ("bce", "sigmoid", math.log(3)),
        ("bce", "exp", math.log(0.75)),
        ("log1p_mse", "expm1", math.log1p(8) * 0.75),
        ("mse", "identity", 6.0),
    ],
)
def test_best_constant_output_matches_the_link(loss, link, best):
    large = 1.0 if loss == "bce" else 8.0
    labels = torch.tensor([large, large, large, 0.0], dtype=torch.float64)
    z = torch.tensor(best, dtype=torch.float64, requires_grad=True)

    row_losses(loss, link, z.expand(4), labels).mean().backward()

    assert z.grad is not None
    assert z.grad.item() == pytest.approx(0, abs=1e-12)


def test_huber_is_linear_for_large_errors():
    zero = torch.zeros(1)

    near = row_losses("huber", "identity", torch.tensor([0.5]), zero)
    far = row_losses("huber", "identity", torch.tensor([10.0]), zero)

    assert near.item() == pytest.approx(0.125)
    assert far.item() == pytest.approx(9.5)


@given(st.floats(-12, -1e-3), st.sampled_from([0.0, 1.0]))
def test_bce_of_a_log_probability_is_bce_of_the_probability(log_p, label):
    log_probability = torch.tensor([log_p], dtype=torch.float64)
    labels = torch.tensor([label], dtype=torch.float64)

    expected = functional.binary_cross_entropy(log_probability.exp(), labels)

    assert bce_with_log_probability(log_probability, labels).item() == pytest.approx(
        expected.item(), rel=1e-9
    )


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("a", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("b", [-50.0, 0.0, 50.0])
def test_bce_of_a_product_is_stable_where_logits_are_large(a, b, label):
    def loss_and_gradient(dtype):
        logits = torch.tensor([a, b], dtype=dtype, requires_grad=True)
        log_p = functional.logsigmoid(logits).sum().reshape(1)
        loss = bce_with_log_probability(log_p, torch.tensor([label], dtype=dtype))
        loss.sum().backward()
        assert logits.grad is not None
        return loss.item(), *logits.grad.tolist()

    single, double = loss_and_gradient(torch.float32), loss_and_gradient(torch.float64)

    assert all(math.isfinite(value) for value in single)
    assert single == pytest.approx(double, rel=1e-4, abs=1e-6)


def test_certain_and_wrong_log_probability_has_a_finite_loss():
    loss = bce_with_log_probability(torch.zeros(1), torch.zeros(1))

    assert 80 < loss.item() < 100


def test_task_weights_decay_with_the_epoch():
    tasks = [CLICK, Task(name="like", kind="binary", weight=2.0, weight_decay=0.5)]

    assert task_weights(tasks).tolist() == [1, 2]
    assert task_weights(tasks, epoch=3).tolist() == [1, 0.25]


def test_row_of_weight_two_counts_like_two_rows():
    logit, label = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0])
    behaviours = {"like": torch.tensor([1.0, NAN, 0.0])}

    task = CLICK.model_copy(update={"behaviour_weights": {"like": 1.0}})
    (weighted,) = task_losses(logit[:, None], {"click": label, **behaviours}, [task], ["sigmoid"])

    twice = torch.tensor([0, 0, 1, 2])
    expected = functional.binary_cross_entropy_with_logits(logit[twice], label[twice])
    torch.testing.assert_close(weighted, expected)


def test_reweighted_task_counts_rows_of_its_sample_space_only():
    task = LIKE.model_copy(update={"behaviour_weights": {"dwell": 0.5}})
    logit = torch.tensor([0.3, 5.0, -1.0, 7.0])

    (loss,) = task_losses(logit[:, None], LABELS, [task], ["sigmoid"])

    rows = functional.binary_cross_entropy_with_logits(
        logit[[0, 2]], torch.tensor([1.0, 0.0]), reduction="none"
    )
    torch.testing.assert_close(loss, (rows * torch.tensor([7.0, 2.5])).sum() / 9.5)


def test_undefined_label_without_sample_space_has_no_effect():
    outputs = torch.zeros(3, 1, requires_grad=True)

    (loss,) = task_losses(outputs, {"click": torch.tensor([1.0, NAN, 1.0])}, [CLICK], ["sigmoid"])
    loss.backward()

    assert loss.item() == pytest.approx(math.log(2))
    assert outputs.grad is not None
    assert outputs.grad[1] == 0


def test_product_is_defined_where_both_its_labels_are():
    labels = {"click": torch.tensor([1.0, 1.0, 0.0, NAN]), "like": torch.tensor([1.0, NAN, NAN, 1])}

    label, inside = target(LIKE, "exp", labels)

    assert inside.tolist() == [True, False, True, False]
    assert label[inside].tolist() == [1, 0]
