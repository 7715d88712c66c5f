"""A server's file of policies: what it says, and every way in which it is refused whole."""

from typing import Any

import numpy as np
import pytest

from app.errors import PoliciesInvalid
from app.ranking.calibration import Platt, Scale
from app.ranking.policies import LARGEST_FILE, NO_POLICIES, ModelPolicies, ModelTraits, PolicySet
from app.ranking.policy import Policy

FILE = """
[default]
feed = "home"

[policy.home]
formula = "power_product"
weights = { click = 1.0, like = 0.5 }
bounds = { like = [0.0, 3.0] }
shadow = "home-next"
models = ["feed"]

[policy.home-next]
formula = "expression"
expression = "click**0.8 * (1 + w.like*like)"
weights = { like = 2.0 }

[policy.videos]
weights = { watched = 1.0 }

[calibration.feed.click]
method = "platt"
slope = 1.5
intercept = -0.5
"""


def traits(**changes: Any) -> ModelTraits:
    fields: dict[str, Any] = {
        "name": "feed",
        "tasks": ("click", "like", "dwell"),
        "policy": Policy(weights={"click": 1.0}),
        "calibrations": dict.fromkeys(("click", "dwell"), Scale(method="scale", factor=2.0)),
        "probabilities": frozenset(("click", "like")),
        "multipliers": frozenset(("boost",)),
    }
    return ModelTraits(**(fields | changes))


def parsed(text: str) -> PolicySet:
    return PolicySet.parse(text.encode())


def rankers(text: str, **changes: Any) -> ModelPolicies:
    return parsed(text).rankers(traits(**changes))


def problems(text: str, **changes: Any) -> list[str]:
    with pytest.raises(PoliciesInvalid) as caught:
        rankers(text, **changes)
    return caught.value.problems


def test_a_request_may_pick_the_files_policies_and_the_models_own():
    found = rankers(FILE)
    assert list(found.by_name) == ["default", "home", "home-next"]
    assert found.by_name["default"].policy == Policy(weights={"click": 1.0})
    assert found.default is found.by_name["home"] is found.wanted.ranker


def test_the_example_of_the_module_is_one():
    import app.ranking.policies as module

    assert module.__doc__ is not None
    text = module.__doc__.partition("\n\n")[2]
    example = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    assert list(rankers(example).by_name) == ["default", "home", "home-next"]


def test_a_policy_is_not_offered_for_a_model_without_its_tasks():
    assert "videos" not in rankers(FILE).by_name
    assert "videos" in rankers(FILE, name="clips", tasks=("click", "like", "watched")).by_name


def test_a_policy_for_some_models_is_not_offered_for_others():
    other = rankers(FILE, name="other")
    assert list(other.by_name) == ["default", "home-next"]
    assert other.default.policy.name == "default"


def test_the_file_calibrates_in_place_of_the_model_and_only_that_model():
    click, like, dwell = rankers(FILE).default.calibrations
    assert click == Platt(method="platt", slope=1.5, intercept=-0.5)
    assert (like.method, dwell.method) == ("none", "scale")
    assert rankers(FILE, name="other").default.calibrations[0].method == "scale"


def test_a_shadow_ranks_the_same_scores_by_its_own_policy():
    shadow = rankers(FILE).default.shadow
    assert shadow is not None
    assert shadow.policy.name == "home-next"
    assert shadow.shadow is None
    scores = np.array([[0.5, 0.5, 1]], np.float32)
    calibrated = 1 / (1 + np.exp(0.5))
    assert shadow.sort_keys(scores)[0] == pytest.approx(calibrated**0.8 * 2)


def test_the_models_own_policy_may_be_a_shadow():
    text = '[policy.next]\nweights = { like = 1.0 }\nshadow = "default"'
    shadow = rankers(text).by_name["next"].shadow
    assert shadow is not None
    assert shadow.policy == traits().policy


def test_a_policy_of_the_file_stands_in_for_the_models_of_the_same_name():
    found = rankers("[policy.default]\nweights = { like = 1.0 }")
    assert found.default.policy.weights == {"like": 1.0}


def test_an_answer_tells_the_version_which_is_of_the_content():
    one, same, other = parsed(FILE), parsed(FILE), parsed(FILE + "\n# changed")
    assert one.version == same.version != other.version
    assert one.rankers(traits()).default.echo == {
        "name": "home",
        "formula": "power_product",
        "weights": {"click": 1.0, "like": 0.5},
        "version": one.version,
    }
    assert "version" not in NO_POLICIES.rankers(traits()).default.echo


