"""Programs: a module is called as its manifest says, and its outputs become scores."""

from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import IdInput, IdListInput
from app.artifacts.manifest import Argument, Derived, Output, RowsCall, TaskOutput
from app.artifacts.program import Program, scores
from tests.support.builders import Request, batch, program, task

FEATURES = ("age", "recent", "item", "quality")


def rows_program(
    module: nn.Module, *arguments: Argument, style: Literal["positional", "dict"] = "positional"
) -> Program:
    return program(module, call=RowsCall(style=style, arguments=arguments))


def packed(name: str, *pack: str, dtype: Any = "float32", rank: Any = 2) -> Argument:
    return Argument(name=name, pack=pack, dtype=dtype, rank=rank)


def returning(module: nn.Module, *outputs: Output) -> Program:
    tasks = tuple(task(f"t{k}", output=output) for k, output in enumerate(outputs))
    return program(module, tasks=tasks, ranking={"weights": {"t0": 1.0}})


def tiled(requests: ModelInputs) -> dict[str, Any]:
    user = {name: column[requests.row_to_request] for name, column in requests.user.items()}
    return {**user, **requests.candidate}


def test_request_call_gets_user_rows_once_and_row_to_request():
    class Seen(nn.Module):
        def forward(
            self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
        ) -> Tensor:
            users = torch.full_like(row_to_request, user["age"].size(0))
            return torch.stack([users + 10 * row_to_request, candidate["item"]], dim=1)

    requests = batch(sizes=(2, 1))
    raw = program(Seen()).run(requests)
    np.testing.assert_array_equal(raw[:, 0], [2, 2, 12])
    np.testing.assert_array_equal(raw[:, 1], requests.candidate["item"])
    assert raw.dtype == np.float32


