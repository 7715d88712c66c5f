"""Export a network as a `torch.export` program, `model.pt2`, next to the TorchScript one.

TorchScript is deprecated upstream. The service still runs `model.ts`; `model.pt2` is for compilers
(AOTInductor) and other runtimes, and gives the same outputs.
"""

import io
from functools import partial

import torch
from torch import Tensor, nn

from app.artifacts.columns import Columns, ModelInputs
from app.errors import ArtifactInvalid

TOLERANCE = 1e-5  # of outputs, relative above 1: fp32 rounding; in bf16 both forms round alike


def exported(network: nn.Module, requests: ModelInputs) -> bytes:
    """Return the content of `model.pt2`, for any number of requests `R` ≥ 1 and rows `B` ≥ 1.

    Args:
        network: in evaluation mode, on the CPU.
        requests: at least two, with at least three rows, for tracing and for the comparison.

    Raises:
        ArtifactInvalid: `torch.export` cannot express the network, or the program gives other
            outputs than the network.
    """
    arguments = _tensors(requests)
    user, candidate, _ = arguments
    R, B = torch.export.Dim("R", min=1), torch.export.Dim("B", min=1)
    shapes = ({name: {0: R} for name in user}, {name: {0: B} for name in candidate}, {0: B})
    try:
        program = torch.export.export(network, arguments, dynamic_shapes=shapes)
    except Exception as error:  # its exceptions have no common base class
        reason = str(error).strip().partition("\n")[0]
        raise ArtifactInvalid(f"torch.export cannot express the network: {reason}") from error
    # Otherwise sample inputs are pickled into the file.
    program._example_inputs = None  # noqa: SLF001
    content = io.BytesIO()
    torch.export.save(program, content)
    _refuse_other_outputs(network, content.getvalue(), requests)
    return content.getvalue()


def _refuse_other_outputs(network: nn.Module, content: bytes, requests: ModelInputs) -> None:
    """Compare the saved program with the network, on all requests together and on each alone."""
    program = torch.export.load(io.BytesIO(content)).module()
    close = partial(torch.allclose, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    with torch.inference_mode():
        for batch in (requests, *requests.requests()):
            arguments = _tensors(batch)
            if not close(program(*arguments), network(*arguments)):
                raise ArtifactInvalid(
                    f"model.pt2 gives other outputs than the network for {batch.rows} rows"
                )


def _tensors(batch: ModelInputs) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    def side(columns: Columns) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    return side(batch.user), side(batch.candidate), torch.from_numpy(batch.row_to_request)
