"""Find what a TorchScript module changes when it is called: its own state, or its inputs.

All lanes call the same module at the same time, and the scores of a row may depend on nothing but
the row. So a module that writes to its own buffers, parameters, attributes or constants, or that
draws random numbers, cannot be served. A module that writes to its inputs can, on copies of them.

The analysis follows the graph from its inputs. It finds which values may share memory with an
input, an attribute of the module or a constant, and which operators write to such a value. The
schema of each operator states both: `Tensor(a!)` is written to, `Tensor(a)` shares memory with the
result.
"""
# ruff: noqa: ANN401, SLF001  (PyTorch has the graph's types and passes in `torch._C`, untyped)

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

_INPUT = "input"
_SELF = "self"
_CONSTANT = "a constant of its graph"

# Types of values that are copied, and never changed in place.
_PLAIN = frozenset(
    f"{name}Type"
    for name in (
        *("Int", "Float", "Bool", "Complex", "Number", "String", "None", "Device", "DeviceObj"),
        *("ScalarType", "Layout", "MemoryFormat", "SymInt", "SymBool", "Generator"),
    )
)
_CONTAINERS = frozenset(("ListType", "DictType", "TupleType"))
_TAKE_APART = frozenset(
    ("prim::ListUnpack", "prim::TupleUnpack", "prim::TupleIndex", "prim::TupleSlice")
)
# Their schemas do not say that the result is the argument, or a part of it.
_REARRANGE = _TAKE_APART | frozenset(
    ("prim::unchecked_cast", "prim::awaitable_wait", "prim::ModuleContainerIndex")
)
# Operators that may return their argument, or a view of it, though their schema does not say so.
UNDECLARED_VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as"),
        *("einsum", "broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d"),
        *("cartesian_prod", "conj_physical", "unsafe_chunk"),
    )
)
# And every operator that takes a generator of random numbers.
_RANDOM = frozenset(
    f"aten::{name}"
    for name in (
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
        *("normal", "bernoulli", "multinomial", "poisson", "binomial", "_standard_gamma"),
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_"),
        *("log_normal_", "manual_seed", "seed"),
    )
)
# Operators that draw random numbers in training mode only, if they have such an argument, and with
# a probability above 0 only.
_DROPS_OUT = frozenset(
    f"aten::{name}"
    for name in (
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
        *("dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_"),
        *("native_dropout", "_fused_dropout", "rrelu", "rrelu_", "rrelu_with_noise"),
        *("rrelu_with_noise_", "rrelu_with_noise_functional"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"),
    )
)
# Operators that turn the value of a tensor into a number, which may then decide about a branch or
# about the turns of a loop. The size of a tensor is none.
_READS_VALUES = frozenset(
    f"aten::{name}"
    for name in (
        *("Bool", "Int", "Float", "Complex", "item", "is_nonzero", "equal", "allclose"),
        *("IntImplicit", "FloatImplicit", "ComplexImplicit", "ScalarImplicit"),
        *("_local_scalar_dense", "tolist", "__contains__"),
    )
) | {"prim::tolist"}
# Normalisation in training mode writes to its running statistics; its schema does not say so.
_STATISTICS_POSITION = {
    "aten::batch_norm": 5,
    "aten::native_batch_norm": 5,
    "aten::cudnn_batch_norm": 5,
    "aten::_batch_norm_impl_index": 5,
    "aten::instance_norm": 5,
}


@dataclass(slots=True)
class Effects:
    """What a call changes beside its result.

    Attributes:
        state: each own attribute that the module writes to, with the operator, in graph order.
        random: operators that draw random numbers.
        inputs: whether the module may write to a tensor, a list or a dict that it is given.
        reads_values: whether the values of tensors may decide what runs: how long a call takes
            then depends on them, not on the number of rows alone.
    """

    state: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)
    inputs: bool = False
    reads_values: bool = False

    @property
    def problem(self) -> str:
        """Return why a module with these effects cannot be served, or an empty string."""
        if self.state:
            return f"it changes its own state when it is called: {self.state[0]}"
        if self.random:
            return f"its outputs are random: it calls {self.random[0]}"
        return ""


def effects(
    module: torch.jit.ScriptModule, frozen: torch.jit.ScriptModule, *methods: str
) -> Effects:
    """Return what a call of `forward`, or of one of the other `methods`, may change.

    Both forms are followed. Freezing removes branches that only training takes, and resolves
    flags. But it also loses some writes, so the frozen module alone is not enough.

    Args:
        module: in `eval` mode, as it was saved.
        frozen: the same, frozen; `module` itself where it was frozen before it was saved.
        methods: names of methods that are called beside `forward`.
    """
    result = Effects()
    for method in ("forward", *methods):
        if module is not frozen:
            graph = _without_training(getattr(module, method).inlined_graph)
            _Analysis(result, is_frozen=False).follow_graph(graph)
        _Analysis(result, is_frozen=True).follow_graph(getattr(frozen, method).inlined_graph)
    return result


