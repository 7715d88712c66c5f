"""Every wrong PLE is seen through, by the proof that is named for its mistake."""

from typing import Any

import pytest

from tests.models import proofs
from tests.models.mutants import (
    equal_initialisation,
    factory,
    loop_over_shared_count,
    no_shared_gate,
    selector_is_the_input,
    shared_gate_sees_shared_experts_only,
    task_count_used_for_shared,
)

KILLED_BY = {
    shared_gate_sees_shared_experts_only: (
        proofs.the_shared_gate_sees_every_expert,
        proofs.earlier_levels_learn_from_every_task,
        proofs.the_parameter_count_is_the_formulas,
    ),
    selector_is_the_input: (proofs.the_second_level_selects_by_the_first_levels_output,),
    no_shared_gate: (
        proofs.the_shared_gate_sees_every_expert,
        proofs.earlier_levels_learn_from_every_task,
        proofs.the_parameter_count_is_the_formulas,
    ),
    task_count_used_for_shared: (
        proofs.the_parameter_count_is_the_formulas,
        proofs.the_shared_gate_sees_every_expert,
    ),
    loop_over_shared_count: (
        proofs.the_parameter_count_is_the_formulas,
        proofs.the_shared_gate_sees_every_expert,
    ),
    equal_initialisation: (proofs.every_expert_is_its_own_draw, proofs.everything_learns),
}
KILLS = [(mutant, proof) for mutant, killers in KILLED_BY.items() for proof in killers]


@pytest.mark.parametrize(
    ("mutant", "proof"),
    KILLS,
    ids=[f"{mutant.__name__.rpartition('.')[2]}-{proof.__name__}" for mutant, proof in KILLS],
)
def test_wrong_ple_fails_a_proof(mutant: Any, proof: Any):
    with pytest.raises(AssertionError):
        proof(factory(mutant.Body))
