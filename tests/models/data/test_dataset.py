import pytest
import torch

from models.data import Dataset


@pytest.fixture
def dataset():
    """Five requests of 3, 1, 4, 2 and 5 rows; every value tells where it belongs."""
    sizes = torch.tensor([3, 1, 4, 2, 5])
    row_to_request = torch.arange(5).repeat_interleave(sizes)
    rows = torch.arange(15)
    return Dataset(
        user={"user_id": torch.arange(5) * 100},
        candidate={"item_id": rows},
        row_to_request=row_to_request,
        labels={"click": rows.float()},
        expected={"click": rows / 2},
        users=torch.arange(5) + 40,
    )


def test_taken_requests_keep_their_rows_and_labels(dataset):
    taken = dataset.take(torch.tensor([4, 1, 0]))

    assert taken.user["user_id"].tolist() == [400, 100, 0]
    assert taken.users.tolist() == [44, 41, 40]
    assert taken.row_to_request.tolist() == [0] * 5 + [1] + [2] * 3
    assert taken.candidate["item_id"].tolist() == [10, 11, 12, 13, 14, 3, 0, 1, 2]
    assert taken.labels["click"].tolist() == taken.candidate["item_id"].tolist()
    assert taken.expected["click"].tolist() == [row / 2 for row in taken.candidate["item_id"]]


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_hold_every_request_once_and_whole(dataset, rows, shuffled):
    shuffle = torch.Generator().manual_seed(1) if shuffled else None
    batches = list(dataset.batches(rows, shuffle))

    users = [user for batch in batches for user in batch.users.tolist()]
    assert sorted(users) == [40, 41, 42, 43, 44]
    assert (users == sorted(users)) is not shuffled
    for batch in batches:
        assert batch.rows < rows + 5
        again = dataset.take(batch.users - 40)
        assert batch.candidate["item_id"].tolist() == again.candidate["item_id"].tolist()
        assert batch.row_to_request.tolist() == again.row_to_request.tolist()


def test_the_same_seed_shuffles_the_same(dataset):
    def order(seed):
        batches = dataset.batches(4, torch.Generator().manual_seed(seed))
        return [batch.users.tolist() for batch in batches]

    assert order(1) == order(1)
    assert order(1) != order(2)
