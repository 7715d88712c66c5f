"""Triton's python backend: each instance is a process; the dynamic batcher joins requests."""

import triton_python_backend_utils as pb_utils
from reference import Reference


class TritonPythonModel:
    """Scores the requests of a batch with one call."""

    def initialize(self, args) -> None:  # noqa: ARG002
        """Load the model."""
        self._reference = Reference()

    def execute(self, requests):
        """Return a response for each request."""
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("scores", scores)])
            for scores in self._reference.score(rows)
        ]
