"""Policies of a server: a file that says, scene by scene, how models' scores are ranked.

It is TOML. A request picks a policy by its table's name (`"ranking": {"policy": "home"}`):

    [default]                        # optional: a model's policy where a request picks none
    feed = "home"

    [policy.home]
    formula = "power_product"
    weights = { click = 1.0, like = 0.5, dwell = 0.5 }
    bounds = { like = [0.0, 3.0] }   # what requests may set; without bounds, any weight
    multiplier = "boost"             # a candidate's number that the product is multiplied by
    shadow = "home-next"             # compared with this policy on the same scores, not returned
    models = ["feed"]                # by default, every model that has all its tasks

    [policy.home-next]
    formula = "expression"
    expression = "click**0.8 * (1 + w.like*like) * log1p(dwell)"
    weights = { like = 2.0 }

    [calibration.feed.click]         # instead of the calibration that the model brought
    method = "platt"
    slope = 1.1
    intercept = -0.2

A model's own policy stays available by its name, unless a policy of the file has the same. A file
is followed whole or not at all: one mistake, in itself or beside a model that it names, refuses
it. It knows models as `ModelTraits` only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import PoliciesInvalid
from app.files import parse_toml
from app.ranking.calibration import Calibration, Platt
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker, RankingOptions

LARGEST_FILE = 1 << 20  # bytes
MOST_POLICIES = 100
MOST_PROBLEMS = 20
"""A report names so many at most."""

PolicyName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What ranking needs to know of a version of a model.

    Attributes:
        name: the model's.
        tasks: in the order of the score columns.
        policy: the one that it brought.
        calibrations: those that it brought, by task.
        probabilities: the tasks whose scores are probabilities.
        multipliers: the candidate's features that are one number each.
    """

    name: str
    tasks: tuple[str, ...]
    policy: Policy
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    probabilities: frozenset[str] = frozenset()
    multipliers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelPolicies:
    """The policies of one model version under one policy set; immutable, so taken once it holds.

    Attributes:
        by_name: every policy that a request may pick.
        default: the one for requests that pick none.
        wanted: what a request wants that says nothing of its ranking.
    """

    by_name: Mapping[str, Ranker]
    default: Ranker
    wanted: RankingOptions