def _without_training(graph: Any) -> Any:
    """Remove the branches of a graph that depend on `self.training`, which is False."""
    constant = graph.create("prim::Constant")
    constant.i_("value", 0)
    constant.output().setType(torch._C.BoolType.get())
    graph.prependNode(constant)
    for node in graph.findAllNodes("prim::GetAttr"):
        if node.s("name") == "training":
            node.output().replaceAllUsesWith(constant.output())
    torch._C._jit_pass_constant_propagation(graph)
    return graph


@dataclass(slots=True)
class _Origins:
    """What a value may share memory with.

    Attributes:
        own: of a tensor or an object, or of a list, a tuple or a dict without its elements.
        elements: of the elements.
    """

    own: set[str] = field(default_factory=set)
    elements: set[str] = field(default_factory=set)

    @property
    def all(self) -> set[str]:
        return self.own | self.elements


@dataclass(frozen=True, slots=True)
class _Schema:
    """What an operator's schema says about memory.

    Attributes:
        names: of the arguments.
        argument_aliases: for each argument, the names of the memory that it shares.
        is_written: for each argument, whether it is written to.
        result_aliases: for each result, the names of the memory that it may share; `*` is any.
        writes_to_elements: whether each tensor of a list is written to.
    """

    names: tuple[str, ...]
    argument_aliases: tuple[frozenset[str], ...]
    is_written: tuple[bool, ...]
    result_aliases: tuple[frozenset[str], ...]
    writes_to_elements: bool

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(text: str) -> "_Schema":
        """Parse a schema; a graph has the same few ones hundreds of times."""
        schema = torch._C.parse_schema(text)
        return _Schema(
            tuple(argument.name for argument in schema.arguments),
            tuple(map(_aliases, schema.arguments)),
            tuple(
                bool(argument.alias_info and argument.alias_info.is_write)
                for argument in schema.arguments
            ),
            tuple(map(_aliases, schema.returns)),
            "!)[]" in text,
        )


def _aliases(argument: Any) -> frozenset[str]:
    alias = argument.alias_info
    return frozenset() if alias is None else frozenset(alias.before_set | alias.after_set)


