"""`POST /v2/models/{model}/infer`: score calls as the Open Inference Protocol writes them."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.artifacts.manifest import Manifest
from app.errors import FieldError, InvalidRequest, MalformedBody
from app.protocol.dialect import Content, Headers, ParseContext, ParsedRequest
from app.protocol.open_inference.document import decode_document
from app.protocol.open_inference.inputs import read_inputs
from app.protocol.open_inference.outputs import Output, read_outputs, write_outputs
from app.protocol.open_inference.parameters import read_parameters
from app.protocol.tensors import encode_tensors
from app.protocol.validation import ValidationReport
from app.ranking.batch import RankedRequest

ROUTES = {
    "/v2/models/{model}/infer": "Score with a model",
    "/v2/models/{model}/versions/{version}/infer": "Score with one version of a model",
}
HEADER_LENGTH = b"inference-header-content-length"
_MEMBERS = frozenset(("id", "parameters", "inputs", "outputs", "model_name", "model_version"))
_JSON = b"content-type: application/json\r\n"


class OpenInference:
    """Score calls as Triton's clients make them."""

    path = re.compile(
        r"/v2/models/(?P<model>[^/]+)/(?:versions/(?P<version>[0-9]{1,18})/)?infer",
    )
    # Clients that send binary tensors say octet-stream or nothing; aiohttp says it of JSON, too.
    media_types = frozenset((b"application/json", b"application/octet-stream"))

    def route(self, model: str | None, version: str | None) -> str:
        """Return the template of a path."""
        assert model is not None
        return f"/v2/models/{{model}}{'/versions/{version}' if version else ''}/infer"

    def parse(self, body: bytes, context: ParseContext) -> ParsedRequest:
        """Read a request body, see `Dialect.parse`; its parameters override its headers."""
        manifest = context.model.manifest
        length = _header_length(context.headers, len(body))
        document = decode_document(
            body if length is None else body[:length],
            manifest,
            max_candidates=context.max_candidates,
        )
        binary = memoryview(b"" if length is None else body)[length or 0 :]
        decoded_at = time.perf_counter()
        if not isinstance(document, dict):
            raise InvalidRequest([FieldError("", "must be an object")])
        report = ValidationReport()
        report.unknown_keys("", document, _MEMBERS)
        request_id = document.get("id")
        if request_id is not None and not isinstance(request_id, str):
            report.add("/id", "must be a string")
        parameters = read_parameters(document.get("parameters"), context.policies, report)
        outputs = read_outputs(
            document.get("outputs"), manifest, report, is_binary=parameters.is_binary
        )
        tensors, rows = read_inputs(
            document.get("inputs"),
            binary,
            manifest,
            report,
            max_candidates=context.max_candidates,
        )
        features = encode_tensors(
            manifest, tensors, report, rows=rows, vocabularies=context.model.vocabularies
        )
        report.raise_any()
        writer = InferResponse(manifest, request_id, outputs)
        return ParsedRequest(
            features,
            parameters.wanted,
            writer,
            decoded_at,
            parameters.timeout_s,
            parameters.priority,
        )


@dataclass(slots=True)
class InferResponse:
    """Writes the outputs that were requested, each in JSON or binary.

    Attributes:
        manifest: of the model.
        request_id: the request's `id`, which the response repeats.
        outputs: what the response holds.
    """

    manifest: Manifest
    request_id: str | None
    outputs: Sequence[Output]

    def write(self, ranked: RankedRequest) -> Content:
        """Return the response's content."""
        head, binary = write_outputs(self.manifest, self.request_id, self.outputs, ranked)
        if binary is None:
            return _JSON, head
        headers = b"content-type: application/octet-stream\r\n%b: %d\r\n" % (
            HEADER_LENGTH,
            len(head),
        )
        return headers, head + binary


def _header_length(headers: Headers, body_length: int) -> int | None:
    value = headers.get(HEADER_LENGTH)
    if value is None:
        return None
    if value.isdigit() and len(value) <= 18 and int(value) <= body_length:
        return int(value)
    raise MalformedBody(
        "header inference-header-content-length must be the length in bytes of the JSON document "
        "that the body begins with"
    )
