"""A server's policies file: how the scores of its models are ranked, one policy for each use.

The file is TOML. A request names a policy by its table (`"ranking": {"policy": "home"}`):

    [default]                        # optional: a model's policy for requests that name none
    feed = "home"

    [policy.home]
    formula = "power_product"
    weights = { click = 1.0, like = 0.5, dwell = 0.5 }
    bounds = { like = [0.0, 3.0] }   # what requests may set; without bounds, any weight
    multiplier = "boost"             # a candidate feature that multiplies the product
    shadow = "home-next"             # compared with this policy on the same scores, not returned
    models = ["feed"]                # by default, every model that has all its tasks

    [policy.home-next]
    formula = "expression"
    expression = "click**0.8 * (1 + w.like*like) * log1p(dwell)"
    weights = { like = 2.0 }

    [calibration.feed.click]         # replaces the calibration in the model's artifact
    method = "platt"
    slope = 1.1
    intercept = -0.2

A model's own policy stays available under its name, unless the file has a policy of the same name.
A file applies as a whole or not at all: one mistake refuses it. `PolicySet.parse` finds the
mistakes that need no model, `PolicySet.policies_for` those that show with a model. This module
knows models as `ModelTraits` only.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.errors import PoliciesInvalid, did_you_mean
from app.file_problems import rule_of
from app.files import parse_toml
from app.ranking.calibration import Calibration, Isotonic, NoCalibration, Platt, Scale
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker, RankingOptions

LARGEST_FILE = 1 << 20  # bytes
MAX_POLICIES = 100
MAX_PROBLEMS = 20
"""The most problems that one error lists."""

OWN_POLICY = "default"
"""The name of a model's own policy, unless training names it."""

