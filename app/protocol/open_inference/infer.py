"""`POST /v2/models/{model}/infer`: the dialect of the Open Inference Protocol."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import ModelTables
from app.engine.request import TableUse
from app.errors import FieldError, InvalidRequest, MalformedBody
from app.protocol.dialect import Content, Headers, ParseContext, ParsedRequest
from app.protocol.open_inference.document import decode_document
from app.protocol.open_inference.inputs import InputHead, read_heads, read_tensors
from app.protocol.open_inference.outputs import Output, binary_outputs, read_outputs, write_outputs
from app.protocol.open_inference.parameters import Parameters, read_parameters
from app.protocol.sent_ids import ids_of_tensors
from app.protocol.table_features import routing_key, spread_request
from app.protocol.tensors import encode_tensors
from app.protocol.validation import ValidationReport
from app.ranking.batch import RankedRequest
from app.ranking.policies import ModelPolicies

ROUTES = {
    "/v2/models/{model}/infer": "Score with a model",
    "/v2/models/{model}/versions/{version}/infer": "Score with one version of a model",
}
HEADER_LENGTH = b"inference-header-content-length"
_MEMBERS = frozenset(("id", "parameters", "inputs", "outputs", "model_name", "model_version"))
LONGEST_ID = 256  # characters; a response repeats it
_LONGEST_KNOWN = 4096  # bytes
_MOST_KNOWN = 256  # documents
_JSON = b"content-type: application/json\r\n"


class OpenInference:
    """The dialect of Triton's clients."""

    path = re.compile(
        r"/v2/models/(?P<model>[^/]+)/(?:versions/(?P<version>[0-9]{1,16})/)?infer",
    )
    # Clients send binary tensors as octet-stream or without a type; aiohttp sends JSON so, too.
    media_types = frozenset((b"application/json", b"application/octet-stream"))

    def route(self, model: str | None, version: str | None) -> str:
        """Return the template of a path."""
        assert model is not None
        return f"/v2/models/{{model}}{'/versions/{version}' if version else ''}/infer"

    def __init__(self) -> None:
        """Start without known documents."""
        self._documents: dict[bytes, _Document] = {}

    def parse(self, body: bytes, context: ParseContext) -> ParsedRequest:
        """Read a request body, see `Dialect.parse`; its parameters override its headers."""
        length = _header_length(context.headers, len(body))
        text = body if length is None else body[:length]
        binary = memoryview(b"" if length is None else body)[length or 0 :]
        report = ValidationReport()
        document = self._documents.get(text)
        if (
            document is None
            or document.policies is not context.policies
            or document.binary_bytes != len(binary)
            or document.role != context.role
            or document.tables is not context.tables
        ):
            document = _read_document(text, len(binary), context, report)
            if not report.problems:
                self._remember(text, document)
        decoded_at = time.perf_counter()
        tensors = read_tensors(document.inputs, document.rows, binary, report)
        model = context.model
        features = encode_tensors(
            model.manifest,
            tensors,
            report,
            rows=document.rows,
            vocabularies=model.vocabularies,
            tables=context.tables,
        )
        report.raise_any()
        parameters = document.parameters
        parsed = ParsedRequest(
            features,
            parameters.ranking,
            document if features.tables is None else _TableAnswer(document, features.tables),
            decoded_at,
            parameters.timeout_s,
            parameters.priority,
            ids=ids_of_tensors(tensors, model.manifest) if context.keeps_ids else None,
        )
        if context.key_feature:
            key = tensors.get(context.key_feature)
            # As the native API has it: an int or a str.
            sent = None
            if key is not None and key.rows:
                sent = np.asarray(key.values).reshape(-1)[0].item()
            parsed.routing_key = routing_key(sent, context.key_feature, features)
        return parsed

    def _remember(self, text: bytes, document: "_Document") -> None:
        """Keep a document if all its data is binary: clients send the same one again and again."""
        if len(text) > _LONGEST_KNOWN or any(tensor.span is None for tensor in document.inputs):
            return
        if len(self._documents) >= _MOST_KNOWN:
            self._documents.clear()
        self._documents[text] = document


@dataclass(slots=True, eq=False)
class _Document:
    """The checked JSON document of a request; writes the response.

    Attributes:
        manifest: of the model.
        policies: the model's policies when it was read.
        request_id: the request's `id`, which the response repeats.
        parameters: its parameters.
        outputs: the outputs of the response.
        inputs: names, shapes and datatypes of its inputs.
        rows: n, the number of candidates.
        binary_bytes: how many bytes of binary data follow it.
        role: of the version.
        tables: of the version, when it was read.
        response_head: the JSON document of the response, once written, if all outputs are binary.
    """

    manifest: Manifest
    policies: ModelPolicies
    request_id: str | None
    parameters: Parameters
    outputs: Sequence[Output]
    inputs: Sequence[InputHead]
    rows: int
    binary_bytes: int
    role: str
    tables: ModelTables
    response_head: bytes | None = None

    def write(self, ranked: RankedRequest, used: TableUse | None = None) -> Content:
        """Return the outputs that were requested, each in JSON or binary.

        Args:
            ranked: the result.
            used: what the request takes from tables; whether it does depends on the document alone.
        """
        if self.response_head is not None and (used is None or not used.unknown):
            head, binary = self.response_head, binary_outputs(self.manifest, self.outputs, ranked)
        else:
            head, binary = write_outputs(
                self.manifest, self.role, self.request_id, self.outputs, ranked, used
            )
            if not binary:
                return _JSON, head
            if all(output.is_binary for output in self.outputs) and (
                used is None or not used.unknown
            ):
                self.response_head = head
        headers = b"content-type: application/octet-stream\r\n%b: %d\r\n" % (
            HEADER_LENGTH,
            len(head),
        )
        return headers, b"".join((head, *binary))


@dataclass(frozen=True, slots=True)
class _TableAnswer:
    """Writes the response to a request that takes rows of tables."""

    document: _Document
    used: TableUse

    def write(self, ranked: RankedRequest) -> Content:
        """Return the outputs of all candidates; NaN for those that were dropped."""
        return self.document.write(spread_request(self.used, ranked), self.used)


def _read_document(
    text: bytes, binary_bytes: int, context: ParseContext, report: ValidationReport
) -> _Document:
    """Parse and check the JSON document of a request; `report` takes every problem.

    Raises:
        MalformedBody, InvalidRequest, PayloadTooLarge: the rest cannot be read.
    """
    manifest = context.model.manifest
    document = decode_document(text, manifest, max_candidates=context.max_candidates)
    if not isinstance(document, dict):
        raise InvalidRequest([FieldError("", "the body must be an object")])
    report.unknown_members("", document, _MEMBERS)
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        report.add("/id", "must be a string")
    elif request_id is not None and len(request_id) > LONGEST_ID:
        report.add("/id", f"must have at most {LONGEST_ID} characters, has {len(request_id)}")
    parameters = read_parameters(document.get("parameters"), context.policies, report)
    outputs = read_outputs(
        document.get("outputs"), manifest, report, is_binary=parameters.is_binary
    )
    heads, rows = read_heads(
        document.get("inputs"),
        binary_bytes,
        manifest,
        report,
        max_candidates=context.max_candidates,
        tables=context.tables,
    )
    return _Document(
        manifest,
        context.policies,
        request_id,
        parameters,
        outputs,
        heads,
        rows,
        binary_bytes,
        context.role,
        context.tables,
    )


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
