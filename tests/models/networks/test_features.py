"""Values become columns: unknown ids, empty lists, shared tables, the order of columns."""

import pytest
import torch

from models.networks.config import DenseFeature, IdFeature, IdListFeature
from models.networks.features import InputColumns
from tests.models.cases import FEATURES, WIDTH, values


def history(**changes):
    fields = {"side": "user", "vocabulary_size": 4, "embedding_dim": 3, "max_length": 4}
    return IdListFeature(name="history", **(fields | changes))


def item(**changes):
    fields = {"side": "candidate", "vocabulary_size": 4, "embedding_dim": 3}
    return IdFeature(name="item", **(fields | changes))


def test_columns_stand_dense_first_then_ids_then_lists():
    columns = InputColumns(FEATURES)
    user, candidate, _ = values(3, 5)
    u, c = columns(user, candidate)
    assert (columns.user.width, columns.candidate.width) == (11, 9)
    assert u.shape == (3, 11)
    assert c.shape == (5, 9)
    assert columns.user.width + columns.candidate.width == WIDTH
    assert torch.equal(u[:, :3], user["age"])
    assert torch.equal(c[:, :1], candidate["price"])


def test_every_id_finds_its_own_row():
    features = [
        IdFeature(name=name, side="candidate", vocabulary_size=size, embedding_dim=3)
        for name, size in (("a", 5), ("b", 2), ("c", 9))
    ]
    columns = InputColumns(features)
    (table,) = columns.tables
    assert table.shape == (16, 3)
    ids = {"a": torch.tensor([0, 4]), "b": torch.tensor([1, 0]), "c": torch.tensor([8, 3])}
    _, c = columns({}, ids)
    rows = torch.tensor([[0, 5 + 1, 7 + 8], [4, 5 + 0, 7 + 3]])
    assert torch.equal(c, table[rows].flatten(1))


@pytest.mark.parametrize("unknown", [4, 5, -1, -7, 2**62, -(2**63)])
def test_id_outside_the_vocabulary_is_unknown(unknown):
    columns = InputColumns([item(), history(pooling="sum")])
    ids = {"item": torch.tensor([unknown, 0])}
    lists = {"history": torch.tensor([[unknown, -1, -1, -1], [0, -1, -1, -1]])}
    u, c = columns(lists, ids)
    assert torch.equal(c[0], c[1])
    if unknown == -1:  # in a list it is padding
        assert torch.equal(u[0], torch.zeros(3))
    else:
        assert torch.equal(u[0], u[1])


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_lists_pool_what_is_present(pooling):
    columns = InputColumns([history(pooling=pooling)])
    (table,) = columns.tables
    lists = torch.tensor([[1, 2, 2, 3], [3, -1, -1, -1], [-1, 2, -1, 1], [-1, -1, -1, -1]])
    u, _ = columns({"history": lists}, {})
    pooled = [table[list(ids)] for ids in ([1, 2, 2, 3], [3], [2, 1], [])]
    expected = [p.sum(0) / (max(1, len(p)) if pooling == "mean" else 1) for p in pooled]
    torch.testing.assert_close(u, torch.stack(expected))
    assert torch.equal(u[3], torch.zeros(3))


def test_empty_list_has_no_gradient_and_no_nan():
    columns = InputColumns([history()])
    u, _ = columns({"history": torch.full((2, 4), -1)}, {})
    u.sum().backward()
    assert columns.tables[0].grad is not None
    assert torch.equal(columns.tables[0].grad, torch.zeros(4, 3))


def test_lists_of_one_table_do_not_mix():
    features = [history(), history(max_length=2, pooling="sum").model_copy(update={"name": "last"})]
    columns = InputColumns(features)
    (table,) = columns.tables
    lists = {"history": torch.tensor([[1, 3, -1, -1]]), "last": torch.tensor([[2, 2]])}
    u, _ = columns(lists, {})
    expected = torch.cat([(table[1] + table[3]) / 2, 2 * table[4 + 2]])
    torch.testing.assert_close(u, expected.unsqueeze(0))


def test_shared_table_is_one_table():
    columns = InputColumns([history(shared_with="item"), item()])
    assert [table.shape for table in columns.parameters()] == [(4, 3)]
    u, c = columns({"history": torch.tensor([[2, -1, -1, -1]])}, {"item": torch.tensor([2])})
    assert torch.equal(u, c)


def test_pooling_in_float64_is_exact():
    columns = InputColumns([history()]).double()
    u, _ = columns({"history": torch.tensor([[1, 2, 3, -1]])}, {})
    expected = columns.tables[0][[1, 2, 3]].mean(0, keepdim=True)
    torch.testing.assert_close(u, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([item(), item()], "features: the name 'item' is used twice"),
        ([item(), DenseFeature(name="item", side="user")], "the name 'item' is used twice"),
        ([history(shared_with="nothing")], "shared_with: 'nothing' of 'history' has no table"),
        ([history(shared_with="history")], "shared_with: 'history' of 'history' has no table"),
        (
            [history(shared_with="item"), item(shared_with="history")],
            "shared_with: 'item' of 'history' has no table",
        ),
        ([history(shared_with="item", embedding_dim=2), item()], "must agree in vocabulary_size"),
        ([history(shared_with="item", vocabulary_size=5), item()], "must agree in vocabulary_size"),
    ],
)
def test_inconsistent_features_are_named(features, message):
    with pytest.raises(ValueError, match=message):
        InputColumns(features)