PolicyName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What ranking needs to know about a version of a model.

    Attributes:
        name: the model's name.
        tasks: in the order of the score columns.
        policy: the model's own policy.
        calibrations: the model's own calibrations, by task.
        probabilities: the tasks whose scores are probabilities.
        multipliers: the candidate features that are one number each.
    """

    name: str
    tasks: tuple[str, ...]
    policy: Policy
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    probabilities: frozenset[str] = frozenset()
    multipliers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelPolicies:
    """The policies of one model version under one policy set, compiled and immutable.

    Attributes:
        by_name: every policy that a request may name.
        default: the policy of requests that name none.
        default_options: the options of a request without a `ranking` field.
    """

    by_name: Mapping[str, Ranker]
    default: Ranker
    default_options: RankingOptions


class FilePolicy(Policy):
    """A policy of the file: also the models that it is for, and its shadow."""

    models: tuple[ModelName, ...] | None = Field(None, min_length=1)
    shadow: PolicyName | None = None

    @model_validator(mode="after")
    def _check_shadow(self) -> Self:
        if self.shadow == self.name:
            raise ValueError("shadow: must name another policy")
        return self


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    default: dict[ModelName, str] = Field(default_factory=dict)
    policy: dict[str, FilePolicy] = Field(default_factory=dict, max_length=MAX_POLICIES)
    calibration: dict[ModelName, dict[str, Calibration]] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicySet:
    """A file's policies. `version` is the first 12 hex digits of the content's SHA-256."""

    version: str = ""
    defaults: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, FilePolicy] = field(default_factory=dict)
    calibrations: Mapping[str, Mapping[str, Calibration]] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> "PolicySet":
        """Read a file's content; a UTF-8 byte order mark is ignored.

        Raises:
            PoliciesInvalid: with every mistake that can be found without knowing the models.
        """
        if len(content) > LARGEST_FILE:
            raise PoliciesInvalid([f"is larger than {LARGEST_FILE} bytes"])
        try:
            tables = parse_toml(content)
        except ValueError as error:
            raise PoliciesInvalid([f"not valid TOML: {error}"]) from error
        try:
            file = _File.model_validate(_with_names(tables))
        except ValidationError as error:
            errors = error.errors(include_url=False)
            raise PoliciesInvalid([_problem(detail) for detail in errors[:MAX_PROBLEMS]]) from error
        known = {**file.policy, OWN_POLICY: None}
        unknown = [
            f"default.{model}: {_unknown('policy', name, known)}"
            for model, name in file.default.items()
            if name not in known
        ]
        if unknown:
            raise PoliciesInvalid(unknown[:MAX_PROBLEMS])
        version = hashlib.sha256(content).hexdigest()[:12]
        return cls(version, file.default, file.policy, file.calibration)

    def policies_for(self, model: ModelTraits) -> ModelPolicies:
        """Compile every policy that applies to a model.

        Raises:
            PoliciesInvalid: the file needs something that this model does not have.
        """
        problems = self._calibration_problems(model)
        calibrations = {**model.calibrations, **self.calibrations.get(model.name, {})}
        available: dict[str, Policy] = {model.policy.name: model.policy}
        for name, policy in self.policies.items():
            reason = _reason_not_available(policy, model)
            if reason is None:
                available[name] = policy
            elif policy.models is not None and model.name in policy.models:
                problems.append(f"policy.{name}: {reason}")
        default = self.defaults.get(model.name, model.policy.name)
        if default not in available:
            rule = _unknown("policy", default, available)
            if default in self.policies:
                rule = f'policy "{default}": ' + str(
                    _reason_not_available(self.policies[default], model)
                )
            problems.append(f"default.{model.name}: {rule}")
        for name, compiled in available.items():
            shadow = _shadow(compiled)
            if shadow is not None and shadow not in available:
                rule = _unknown("policy", shadow, available)
                if shadow in self.policies:
                    rule = f'model "{model.name}" does not have policy "{shadow}"'
                problems.append(f"policy.{name}.shadow: {rule}")
        if problems:
            raise PoliciesInvalid(problems)
        return self._compiled(available, default, calibrations, model)

    def _compiled(
        self,
        available: Mapping[str, Policy],
        default: str,
        calibrations: Mapping[str, Calibration],
        model: ModelTraits,
    ) -> ModelPolicies:
        def ranker(name: str, shadow: Ranker | None = None) -> Ranker:
            policy, tasks = available[name], model.tasks
            return Ranker.of(policy, tasks, calibrations, version=self.version, shadow=shadow)

        by_name: dict[str, Ranker] = {}
        for name, policy in available.items():
            shadow = _shadow(policy)
            by_name[name] = ranker(name, None if shadow is None else ranker(shadow))
        return ModelPolicies(by_name, by_name[default], RankingOptions(by_name[default]))

    def _calibration_problems(self, model: ModelTraits) -> list[str]:
        problems = []
        for task, calibration in self.calibrations.get(model.name, {}).items():
            place = f"calibration.{model.name}.{_readable(task)}"
            if task not in model.tasks:
                problems.append(f"{place}: {_unknown('task', task, model.tasks)}")
            elif isinstance(calibration, Platt) and task not in model.probabilities:
                problems.append(f"{place}: platt is for probabilities only")
        return problems


NO_POLICIES = PolicySet()


def _shadow(policy: Policy) -> str | None:
    return policy.shadow if isinstance(policy, FilePolicy) else None


def _reason_not_available(policy: FilePolicy, model: ModelTraits) -> str | None:
    """Return why a model cannot use a policy, or None if it can."""
    if policy.models is not None and model.name not in policy.models:
        return f'is not for model "{model.name}" (models: {_listed(policy.models)})'
    if unknown := sorted(policy.tasks - set(model.tasks)):
        return f'model "{model.name}": {_unknown("task", unknown[0], model.tasks)}'
    if policy.multiplier is not None and policy.multiplier not in model.multipliers:
        rule = _unknown("candidate feature of one number", policy.multiplier, model.multipliers)
        return f'model "{model.name}": {rule}'
    return None


def _with_names(tables: dict[str, Any]) -> dict[str, Any]:
    """Give each policy its table's name.

    Raises:
        PoliciesInvalid: a policy has a key `name` of its own.
    """
    policies = tables.get("policy")
    if not isinstance(policies, dict):
        return tables
    problems = [
        f'unknown key "name" in [policy.{_readable(name)}]: a policy has the name of its table'
        for name, policy in policies.items()
        if isinstance(policy, dict) and "name" in policy
    ]
    if problems:
        raise PoliciesInvalid(problems[:MAX_PROBLEMS])
    named = {
        name: {**policy, "name": name} if isinstance(policy, dict) else policy
        for name, policy in policies.items()
    }
    return tables | {"policy": named}


_METHODS: Mapping[str, type[BaseModel]] = {
    "none": NoCalibration,
    "platt": Platt,
    "isotonic": Isotonic,
    "scale": Scale,
}

_NAME_RULE = (
    'a name has 1 to 64 letters, digits, "_", "." and "-", and begins with a letter or a digit; '
    "names of policies are lower case"
)


def _problem(error: ErrorDetails) -> str:
    """Return one line: the place, then the rule. Values are not repeated, but for names."""
    location = [str(part) for part in error["loc"]]
    if len(location) > 2 and location[-1] == "[key]":  # pydantic's mark of an error in the key
        location.pop()
    context = error.get("ctx", {})
    fields: Collection[str] = _File.model_fields
    if location[0] == "policy":
        fields = [name for name in FilePolicy.model_fields if name != "name"]
    elif location[0] == "calibration" and len(location) > 3:
        fields = _METHODS[location.pop(3)].model_fields  # pydantic puts the method in the place
    match error["type"]:
        case "extra_forbidden":
            table = ".".join(map(_readable, location[:-1]))
            where = f" in [{table}]" if table else ""
            return _unknown("key", location[-1], fields, where)
        case "union_tag_not_found":
            location.append("method")
            rule = "required key is missing"
        case "union_tag_invalid":
            location.append("method")
            rule = _unknown("method", str(context["tag"]), _METHODS)
        case "string_pattern_mismatch":
            location = location[:-1] if location[-1] == "name" else location
            rule = _NAME_RULE
        case "value_error":
            rule = _readable(str(context["error"]), 500)  # it may quote a key of the file
        case _:
            rule = rule_of(error)
    return f"{'.'.join(map(_readable, location))}: {rule}"


def _unknown(what: str, name: str, known: Iterable[str], where: str = "") -> str:
    """Return a message about an unknown name, with the nearest or the known names."""
    names = list(known)
    nearest = did_you_mean(name, names) or f" (known: {_listed(names)})"
    return f'unknown {what} "{_readable(name)}"{where}{nearest}'


def _listed(names: Iterable[str]) -> str:
    shown = [_readable(name) for name in names]
    more = ", …" if len(shown) > MAX_PROBLEMS else ""
    return ", ".join(shown[:MAX_PROBLEMS]) + more or "none"


def _readable(text: str, longest: int = 64) -> str:
    """Return text as one printable line: a quoted TOML key may hold any character."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:longest])
    return shown if len(text) <= longest else f"{shown}…"
