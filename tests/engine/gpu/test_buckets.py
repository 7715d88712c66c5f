"""Buckets: few shapes, and room for every batch."""

import pytest

from app.engine.gpu.buckets import Bucket, Buckets


def test_rows_double_up_to_the_limit():
    assert Buckets(512).rows == [32, 64, 128, 256, 512]
    assert Buckets(500).rows == [32, 64, 128, 256, 500]
    assert Buckets(20).rows == [20]


def test_each_size_has_two_buckets_the_largest_first():
    assert list(Buckets(64)) == [Bucket(64, 64), Bucket(64, 2), Bucket(32, 32), Bucket(32, 1)]
    assert list(Buckets(1)) == [Bucket(1, 1)]


@pytest.mark.parametrize("limit", [1, 31, 32, 33, 100, 512])
def test_every_batch_gets_the_smallest_bucket_that_fits(limit):
    buckets = Buckets(limit)
    every = list(buckets)
    for rows in range(1, limit + 1):
        for requests in {1, 2, rows // 32, rows // 32 + 1, rows // 2, rows} - {0}:
            if requests > rows:
                continue
            with_room = [b for b in every if b.rows >= rows and b.requests >= requests]
            smallest = min(with_room, key=lambda b: (b.rows, b.requests))
            assert buckets.fit(rows, requests) == smallest
    assert buckets.fit(limit + 1, 1) is None
