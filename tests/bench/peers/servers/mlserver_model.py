"""MLServer: V2 JSON, adaptive batching, and parallel workers."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from reference import Reference


class Ranking(MLModel):
    """Scores a request; the server's adaptive batching joins requests before."""

    async def load(self) -> bool:
        """Load the model."""
        self._reference = Reference()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the scores."""
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (scores,) = self._reference.score([x])
        output = NumpyCodec.encode_output("scores", scores)
        return InferenceResponse(model_name=self.name, outputs=[output])
