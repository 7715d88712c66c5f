"""The example of the tiny model as tensors."""

import pytest

from tests.protocol.open_inference.tensors import inputs_of


@pytest.fixture
async def card(client):
    """The model card of the tiny model."""
    return (await client.get("/v1/models/tiny")).json()


@pytest.fixture
async def inputs(card, example):
    """The tensors of the example request."""
    return inputs_of(card["inputs"], example)
