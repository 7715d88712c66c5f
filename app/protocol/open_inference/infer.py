"""`POST /v2/models/{model}/infer`: scoring calls as the Open Inference Protocol writes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.engine.request import RequestFeatures, RequestOptions
from app.errors import FieldError, InvalidRequest, MalformedBody
from app.protocol.open_inference.document import decode_document
from app.protocol.open_inference.inputs import read_inputs
from app.protocol.open_inference.outputs import Output, read_outputs, write_outputs
from app.protocol.open_inference.parameters import Parameters, read_parameters
from app.protocol.tensors import encode_tensors
from app.protocol.validation import ValidationReport
from app.ranking.ranker import RankingOptions
from app.scoring.score import Call, Headers
from app.scoring.service import Answer

ROUTES = {
    "/v2/models/{model}/infer": "Score with a model",
    "/v2/models/{model}/versions/{version}/infer": "Score with one version of a model",
}
HEADER_LENGTH = b"inference-header-content-length"
_MEMBERS = frozenset(("id", "parameters", "inputs", "outputs", "model_name", "model_version"))
_JSON = ((b"content-type", b"application/json"),)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a caller asked for, checked.

    Attributes:
        features: the user's and the candidates' columns.
        wanted: how they are to be ranked.
        request_id: comes back in the answer; None where there is none.
        outputs: what the answer is to hold.
    """

    features: RequestFeatures
    wanted: RankingOptions
    request_id: str | None
    outputs: Sequence[Output]


class OpenInference:
    """Scoring calls as Triton's clients make them."""

    path = re.compile(
        r"/v2/models/(?P<model>[^/]+)/(?:versions/(?P<version>[0-9]{1,16})/)?infer",
    )
    # Clients that send binary tensors say octet-stream or nothing; aiohttp says it of JSON, too.
    media_types = frozenset((b"application/json", b"application/octet-stream"))

    def route(self, name: str | None, version: str | None) -> str:
        """Return the template of a path."""
        assert name is not None
        return f"/v2/models/{{model}}{'/versions/{version}' if version else ''}/infer"

    def decode(self, body: bytes, call: Call) -> tuple[object, memoryview]:
        """Return the parsed JSON document, and what follows it."""
        length = _header_length(call.headers, len(body))
        document = decode_document(
            body if length is None else body[:length],
            call.model.manifest,
            max_candidates=call.limits.max_candidates,
        )
        return document, memoryview(b"" if length is None else body)[length or 0 :]

    def read(
        self, document: tuple[object, memoryview], call: Call
    ) -> tuple[InferRequest, RequestOptions]:
        """Check a document and its tensors; its parameters win over its headers."""
        request, binary = document
        if not isinstance(request, dict):
            raise InvalidRequest([FieldError("", "must be an object")])
        manifest = call.model.manifest
        report = ValidationReport()
        report.unknown_keys("", request, _MEMBERS)
        request_id = request.get("id")
        if request_id is not None and not isinstance(request_id, str):
            report.add("/id", "must be a string")
        parameters = read_parameters(request.get("parameters"), call.rankers, report)
        outputs = read_outputs(
            request.get("outputs"), manifest, report, is_binary=parameters.is_binary
        )
        tensors, rows = read_inputs(
            request.get("inputs"),
            binary,
            manifest,
            report,
            max_candidates=call.limits.max_candidates,
        )
        features = encode_tensors(
            manifest, tensors, report, rows=rows, vocabularies=call.model.vocabularies
        )
        report.raise_any()
        asked = InferRequest(features, parameters.wanted, request_id, outputs)
        return asked, _terms(parameters, call)

    def write(self, request: InferRequest, answer: Answer, call: Call) -> tuple[Headers, bytes]:
        """Return the outputs that were asked for, each in JSON or binary."""
        head, binary = write_outputs(
            call.model.manifest, request.request_id, request.outputs, answer
        )
        if binary is None:
            return _JSON, head
        headers = (
            (b"content-type", b"application/octet-stream"),
            (HEADER_LENGTH, b"%d" % len(head)),
        )
        return headers, head + binary


def _header_length(headers: Headers, body_length: int) -> int | None:
    for name, value in headers:
        if name == HEADER_LENGTH:
            if value.isdigit() and len(value) <= 18 and int(value) <= body_length:
                return int(value)
            raise MalformedBody(
                "header inference-header-content-length must be the length of the JSON document "
                "that the body begins with, in bytes"
            )
    return None


def _terms(parameters: Parameters, call: Call) -> RequestOptions:
    terms = call.terms
    if parameters.timeout_s is not None:
        terms = replace(terms, deadline=call.arrival + parameters.timeout_s)
    if parameters.priority is not None:
        terms = replace(terms, priority=parameters.priority)
    return terms
