"""Programs that speak to Triton work against this server unchanged: the real client, both kinds."""

import asyncio
import gzip
import shutil
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from app.artifacts.encoding import Hashed, Listed, write_vocabulary
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.publish import publish
from app.artifacts.store import Store
from tests.protocol.open_inference.tensors import inputs_of
from tests.support.builders import Request, batch, description, scripted
from tests.support.server import Server, running_server, wait_for

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
aio = pytest.importorskip("tritonclient.http.aio")

InferenceServerException = triton.InferenceServerException

pytestmark = pytest.mark.slow

BRANDS = [f"brand-{i}" for i in range(9)] + ["é"]
FILE = "vocabulary.item.jsonl"
TASKS = ["click", "like", "dwell"]
DTYPES = {"FP32": np.float32, "INT64": np.int64, "BYTES": np.object_}


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory) -> Iterator[Server]:
    """A server with `tiny`, and with `brands`, whose ids are strings."""
    store = tmp_path_factory.mktemp("triton") / "store"
    shutil.copytree(tiny.folder, store / "tiny" / "1")
    inputs = (
        DenseInput(name="age", side="user"),
        IdListInput(
            name="recent",
            side="user",
            vocabulary_size=12,
            max_length=3,
            encoding=Hashed(buckets=11),
        ),
        IdInput(
            name="item",
            side="candidate",
            vocabulary_size=12,
            encoding=Listed(file=FILE),
            default="",
        ),
        DenseInput(name="quality", side="candidate", dim=2),
    )
    publish(
        Store(store),
        description(name="brands", inputs=inputs),
        scripted(Request()),
        batch(inputs),
        {FILE: write_vocabulary(BRANDS)},
    )
    log = tmp_path_factory.mktemp("triton") / "log"
    with running_server(store, log, "--request-timeout-ms", "30000") as server:
        for model in ("tiny", "brands"):
            wait_for(server, f"/v2/models/{model}/ready")
        yield server


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def tensors(server, model, request):
    """A native request's tensors as arrays: name to datatype and array."""
    card = httpx.get(f"{server.url}/v1/models/{model}").json()
    return {
        tensor.name: (
            tensor.datatype,
            np.array(tensor.values, DTYPES[tensor.datatype]).reshape(tensor.shape),
        )
        for tensor in inputs_of(card["inputs"], request)
    }


def example_of(server, model):
    return httpx.get(f"{server.url}/v1/models/{model}").json()["example_request"]