def test_request_call_computes_the_outputs_of_the_module():
    requests = batch()
    raw = program(Request()).run(requests)
    one = tiled(requests)
    click = 0.01 * one["age"][:, 0] + 0.1 * (one["recent"] >= 0).sum(1) - 0.1 * one["item"]
    np.testing.assert_allclose(raw[:, 0], click, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(raw[:, 1], one["quality"].sum(1), rtol=1e-6)


class Widths(nn.Module):
    """[B, 2]: the sum of a matrix and of another, and how wide they are."""

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        assert ids.dtype == torch.int64
        return torch.stack([x.sum(1) + 100 * x.size(1), ids.sum(1) + 100 * ids.size(1)], dim=1)


def test_rows_call_repeats_user_features_and_packs_columns_side_by_side():
    requests = batch()
    raw = rows_program(
        Widths(), packed("x", "quality", "age"), packed("ids", "recent", "item", dtype="int64")
    ).run(requests)
    one = tiled(requests)
    np.testing.assert_allclose(raw[:, 0], one["quality"].sum(1) + one["age"][:, 0] + 300, rtol=1e-6)
    np.testing.assert_array_equal(raw[:, 1], one["recent"].sum(1) + one["item"] + 400)


class Matrix(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_features_are_packed_in_the_argument_s_order_and_ids_as_float32():
    requests = batch()
    outputs = [Output(column=column) for column in range(7)]
    tasks = tuple(task(f"t{k}", output=output) for k, output in enumerate(outputs))
    one = program(
        Matrix(),
        tasks=tasks,
        ranking={"weights": {"t0": 1.0}},
        call=RowsCall(
            style="positional", arguments=(packed("x", "item", "quality", "age", "recent"),)
        ),
    )
    rows = tiled(requests)
    want = [rows["item"][:, None], rows["quality"], rows["age"], rows["recent"]]
    np.testing.assert_array_equal(one.run(requests), np.hstack(want).astype(np.float32))


class Named(nn.Module):
    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return torch.stack([features["b"], features["a"].sum(1)], dim=1)


def test_a_dict_call_passes_the_arguments_by_name():
    requests = batch()
    raw = rows_program(
        Named(),
        packed("a", "quality", "age", "recent"),
        packed("b", "item", rank=1),
        style="dict",
    ).run(requests)
    np.testing.assert_array_equal(raw[:, 0], requests.candidate["item"])


class Vectors(nn.Module):
    """[B, 2] from vectors [B], and from a matrix that is not used."""

    def forward(self, age: Tensor, item: Tensor, rest: Tensor) -> Tensor:
        return torch.stack([age, item.to(torch.float32)], dim=1) + 0 * rest[:, :1]


def test_rank_1_is_a_vector_for_plain_and_for_dense_features():
    requests = batch()
    raw = rows_program(
        Vectors(),
        packed("age", "age", rank=1),
        packed("item", "item", dtype="int64", rank=1),
        packed("rest", "recent", "quality"),
    ).run(requests)
    one = tiled(requests)
    np.testing.assert_array_equal(raw, np.stack([one["age"][:, 0], one["item"]], axis=1))


def test_rank_1_of_a_wide_feature_fails():
    wide = rows_program(
        Vectors(),
        packed("age", "quality", rank=1),
        packed("item", "item", rank=1),
        packed("rest", "recent", "age"),
    )
    with pytest.raises(RuntimeError):
        wide.run(batch())


class Several(nn.Module):
    """A tuple of [B] and [B, 1] and [B, 2]."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        quality = candidate["quality"]
        return quality[:, 0], user["age"][row_to_request], quality


class Keyed(nn.Module):
    """The same by name."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> dict[str, Tensor]:
        quality = candidate["quality"]
        return {"a": quality[:, 0], "b": user["age"][row_to_request], "c": quality}


@pytest.mark.parametrize(("module", "paths"), [(Several, (0, 1, 2)), (Keyed, ("a", "b", "c"))])
def test_outputs_are_found_by_index_or_name_as_vectors_or_columns(module, paths):
    requests = batch()
    first, second, third = paths
    raw = returning(
        module(),
        Output(path=third, column=1),
        Output(path=second),
        Output(path=first),
        Output(path=third),
    ).run(requests)
    one = tiled(requests)
    quality, age = one["quality"], one["age"][:, 0]
    want = np.stack([quality[:, 1], age, quality[:, 0], quality[:, 0]], axis=1)
    np.testing.assert_array_equal(raw, want)


@pytest.mark.parametrize(
    ("module", "output", "reason"),
    [
        (Several, Output(), "the module returned tuple for 6 rows, expected (6,) or "),
        (Several, Output(path=3), "the module's output has no 3"),
        (Several, Output(path="a"), "the module's output has no 'a'"),
        (
            Several,
            Output(path=0, column=1),
            "(6, 1) for 6 rows, expected (6,) or (6, columns) with column 1",
        ),
        (
            Several,
            Output(path=2, column=2),
            "(6, 2) for 6 rows, expected (6,) or (6, columns) with column 2",
        ),
        (Keyed, Output(path="d"), "the module's output has no 'd'"),
        (Keyed, Output(path=0), "the module's output has no 0"),
        (Keyed, Output(), "the module returned dict for 6 rows"),
        (Request, Output(path=0), "the module's output has no 0"),
        (
            Request,
            Output(column=2),
            "(6, 2) for 6 rows, expected (6,) or (6, columns) with column 2",
        ),
    ],
)
def test_a_missing_output_is_an_error_that_names_the_task(module, output, reason):
    with pytest.raises(ValueError, match="task t0: ") as caught:
        returning(module(), output).run(batch())
    assert reason in str(caught.value)


class Shapes(nn.Module):
    """Tensors of other shapes than [B, ·], and one of another type."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        quality = candidate["quality"] + 0 * user["age"][row_to_request]
        return quality[1:], quality.sum(), quality.unsqueeze(0), quality.to(torch.bfloat16)


@pytest.mark.parametrize(("path", "shape"), [(0, "(5, 2)"), (1, "()"), (2, "(1, 6, 2)")])
def test_an_output_of_another_shape_is_an_error(path, shape):
    with pytest.raises(ValueError, match="task t0: ") as caught:
        returning(Shapes(), Output(path=path)).run(batch())
    assert f"the module returned {shape} for 6 rows" in str(caught.value)


def test_outputs_in_half_precision_become_float32():
    requests = batch()
    raw = returning(Shapes(), Output(path=3)).run(requests)
    assert raw.dtype == np.float32
    np.testing.assert_allclose(raw[:, 0], requests.candidate["quality"][:, 0], rtol=1e-2)


def test_a_single_tensor_is_not_indexed_even_if_its_shape_would_fit():
    square = batch(sizes=(2,))  # [2, 2]: a row looks like a column
    with pytest.raises(ValueError, match="has no 0"):
        returning(Request(), Output(path=0)).run(square)


def test_an_exception_of_the_module_is_a_runtime_error():
    class Raises(nn.Module):
        def forward(
            self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
        ) -> Tensor:
            if row_to_request.size(0) > 0:
                raise ValueError("poison")
            return user["age"] + candidate["quality"]

    with pytest.raises(RuntimeError, match="poison"):
        program(Raises()).run(batch())


def test_a_call_that_the_module_does_not_take_is_a_runtime_error():
    wrong = rows_program(Request(), packed("x", *FEATURES))
    with pytest.raises(RuntimeError):
        wrong.run(batch())


def linked(link: Any, raw: object, clamp: tuple[float, float] | None = None) -> Any:
    tasks: tuple[TaskOutput, ...] = (task("t", link=link, clamp=clamp),)
    result = scores(np.array(raw, np.float32)[:, None], tasks)[:, 0]
    assert result.dtype == np.float32
    return result


LOGITS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(LOGITS, min_size=1))
def test_a_probability_is_finite_within_0_and_1_and_grows_with_its_logit(logits):
    found = linked("sigmoid", sorted(logits))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


@given(st.lists(st.floats(-80, 30, width=32), min_size=1))
def test_a_small_probability_is_exact_to_float32(logits):
    exact = 1 / (1 + np.exp(-np.array(logits, np.float64)))
    np.testing.assert_allclose(linked("sigmoid", logits), exact, rtol=1e-5)


@pytest.mark.parametrize("link", ["sigmoid", "exp", "expm1", "identity"])
def test_an_extreme_logit_gives_a_finite_score_without_a_warning(link):
    largest = float(np.finfo(np.float32).max)
    assert np.isfinite(linked(link, [largest, -largest, 1e4, -1e4, 100, -100, 0])).all()


def test_links_compute_the_functions_that_they_are_named_after():
    raw = [-1.0, 0.0, 0.5, 3.0]
    np.testing.assert_array_equal(linked("identity", raw), np.array(raw, np.float32))
    np.testing.assert_allclose(linked("exp", raw), np.exp(raw), rtol=1e-6)
    np.testing.assert_allclose(linked("expm1", raw), np.expm1(raw), rtol=1e-6)
    np.testing.assert_allclose(linked("expm1", [1e-7]), [1e-7], rtol=1e-5)
    np.testing.assert_allclose(linked("sigmoid", [0.0, np.log(3)]), [0.5, 0.75], rtol=1e-6)


@pytest.mark.parametrize("link", ["sigmoid", "exp", "expm1", "identity"])
def test_inverse_link_keeps_nan(link):
    assert np.isnan(linked(link, [float("nan")])).all()


def test_a_clamp_bounds_the_score_not_the_raw_output():
    assert linked("expm1", [-5.0, 0.0, 1.0, 50.0], (0.0, 600.0)).tolist() == [
        0.0,
        0.0,
        np.float32(np.expm1(np.float32(1))),
        600.0,
    ]


def test_each_task_has_its_own_link_and_its_own_clamp():
    raw = np.array([[0.0, 0.0, 5.0]], np.float32)
    tasks = (task("a", link="sigmoid"), task("b", link="exp"), task("c", clamp=(0, 1)))
    assert scores(raw, tasks).tolist() == [[0.5, 1.0, 1.0]]
    np.testing.assert_array_equal(raw, [[0.0, 0.0, 5.0]])


@pytest.mark.parametrize("columns", [(0, 1), (1, 0), (1, 1), (0,), (1,)])
def test_a_matrix_is_returned_unchanged_only_if_its_columns_are_the_tasks(columns):
    requests = batch()
    whole = returning(Request(), Output(column=0), Output(column=1)).run(requests)
    some = returning(Request(), *(Output(column=column) for column in columns)).run(requests)
    assert some.tolist() == whole[:, columns].tolist()


class Concatenated(nn.Module):
    """[B, width]: all arguments side by side, as float32."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
        assert (a.dtype, b.dtype, c.dtype, d.dtype, e.dtype) == (
            torch.int32,
            torch.bool,
            torch.float64,
            torch.int64,
            torch.float32,
        )
        return torch.cat([a.unsqueeze(1), b, c, d, e], 1).to(torch.float32)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("at_least", [0, 1, 2])
def test_lengths_and_masks_are_derived_from_a_list(side, at_least):
    lists = [[], [0], [7], [7, 3], [3, 0, 7], [5, 6, 7]]  # 0 is padding, also between ids
    listed = IdListInput(
        name="h", side="user", vocabulary_size=9, max_length=3, padding=0, padding_side=side
    )
    item = IdInput(name="item", side="candidate", vocabulary_size=9)

    def part(take: Any, **changes: Any) -> Derived:
        least = {} if take == "ids" else {"at_least": at_least}
        return Derived(of="h", take=take, **(least | changes))

    one = program(
        Concatenated(),
        inputs=(listed, item),
        tasks=tuple(task(f"t{k}", output=Output(column=k)) for k in range(15)),
        ranking={"weights": {"t0": 1.0}},
        call=RowsCall(
            style="positional",
            arguments=(
                Argument(name="a", pack=(part("length"),), dtype="int32", rank=1),
                Argument(name="b", pack=(part("mask"),), dtype="bool"),
                Argument(name="c", pack=(part("padding"), part("length")), dtype="float64"),
                Argument(name="d", pack=(part("ids", empty=8),), dtype="int64"),
                Argument(name="e", pack=("h", "item"), dtype="float32"),
            ),
        ),
    )
    left = [[0] * (3 - len(ids)) for ids in lists]
    column = np.array(
        [
            [*ids, *pad] if side == "right" else [*pad, *ids]
            for ids, pad in zip(lists, left, strict=True)
        ]
    )
    rows = np.arange(6)
    raw = one.run(ModelInputs({"h": column}, {"item": np.ones(6, np.int64)}, rows))
    for row, ids in zip(raw.tolist(), column.tolist(), strict=True):
        seen = ids if side == "right" else ids[::-1]
        extent = max([i + 1 for i in range(3) if seen[i]], default=0)
        mask = [seen[i] != 0 or (extent < at_least and i < at_least) for i in range(3)]
        filled = seen if extent else [8, 0, 0]
        turn = 1 if side == "right" else -1
        assert row == [
            max(extent, at_least),
            *mask[::turn],
            *[not is_real for is_real in mask[::turn]],
            max(extent, at_least),
            *filled[::turn],
            *ids,
            1,
        ]


class Fields(NamedTuple):
    ctr: Tensor
    cvr: Tensor


class InFields(nn.Module):
    def forward(self, x: Tensor) -> Fields:
        return Fields(x[:, 0], x[:, 1:])


def test_fields_of_a_named_tuple_are_found_by_name_and_by_index():
    requests = batch()
    found = rows_program(torch.jit.script(InFields()), packed("x", *FEATURES))
    described = found.description.model_copy(
        update={
            "tasks": (
                task("a", output=Output(path="cvr", column=1)),
                task("b", output=Output(path=0)),
            )
        }
    )
    raw = Program(torch.jit.script(InFields()), described, torch.device("cpu")).run(requests)
    one = tiled(requests)
    np.testing.assert_array_equal(raw[:, 1], one["age"][:, 0])
    np.testing.assert_array_equal(raw[:, 0], one["recent"][:, 1])
    wrong = described.model_copy(update={"tasks": (task("a", output=Output(path="ctcvr")),)})
    with pytest.raises(ValueError, match="task a: the module's output has no 'ctcvr'"):
        Program(torch.jit.script(InFields()), wrong, torch.device("cpu")).run(requests)