def test_an_empty_file_leaves_the_models_to_themselves():
    assert list(rankers("").by_name) == ["default"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[policy.home", "is no TOML: Expected ']' at the end of a table declaration"),
        ("[policy.home]\nweights = {}", "policy.home: weights: there must be at least one"),
        ("[policy.home]\nweights = {click = nan}", "policy.home.weights.click: Input should be"),
        ("[policy.home]\nweights = {click = true}", "policy.home.weights.click: Input should be"),
        ("[policy.home]\nweights = {click = '1'}", "policy.home.weights.click: Input should be"),
        (
            "[calibration.feed.dwell]\nmethod = 'scale'\nfactor = '2'",
            "calibration.feed.dwell.scale.factor: Input should be",
        ),
        ("[policy.home]\nname = 'x'\nweights = {click = 1}", "policy.home.name: the table's name"),
        ("[policy.Home]\nweights = {click = 1}", "policy.Home.name: String should match"),
        ("[policy]\nhome = 3", "policy.home: "),
        ("policy = 3", "policy: "),
        ("[polcy.home]\nweights = {click = 1}", "polcy: Extra inputs are not permitted"),
        ("[policy.home]\nweights = {click = 1}\nweigths = 2", "policy.home.weigths: Extra inputs"),
        (
            "[policy.home]\nformula = 'expression'\nexpression = 'click + * 2'",
            "policy.home.expression: a number, a task, a weight, a function or a bracket belongs "
            "here (at column 9)",
        ),
        ("[policy.home]\nweights = {click = 1}\nshadow = 'home'", "policy.home: shadow: a policy"),
        ("[policy.home]\nweights = {click = 1}\nmodels = []", "policy.home.models: "),
        ("[calibration.feed.click]\nmethod = 'scale'\nfactor = 0", "calibration.feed.click.scale"),
        ("x = " + "[" * 20000, "is no TOML: "),
        ("x = " + "9" * 5000, "is no TOML: "),
        ("#" * (LARGEST_FILE + 1), f"is larger than {LARGEST_FILE} bytes"),
        # and beside a model:
        ("[default]\nfeed = 'home'", "default.feed: home: no such policy"),
        (
            "[default]\nfeed = 'home'\n[policy.home]\nweights = {buy = 1}",
            "default.feed: home: feed has no task buy",
        ),
        (
            "[default]\nfeed = 'home'\n[policy.home]\nweights = {like = 1}\nmodels = ['other']",
            "default.feed: home: is not for feed",
        ),
        (
            "[policy.home]\nweights = {buy = 1}\nmodels = ['feed']",
            "policy.home: feed has no task buy",
        ),
        (
            "[policy.home]\nweights = {click = 1}\nformula = 'power_product'\nmodels = ['feed']\n"
            "multiplier = 'price'",
            "policy.home: feed has no candidate feature price that is one number",
        ),
        (
            "[policy.home]\nweights = {click = 1}\nshadow = 'next'",
            "policy.home.shadow: feed has no policy next",
        ),
        (
            "[calibration.feed.buy]\nmethod = 'none'",
            "calibration.feed.buy: there is no such task",
        ),
        (
            "[calibration.feed.dwell]\nmethod = 'platt'\nslope = 1\nintercept = 0",
            "calibration.feed.dwell: platt is for probabilities",
        ),
    ],
    ids=lambda each: each[:50],
)
def test_a_mistake_refuses_the_whole_file_and_is_told_by_its_place(text, problem):
    (found,) = problems(f"{text}\n" if text.startswith("[") else text)
    assert found.startswith(problem)


def test_every_mistake_is_told_at_once():
    text = """
    [policy.home]
    formula = "best"
    weights = { click = "much" }
    [calibration.feed.click]
    method = "magic"
    """
    places = [problem.partition(":")[0] for problem in problems(text)]
    assert places == ["policy.home.formula", "policy.home.weights.click", "calibration.feed.click"]


def test_a_content_that_is_no_text_is_refused():
    with pytest.raises(PoliciesInvalid, match="is no TOML"):
        PolicySet.parse(b"\xff")


def test_a_key_cannot_forge_a_line_of_the_log():
    (found,) = problems('"x\\n{}y" = 1')
    assert found.startswith("x?{}y: ")