class ScenePolicy(Policy):
    """A policy of the file, with what concerns its use."""

    models: tuple[ModelName, ...] | None = Field(None, min_length=1)
    shadow: PolicyName | None = None

    @model_validator(mode="after")
    def _is_not_its_own_shadow(self) -> Self:
        if self.shadow == self.name:
            raise ValueError("shadow: a policy is not its own")
        return self


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    default: dict[ModelName, PolicyName] = Field(default_factory=dict)
    policy: dict[str, ScenePolicy] = Field(default_factory=dict, max_length=MOST_POLICIES)
    calibration: dict[ModelName, dict[str, Calibration]] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicySet:
    """A file's policies; `version` is the beginning of its content's SHA-256."""

    version: str = ""
    defaults: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, ScenePolicy] = field(default_factory=dict)
    calibrations: Mapping[str, Mapping[str, Calibration]] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> "PolicySet":
        """Read a file's content.

        Raises:
            PoliciesInvalid: with every mistake that can be told without knowing the models.
        """
        if len(content) > LARGEST_FILE:
            raise PoliciesInvalid([f"is larger than {LARGEST_FILE} bytes"])
        try:
            tables = parse_toml(content)
        except ValueError as error:
            raise PoliciesInvalid([f"is no TOML: {error}"]) from error
        try:
            file = _File.model_validate(_named(tables))
        except ValidationError as error:
            raise PoliciesInvalid(_problems(error)) from error
        version = hashlib.sha256(content).hexdigest()[:12]
        return cls(version, file.default, file.policy, file.calibration)

    def rankers(self, model: ModelTraits) -> ModelPolicies:
        """Compile every policy that applies to a model.

        Raises:
            PoliciesInvalid: the set says of this model what it cannot do.
        """
        problems = self._calibration_problems(model)
        calibrations = {**model.calibrations, **self.calibrations.get(model.name, {})}
        chosen: dict[str, Policy] = {model.policy.name: model.policy}
        for name, scene in self.policies.items():
            if scene.models is not None and model.name not in scene.models:
                continue
            misfit = _misfit(scene, model)
            if misfit is None:
                chosen[name] = scene
            elif scene.models is not None:
                problems.append(f"policy.{name}: {misfit}")
        default = self.defaults.get(model.name, model.policy.name)
        if default not in chosen:
            misfit = "no such policy"
            if default in self.policies:
                misfit = _misfit(self.policies[default], model) or f"is not for {model.name}"
            problems.append(f"default.{model.name}: {default}: {misfit}")
        for name, policy in chosen.items():
            shadow = getattr(policy, "shadow", None)
            if shadow is not None and shadow not in chosen:
                problems.append(f"policy.{name}.shadow: {model.name} has no policy {shadow}")
        if problems:
            raise PoliciesInvalid(problems)
        return self._compiled(chosen, default, calibrations, model)

    def _compiled(
        self,
        chosen: Mapping[str, Policy],
        default: str,
        calibrations: Mapping[str, Calibration],
        model: ModelTraits,
    ) -> ModelPolicies:
        def ranker(name: str, shadow: Ranker | None = None) -> Ranker:
            policy, tasks = chosen[name], model.tasks
            return Ranker.of(policy, tasks, calibrations, version=self.version, shadow=shadow)

        by_name: dict[str, Ranker] = {}
        for name, policy in chosen.items():
            shadow = getattr(policy, "shadow", None)
            by_name[name] = ranker(name, None if shadow is None else ranker(shadow))
        return ModelPolicies(by_name, by_name[default], RankingOptions(by_name[default]))

    def _calibration_problems(self, model: ModelTraits) -> list[str]:
        problems = []
        for task, calibration in self.calibrations.get(model.name, {}).items():
            if task not in model.tasks:
                problems.append(f"calibration.{model.name}.{task}: there is no such task")
            elif isinstance(calibration, Platt) and task not in model.probabilities:
                problems.append(f"calibration.{model.name}.{task}: platt is for probabilities")
        return problems


NO_POLICIES = PolicySet()


def _misfit(policy: Policy, model: ModelTraits) -> str | None:
    if strangers := sorted(policy.tasks - set(model.tasks)):
        return f"{model.name} has no task {strangers[0]}"
    if policy.multiplier is not None and policy.multiplier not in model.multipliers:
        return f"{model.name} has no candidate feature {policy.multiplier} that is one number"
    return None


def _named(tables: dict[str, Any]) -> dict[str, Any]:
    """Give each policy the name of its table; one that states a name itself is refused."""
    policies = tables.get("policy")
    if not isinstance(policies, dict):
        return tables
    problems = [
        f"policy.{_readable(name)}.name: the table's name is the policy's"
        for name, policy in policies.items()
        if isinstance(policy, dict) and "name" in policy
    ]
    if problems:
        raise PoliciesInvalid(problems)
    named = {
        name: {**policy, "name": name} if isinstance(policy, dict) else policy
        for name, policy in policies.items()
    }
    return tables | {"policy": named}


def _problems(error: ValidationError) -> list[str]:
    """One line a mistake: its place, then the rule; never the value."""
    problems = []
    for each in error.errors(include_url=False, include_input=False)[:MOST_PROBLEMS]:
        place = ".".join(_readable(str(part)) for part in each["loc"])
        problems.append(f"{place}: {each['msg'].removeprefix('Value error, ')}")
    return problems


def _readable(key: str) -> str:
    """A key as it may stand in a log line: TOML allows anything in quotes."""
    shown = "".join(each if each.isprintable() else "?" for each in key[:64])
    return shown if len(key) <= 64 else f"{shown}…"
