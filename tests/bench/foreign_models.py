"""Import models of public libraries from drafts: `python -m tests.bench.foreign_models`.

Each model is built with a few features, its weights are drawn, and it is traced as its library
calls it. `gatehouse import --draft` describes the file, and the draft is imported as it is. Needs
torch-rechub and deepctr-torch, perhaps in a folder of their own (`pip install --target DIR
torch-rechub deepctr-torch`, then `PYTHONPATH=.:DIR`).
"""

import argparse
import io
import tomllib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import ArtifactInvalid
from app.importing.description import validated
from app.importing.draft import draft
from app.importing.trial import examine
from tests.bench.prerequisites import require_packages

Example = tuple[Any, ...]
ROWS, LENGTH = 4, 10


def ids(*shape: int) -> Tensor:
    """Ids that every table has."""
    return torch.ones(ROWS, *shape, dtype=torch.int64)


def rechub_sequences(name: str) -> tuple[nn.Module, Example]:
    """DIN or BST of torch-rechub: two histories, targets that share their tables, a user."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models import ranking

    targets = [SparseFeature(column, 50, embed_dim=8) for column in ("target_item", "target cate")]
    histories = [
        SequenceFeature(
            column, 50, pooling="concat", embed_dim=8, shared_with=target.name, padding_idx=0
        )
        for column, target in zip(("hist_item", "hist_cate"), targets, strict=True)
    ]
    options: dict[str, Any] = {"mlp_params": {"dims": [32, 16]}}
    options |= (
        {"attention_mlp_params": {"dims": [16, 8]}} if name == "DIN" else {"nhead": 2, "dropout": 0}
    )
    model = getattr(ranking, name)(
        features=[SparseFeature("user_id", 30, embed_dim=8)],
        history_features=histories,
        target_features=targets,
        **options,
    )
    example = {"user_id": ids(), "target_item": ids(), "target cate": ids()}
    return model, (example | {"hist_item": ids(LENGTH), "hist_cate": ids(LENGTH)},)


def rechub_tasks(name: str) -> tuple[nn.Module, Example]:
    """A multi-task model of torch-rechub: a list, ids and a number."""
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models import multi_task

    features = [
        SparseFeature("user id", 30, embed_dim=8),
        SparseFeature("item", 50, embed_dim=8),
        DenseFeature("price"),
        SequenceFeature("tags", 20, pooling="mean", embed_dim=8),
    ]
    sizes: dict[str, Any] = {"expert_params": {"dims": [16]}}
    if name == "PLE":
        sizes |= {"n_level": 2, "n_expert_specific": 1, "n_expert_shared": 2}
    elif name == "MMOE":
        sizes |= {"n_expert": 3}
    else:
        sizes = {"bottom_params": {"dims": [16]}}
    towers = [{"dims": [8]}, {"dims": [8]}]
    model = getattr(multi_task, name)(
        features, task_types=["classification"] * 2, tower_params_list=towers, **sizes
    )
    example = {"user id": ids(), "item": ids(), "price": torch.ones(ROWS), "tags": ids(LENGTH)}
    return model, (example,)


def deepctr(name: str) -> tuple[nn.Module, Example]:
    """A model of DeepCTR-Torch: one matrix of ids, numbers, a history, and its length."""
    from deepctr_torch import models
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    columns: list[Any] = [
        SparseFeat("user", 30, embedding_dim=8),
        SparseFeat("item", 40, embedding_dim=8),
        DenseFeat("numbers", 3),
    ]
    width = 5
    if name == "DIN":
        history = SparseFeat(
            "hist_item", vocabulary_size=40, embedding_dim=8, embedding_name="item"
        )
        columns.append(VarLenSparseFeat(history, maxlen=6, length_name="seq_length"))
        model, width = models.DIN(columns, ["item"], att_weight_normalization=True), 12
    elif name == "MMOE":
        model = models.MMOE(
            columns, task_types=("binary", "binary"), task_names=("click", "like"), device="cpu"
        )
    else:
        model = getattr(models, name)(columns, columns, device="cpu")
    return model, (torch.ones(ROWS, width),)


MODELS: dict[str, Callable[[str], tuple[nn.Module, Example]]] = {
    "torch-rechub DIN": rechub_sequences,
    "torch-rechub BST": rechub_sequences,
    "torch-rechub SharedBottom": rechub_tasks,
    "torch-rechub MMOE": rechub_tasks,
    "torch-rechub PLE": rechub_tasks,
    "DeepCTR-Torch DIN": deepctr,
    "DeepCTR-Torch DeepFM": deepctr,
    "DeepCTR-Torch DCN": deepctr,
    "DeepCTR-Torch MMOE": deepctr,
}


def main() -> None:
    """Print a table of all models in Markdown."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    require_packages("torch_rechub", "deepctr_torch")
    warnings.simplefilter("ignore")
    print("| model | features found | imported from its draft |\n| --- | --- | --- |", flush=True)
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model, example = make(name.split()[1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)  # as after training: fresh tables hardly matter
        traced = torch.jit.trace(model.eval(), example, strict=False, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        print(f"| {name} | {' | '.join(tried(buffer.getvalue()))} |", flush=True)


def tried(content: bytes) -> tuple[str, str]:
    """Draft the description of a module and import it: the features, and yes or the reason."""
    try:
        description = tomllib.loads(draft(content, "model"))
        examine(content, validated(description, ""))
    except ArtifactInvalid as error:
        return "", str(error)
    kinds = [feature["kind"] for feature in description["inputs"]]
    derived = sum(not isinstance(part, str) for a in description["arguments"] for part in a["pack"])
    found = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join(found) + (f", {derived} derived" if derived else ""), "yes"


if __name__ == "__main__":
    main()