class _Analysis:
    """Follows a graph in execution order."""

    def __init__(self, result: Effects, *, is_frozen: bool) -> None:
        """Add to `result`. Where a graph is not frozen, an unresolved flag counts as False."""
        self._effects = result
        self._is_frozen = is_frozen
        self._origins: dict[str, _Origins] = {}

    def follow_graph(self, graph: Any) -> None:
        """Follow the graph of a module's method."""
        self_, *inputs = graph.inputs()
        self._share(self_, {_SELF})
        for input_ in inputs:
            self._share(input_, {_INPUT})
        self._follow(graph.nodes())

    def _of(self, *values: Any) -> _Origins:
        known = [self._origins.get(value.debugName(), _Origins()) for value in values]
        return _Origins(
            {name for origins in known for name in origins.own},
            {name for origins in known for name in origins.elements},
        )

    def _share(self, value: Any, own: set[str], elements: set[str] | None = None) -> None:
        """Add origins to a value; by default its elements have those of the value."""
        if value.type().kind() not in _PLAIN:
            origins = self._origins.setdefault(value.debugName(), _Origins())
            origins.own |= own
            origins.elements |= own if elements is None else elements

    def _assign(self, value: Any, *sources: Any) -> None:
        """Let a value be one of `sources`."""
        origins = self._of(*sources)
        self._share(value, origins.own, origins.elements)

    def _follow(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            kind = node.kind()
            if kind in _READS_VALUES and any(map(_is_computed_tensor, node.inputs())):
                self._effects.reads_values = True
            if kind == "prim::GetAttr":
                self._get_attribute(node)
            elif kind == "prim::SetAttr":
                owner = self._of(node.inputsAt(0)).own
                names = {"" if path == _SELF else f"{path}." for path in owner - {_INPUT}}
                self._write({f"{name}{node.s('name')}" for name in names}, "assignment")
                self._write(owner & {_INPUT}, "assignment")
            elif kind == "prim::Constant":
                self._share(node.output(), {_CONSTANT})
            elif kind == "prim::If":
                self._branch(node)
            elif kind == "prim::Loop":
                self._loop(node)
            elif node.hasAttribute("Subgraph") and node.kindOf("Subgraph") == "g":
                self._subgraph(node)
            elif kind in _REARRANGE or (schema := node.schema()) == "(no schema)":
                self._rearrange(node, kind)
            else:
                self._operator(node, kind, _Schema.of(schema))

    def _get_attribute(self, node: Any) -> None:
        owners = self._of(node.inputsAt(0)).own
        name = node.s("name")
        names = {name if path == _SELF else f"{path}.{name}" for path in owners - {_INPUT}}
        self._share(node.output(), names | (owners & {_INPUT}))

    def _branch(self, node: Any) -> None:
        for block in node.blocks():
            self._follow(block.nodes())
            for output, value in zip(node.outputs(), block.outputs(), strict=True):
                self._assign(output, value)

    def _loop(self, node: Any) -> None:
        (block,) = node.blocks()
        _, _, *first = node.inputs()
        _, *carried = block.inputs()
        _, *last = block.outputs()
        for _ in range(1 + len(carried)):  # an origin moves by one carried value in each turn
            for begin, value, end in zip(first, carried, last, strict=True):
                self._assign(value, begin, end)
            self._follow(block.nodes())
        for output, value, end in zip(node.outputs(), carried, last, strict=True):
            self._assign(output, value, end)

    def _subgraph(self, node: Any) -> None:
        inner = _Analysis(self._effects, is_frozen=self._is_frozen)
        graph = node.g("Subgraph")
        for outer, value in zip(node.inputs(), graph.inputs(), strict=True):
            origins = self._of(outer)
            inner._share(value, origins.own, origins.elements)
        inner._follow(graph.nodes())
        everything = self._of(*node.inputs()).all | inner._of(*graph.outputs()).all
        for output in node.outputs():
            self._share(output, everything)

    def _rearrange(self, node: Any, kind: str) -> None:
        """Follow the making of a list, a tuple or a dict, or the taking apart of one."""
        origins = self._of(*node.inputs())
        for output in node.outputs():
            if kind.endswith("Construct"):
                self._share(output, set(), origins.all)
            elif kind in _TAKE_APART:
                self._share(output, origins.elements)
            else:  # such as prim::unchecked_cast
                self._share(output, origins.own, origins.elements)

    def _operator(self, node: Any, kind: str, schema: "_Schema") -> None:
        arguments = list(node.inputs())
        if kind in _STATISTICS_POSITION and self._is_true(arguments[_STATISTICS_POSITION[kind]]):
            self._write(self._of(*arguments[1:5]).own, f"{kind} in training mode")
        if self._is_random(kind, dict(zip(schema.names, arguments, strict=False))):
            _add(self._effects.random, kind)
        if schema.writes_to_elements:
            self._write(self._of(*arguments).elements, kind)
        aliased: list[tuple[frozenset[str], Any]] = []
        for aliases, is_written, value in zip(
            schema.argument_aliases, schema.is_written, arguments, strict=False
        ):
            if aliases:
                aliased.append((aliases, value))
            if is_written:
                self._write(self._of(value).own, kind)
                if value.type().kind() in _CONTAINERS:  # something may be put into it
                    self._share(value, set(), self._of(*arguments).all)
        everything = self._of(*arguments)
        for aliases, output in zip(schema.result_aliases, node.outputs(), strict=False):
            if output.type().kind() in _CONTAINERS:
                self._share(output, set(), everything.all)
            if kind in UNDECLARED_VIEWS:
                self._share(output, everything.all)
            elif "*" in aliases:
                tensors = [value for value in arguments if value.type().kind() not in _CONTAINERS]
                self._share(output, self._of(*tensors).own | everything.elements)
            elif aliases:
                self._assign(output, *(value for of_value, value in aliased if aliases & of_value))

    def _is_random(self, kind: str, arguments: Mapping[str, Any]) -> bool:
        if kind not in _DROPS_OUT:
            return kind in _RANDOM or "generator" in arguments
        flag = arguments.get("train", arguments.get("training"))
        probabilities = [
            arguments[name] for name in ("p", "dropout", "dropout_p") if name in arguments
        ]
        return all(self._is_true(value) for value in (flag, *probabilities) if value is not None)

    def _is_true(self, flag: Any) -> bool:
        value = flag.toIValue()
        return self._is_frozen if value is None else bool(value)

    def _write(self, origins: set[str], how: str) -> None:
        for origin in sorted(origins):
            if origin == _INPUT:
                self._effects.inputs = True
            else:
                _add(self._effects.state, f"{origin} ({how})")


def _is_computed_tensor(value: Any) -> bool:
    """Whether a value is a tensor, and not the size that a trace keeps in one."""
    is_size = value.node().kind() == "prim::NumToTensor"
    return bool(value.type().kind() == "TensorType") and not is_size


def _add(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)