def infer_inputs(arrays, *, binary=True, library=triton):
    inputs = []
    for name, (datatype, array) in arrays.items():
        inputs.append(library.InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


def native_scores(server, model, request):
    answer = httpx.post(f"{server.url}/v1/models/{model}/score", json=request).json()
    return answer["scores"] | {"rank_score": answer["rank_score"]}


def assert_same(result, native):
    for name, scores in native.items():
        array = result.as_numpy(name)
        assert array.shape == (len(scores), 1)
        assert array.dtype == np.float32
        assert array[:, 0].tolist() == np.float32(scores).tolist()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_scores_are_those_of_the_native_api(server, client, binary, coding):
    request = example_of(server, "tiny")
    arrays = tensors(server, "tiny", request)
    outputs = [triton.InferRequestedOutput(n, binary_data=binary) for n in [*TASKS, "rank_score"]]
    result = client.infer(
        "tiny",
        infer_inputs(arrays, binary=binary),
        outputs=outputs,
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
        request_id="seven",
    )
    assert_same(result, native_scores(server, "tiny", request))
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", "tiny", "1")


def test_large_response_is_compressed_and_read_by_the_client(server, client):
    request = example_of(server, "tiny")
    rows = 2000
    request["candidates"] = {name: v[:1] * rows for name, v in request["candidates"].items()}
    inputs = infer_inputs(tensors(server, "tiny", request))
    result = client.infer("tiny", inputs, response_compression_algorithm="gzip")
    plain = client.infer("tiny", inputs)
    for name in TASKS:
        assert np.array_equal(result.as_numpy(name), plain.as_numpy(name))
    body, length = client.generate_request_body(inputs)
    headers = {
        "accept-encoding": "gzip",
        "content-encoding": "gzip",
        "inference-header-content-length": str(length),
    }
    url = f"{server.url}/v2/models/tiny/infer"
    response = httpx.post(url, content=gzip.compress(body), headers=headers)
    assert response.headers["content-encoding"] == "gzip"
    length = int(response.headers["inference-header-content-length"])
    parsed = client.parse_response_body(response.content, header_length=length)
    assert np.array_equal(parsed.as_numpy("click"), plain.as_numpy("click"))


def test_outputs_are_chosen_each_in_its_own_form(server, client):
    inputs = infer_inputs(tensors(server, "tiny", example_of(server, "tiny")))
    everything = client.infer("tiny", inputs)
    outputs = [
        triton.InferRequestedOutput("dwell", binary_data=False),
        triton.InferRequestedOutput("rank_score", binary_data=True),
    ]
    chosen = client.infer("tiny", inputs, outputs=outputs)
    for name in ("dwell", "rank_score"):
        assert np.array_equal(chosen.as_numpy(name), everything.as_numpy(name))
    assert chosen.as_numpy("click") is None


def test_single_user_row_equals_one_row_per_candidate(server, client):
    request = example_of(server, "tiny")
    once = tensors(server, "tiny", request)
    tiled = {
        name: (datatype, np.repeat(array, 3, axis=0) if len(array) == 1 else array)
        for name, (datatype, array) in once.items()
    }
    assert_same(client.infer("tiny", infer_inputs(tiled)), native_scores(server, "tiny", request))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_string_ids_are_bytes(server, client, binary):
    request = {
        "user": {"age": 30.0, "recent": ["brand-1", "日本"]},
        "candidates": {"item": ["é", "brand-3", "nobody"], "quality": [[1.0, 2.0]] * 3},
    }
    arrays = tensors(server, "brands", request)
    assert arrays["item"][0] == arrays["recent"][0] == "BYTES"
    native = native_scores(server, "brands", request)
    assert len(set(native["click"])) == 3
    assert_same(client.infer("brands", infer_inputs(arrays, binary=binary)), native)
    short = arrays | {"recent": ("BYTES", arrays["recent"][1][:, :2])}
    assert_same(client.infer("brands", infer_inputs(short, binary=binary)), native)
    del arrays["item"], request["candidates"]["item"]
    native = native_scores(server, "brands", request)
    assert_same(client.infer("brands", infer_inputs(arrays, binary=binary)), native)


def test_halves_and_short_integers_are_widened(server, client):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    request = example_of(server, "tiny")
    request["candidates"]["quality"] = [[1.0, -2.5], [0.25, 3.0], [4.0, 128.0]]
    arrays = tensors(server, "tiny", request)
    native = native_scores(server, "tiny", request)
    for datatype, dtype in (("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        quality = (datatype, arrays["quality"][1].astype(dtype))
        assert_same(client.infer("tiny", infer_inputs(arrays | {"quality": quality})), native)
    ids = ("INT32", arrays["item_id"][1].astype(np.int32))
    assert_same(client.infer("tiny", infer_inputs(arrays | {"item_id": ids})), native)


def test_priority_timeout_and_parameters_are_taken(server, client):
    request = example_of(server, "tiny")
    inputs = infer_inputs(tensors(server, "tiny", request))
    result = client.infer(
        "tiny", inputs, priority=1, timeout=20_000_000, parameters={"weights.click": 0.5}
    )
    request["ranking"] = {"weights": {"click": 0.5}}
    assert_same(result, native_scores(server, "tiny", request))


def test_errors_have_their_status_and_name_the_input_and_the_rule(server, client):
    arrays = tensors(server, "tiny", example_of(server, "tiny"))
    wide = arrays | {"quality": ("FP32", np.ones((3, 5), np.float32))}
    unsigned = arrays | {"quality": ("UINT8", np.ones((3, 2), np.uint8))}
    for arguments, status, message in (
        ({"inputs": infer_inputs(wide)}, "422", "quality must have shape [n, 2]"),
        ({"inputs": infer_inputs(unsigned)}, "422", "quality cannot be UINT8"),
        ({"model_name": "nobody"}, "404", 'model "nobody" not found; active models: '),
        ({"model_version": "9"}, "404", 'version 9 of model "'),
        ({"sequence_id": 5}, "422", "sequences are not supported"),
        (
            {"outputs": [triton.InferRequestedOutput("click", class_count=2)]},
            "422",
            "classification is not supported",
        ),
        ({"timeout": 1}, ("503", "504"), "deadline"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(**({"model_name": "tiny", "inputs": infer_inputs(arrays)} | arguments))
        assert caught.value.status() in status
        assert message in caught.value.message()


def test_the_server_and_its_models_describe_themselves(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nobody")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("brands", "1")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [
        {"name": "age", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "recent", "datatype": "BYTES", "shape": [-1, 3]},
        {"name": "item", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "quality", "datatype": "FP32", "shape": [-1, 2]},
    ]
    config = client.get_model_config("brands")
    assert config["max_batch_size"] > 1
    assert [tensor["dims"] for tensor in config["input"]] == [[1], [3], [1], [2]]
    assert [tensor["optional"] for tensor in config["input"]] == [False, False, True, False]
    index = client.get_model_repository_index()
    assert {(entry["name"], entry["state"]) for entry in index} == {
        ("brands", "READY"),
        ("tiny", "READY"),
    }


def test_statistics_grow_with_requests(server, client):
    inputs = infer_inputs(tensors(server, "tiny", example_of(server, "tiny")))

    def statistics():
        (one,) = client.get_inference_statistics("tiny")["model_stats"]
        return one

    before = statistics()
    for _ in range(3):
        client.infer("tiny", inputs)
    with pytest.raises(InferenceServerException):
        client.infer("tiny", inputs[:2])
    after = statistics()
    assert after["inference_count"] == before["inference_count"] + 9
    assert after["execution_count"] == before["execution_count"] + 3
    for name, count in (("success", 3), ("fail", 1), ("queue", 3), ("compute_infer", 3)):
        grown, was = after["inference_stats"][name], before["inference_stats"][name]
        assert grown["count"] == was["count"] + count
        assert name == "queue" or grown["ns"] > was["ns"]  # an idle lane takes it at once
    assert after["last_inference"] > 1e12
    assert len(client.get_inference_statistics()["model_stats"]) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.get_trace_settings(),
        lambda c: c.get_trace_settings("tiny"),
        lambda c: c.get_log_settings(),
        lambda c: c.get_system_shared_memory_status(),
        lambda c: c.register_cuda_shared_memory("r", b"", 0, 8),
        lambda c: c.load_model("tiny"),
        lambda c: c.unload_model("tiny"),
    ],
)
def test_extensions_that_are_not_supported_are_refused_as_such(client, call):
    with pytest.raises(InferenceServerException, match="not supported") as caught:
        call(client)
    assert caught.value.status() == "404"


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
async def test_asyncio_client_gets_equal_results(server, binary, coding):
    request = example_of(server, "tiny")
    arrays = tensors(server, "tiny", request)
    native = native_scores(server, "tiny", request)
    outputs = [aio.InferRequestedOutput(n, binary_data=binary) for n in [*TASKS, "rank_score"]]
    async with aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert await client.is_model_ready("tiny")
        results = await asyncio.gather(
            *(
                client.infer(
                    "tiny",
                    infer_inputs(arrays, binary=binary, library=aio),
                    outputs=outputs,
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                for _ in range(8)
            )
        )
        with pytest.raises(InferenceServerException, match="not found; active models: "):
            await client.infer("nobody", infer_inputs(arrays, library=aio))
    for result in results:  # they kept each other company in batches, which may change a last bit
        for name, scores in native.items():
            assert result.as_numpy(name)[:, 0] == pytest.approx(scores, rel=1e-5)
