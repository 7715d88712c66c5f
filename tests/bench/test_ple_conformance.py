"""The conformance table can tell a right PLE from a wrong one."""

import pytest

from tests.bench import ple_conformance as conformance


@pytest.mark.parametrize("proof", conformance.PROOFS.values(), ids=conformance.PROOFS)
def test_our_network_has_every_property(proof):
    assert conformance.verdict(proof, conformance.ours) == "yes"


def test_network_without_a_property_is_told(monkeypatch):
    def raising(shape):
        raise ValueError(shape)

    def absent(shape):
        raise ImportError(shape)

    proof = conformance.last_level_is_private
    assert conformance.verdict(proof, raising) == "**no**"
    assert conformance.verdict(proof, absent) == "–"
    monkeypatch.setattr(conformance, "H", (16, 9))
    count = conformance.parameters_are_those_of_the_formula
    assert conformance.verdict(count, conformance.ours) == "**no**"
