"""ESMM multiplies the probabilities of a chain of behaviours, in logarithms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.networks.build import build
from models.networks.config import NetworkConfig, Task, links
from models.networks.esmm import ESMM
from models.networks.features import Rows
from tests.models.cases import FEATURES, small, tasks, values

X = Rows(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))


class Constant(nn.Module):
    """A body of given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Rows) -> Tensor:  # noqa: ARG002
        return self.logits

    def gate_weights(self, x: Rows) -> list[Tensor]:  # noqa: ARG002
        return []

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        pass


def test_the_conversion_column_is_the_logarithm_of_the_product():
    logits = torch.randn(64, 4, dtype=torch.float64)
    outputs = ESMM(Constant(logits), [None, 0, None, 0])(X)
    assert torch.equal(outputs[:, [0, 2]], logits[:, [0, 2]])
    p = logits.sigmoid()
    torch.testing.assert_close(outputs[:, 1].exp(), p[:, 0] * p[:, 1], rtol=1e-12, atol=0)
    torch.testing.assert_close(outputs[:, 3].exp(), p[:, 0] * p[:, 3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("body", ["single_task", "shared_bottom", "moe", "mmoe", "cgc", "ple"])
def test_conversion_is_never_likelier_than_its_click(body):
    network = build(small("esmm", esmm_body=body), FEATURES, tasks(3), seed=1)
    outputs = network(*values(3, 257))
    assert (outputs[:, 1].exp() <= outputs[:, 0].sigmoid()).all()


@pytest.mark.parametrize("click", [-200.0, -50.0, 50.0, 200.0])
@pytest.mark.parametrize("conversion", [-200.0, -50.0, 50.0, 200.0])
def test_extreme_logits_keep_value_and_gradient(click, conversion):
    body = Constant(torch.tensor([[click, conversion]]))
    output = ESMM(body, [None, 0])(X)[0, 1]
    expected = sum(min(logit, 0.0) for logit in (click, conversion))
    assert output.item() == pytest.approx(expected, abs=1e-6)
    output.backward()
    assert body.logits.grad is not None
    steps = [[1.0 if logit < 0 else 0.0 for logit in (click, conversion)]]
    torch.testing.assert_close(body.logits.grad, torch.tensor(steps), rtol=0, atol=1e-6)


def test_the_links_say_which_columns_are_log_probabilities():
    assert links(small("esmm"), tasks(4)) == ("sigmoid", "exp", "exp", "sigmoid")
    assert links(small("ple"), tasks(4)) == ("sigmoid", "sigmoid", "exp", "sigmoid")


@pytest.mark.parametrize(
    ("task_list", "message"),
    [
        (tasks(1), "esmm needs a binary task whose sample_space is another"),
        (tasks(4)[2:], "esmm needs a binary task whose sample_space is another"),
        (
            [*tasks(2), Task(name="share", kind="binary", sample_space="like")],
            "'like', the sample space of 'share', has a sample space itself",
        ),
    ],
)
def test_invalid_sample_space_chain_is_refused(task_list: Any, message: str):
    with pytest.raises(ValueError, match=message):
        build(NetworkConfig(architecture="esmm"), FEATURES, task_list)
