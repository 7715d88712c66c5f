"""The policies file: what it means, and every mistake that refuses it as a whole."""

import time
from typing import Any

import numpy as np
import pytest
import tomlkit
from hypothesis import given, strategies as st

from app.errors import PoliciesInvalid
from app.files import MAX_KEY_PARTS
from app.ranking.calibration import Platt, Scale
from app.ranking.policies import (
    LARGEST_FILE,
    MAX_PROBLEMS,
    NO_POLICIES,
    ModelPolicies,
    ModelTraits,
    PolicySet,
)
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


def policies_for(text: str, **changes: Any) -> ModelPolicies:
    return parsed(text).policies_for(traits(**changes))


def problems(text: str, **changes: Any) -> list[str]:
    with pytest.raises(PoliciesInvalid) as caught:
        policies_for(text, **changes)
    return caught.value.problems


def test_a_request_may_name_policies_of_the_file_and_the_models_own():
    found = policies_for(FILE)
    assert list(found.by_name) == ["default", "home", "home-next"]
    assert found.by_name["default"].policy == Policy(weights={"click": 1.0})
    assert found.default is found.by_name["home"] is found.default_options.ranker


def test_the_example_in_the_docstring_is_a_valid_file():
    import app.ranking.policies as module

    assert module.__doc__ is not None
    text = module.__doc__.partition("\n\n")[2]
    example = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    assert list(policies_for(example).by_name) == ["default", "home", "home-next"]


def test_a_policy_is_not_available_for_a_model_without_its_tasks():
    assert "videos" not in policies_for(FILE).by_name
    assert "videos" in policies_for(FILE, name="clips", tasks=("click", "like", "watched")).by_name


def test_a_policy_with_models_is_not_available_for_others():
    other = policies_for(FILE, name="other")
    assert list(other.by_name) == ["default", "home-next"]
    assert other.default.policy.name == "default"


def test_a_calibration_of_the_file_replaces_that_of_the_named_model_only():
    click, like, dwell = policies_for(FILE).default.calibrations
    assert click == Platt(method="platt", slope=1.5, intercept=-0.5)
    assert (like.method, dwell.method) == ("none", "scale")
    assert policies_for(FILE, name="other").default.calibrations[0].method == "scale"


def test_a_shadow_is_a_ranker_with_its_own_policy_and_the_same_calibration():
    shadow = policies_for(FILE).default.shadow
    assert shadow is not None
    assert shadow.policy.name == "home-next"
    assert shadow.shadow is None
    scores = np.array([[0.5, 0.5, 1]], np.float32)
    calibrated = 1 / (1 + np.exp(0.5))
    assert shadow.sort_keys(scores)[0] == pytest.approx(calibrated**0.8 * 2)


def test_the_models_own_policy_may_be_a_shadow():
    text = '[policy.next]\nweights = { like = 1.0 }\nshadow = "default"'
    shadow = policies_for(text).by_name["next"].shadow
    assert shadow is not None
    assert shadow.policy == traits().policy


def test_a_policy_of_the_file_replaces_the_models_own_of_the_same_name():
    found = policies_for("[policy.default]\nweights = { like = 1.0 }")
    assert found.default.policy.weights == {"like": 1.0}


def test_a_response_contains_the_version_which_depends_on_the_content():
    one, same, other = parsed(FILE), parsed(FILE), parsed(FILE + "\n# changed")
    assert one.version == same.version != other.version
    assert one.policies_for(traits()).default.description == {
        "name": "home",
        "formula": "power_product",
        "weights": {"click": 1.0, "like": 0.5},
        "version": one.version,
    }
    assert "version" not in NO_POLICIES.policies_for(traits()).default.description


def test_with_an_empty_file_a_model_has_its_own_policy_only():
    assert list(policies_for("").by_name) == ["default"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[policy.home", "not valid TOML: Expected ']' at the end of a table declaration"),
        ("[policy.home]\nweights = {}", "policy.home: weights: at least one is needed"),
        (
            "[policy.home]\nweights = {click = nan}",
            "policy.home.weights.click: must be a finite number",
        ),
        ("[policy.home]\nweights = {click = true}", "policy.home.weights.click: must be a number"),
        ("[policy.home]\nweights = {click = '1'}", "policy.home.weights.click: must be a number"),
        (
            "[calibration.feed.dwell]\nmethod = 'scale'\nfactor = '2'",
            "calibration.feed.dwell.factor: must be a number",
        ),
        (
            "[policy.home]\nname = 'x'\nweights = {click = 1}",
            'unknown key "name" in [policy.home]: a policy has the name',
        ),
        ("[policy.Home]\nweights = {click = 1}", "policy.Home: a name has 1 to 64 letters"),
        ("[policy]\nhome = 3", "policy.home: must be a table"),
        ("policy = 3", "policy: must be a table"),
        ("[polcy.home]\nweights = {click = 1}", 'unknown key "polcy"; did you mean "policy"?'),
        (
            "[policy.home]\nweights = {click = 1}\nweigths = 2",
            'unknown key "weigths" in [policy.home]; did you mean "weights"?',
        ),
        (
            "[policy.home]\nformula = 'expression'\nexpression = 'click + * 2'",
            "policy.home.expression: expected a number, a task, a weight, a function or "
            '"(" (at column 9)',
        ),
        (
            "[policy.home]\nweights = {click = 1}\nshadow = 'home'",
            "policy.home: shadow: must name another policy",
        ),
        (
            "[policy.home]\nweights = {click = 1}\nmodels = []",
            "policy.home.models: must have at least 1 item",
        ),
        (
            "[calibration.feed.click]\nmethod = 'scale'\nfactor = 0",
            "calibration.feed.click.factor: must be at least 1e-06",
        ),
        ("x = " + "[" * 20000, "not valid TOML: arrays or tables are nested too deeply"),
        ("x = " + "9" * 5000, "not valid TOML: "),
        ("#" * (LARGEST_FILE + 1), f"is larger than {LARGEST_FILE} bytes"),
        # mistakes that show with a model:
        (
            "[default]\nfeed = 'home'\n[policy.home]\nweights = {buy = 1}",
            'default.feed: policy "home": model "feed": unknown task "buy" (known: click, ',
        ),
        (
            "[default]\nfeed = 'home'\n[policy.home]\nweights = {like = 1}\nmodels = ['other']",
            'default.feed: policy "home": is not for model "feed" (models: other)',
        ),
        (
            "[policy.home]\nweights = {buy = 1}\nmodels = ['feed']",
            'policy.home: model "feed": unknown task "buy" (known: click, like, dwell)',
        ),
        (
            "[policy.home]\nweights = {click = 1}\nformula = 'power_product'\nmodels = ['feed']\n"
            "multiplier = 'price'",
            'policy.home: model "feed": unknown candidate feature of one number "price" '
            "(known: boost)",
        ),
        (
            "[policy.home]\nweights = {click = 1}\nshadow = 'next'",
            'policy.home.shadow: unknown policy "next" (known: default, home)',
        ),
        (
            "[calibration.feed.buy]\nmethod = 'none'",
            'calibration.feed.buy: unknown task "buy" (known: click, like, dwell)',
        ),
        (
            "[calibration.feed.dwell]\nmethod = 'platt'\nslope = 1\nintercept = 0",
            "calibration.feed.dwell: platt is for probabilities only",
        ),
    ],
    ids=lambda value: value[:50],
)
def test_one_mistake_refuses_the_file_and_is_named_with_its_place(text, problem):
    (found,) = problems(f"{text}\n" if text.startswith("[") else text)
    assert found.startswith(problem)


def test_all_mistakes_are_listed_at_once():
    text = """
    [policy.home]
    formula = "best"
    weights = { click = "much" }
    [calibration.feed.click]
    method = "magic"
    """
    places = [problem.partition(":")[0] for problem in problems(text)]
    assert places == [
        "policy.home.formula",
        "policy.home.weights.click",
        "calibration.feed.click.method",
    ]


def test_content_that_is_not_utf_8_is_refused():
    with pytest.raises(PoliciesInvalid, match="not valid TOML"):
        PolicySet.parse(b"\xff")


def test_a_key_cannot_forge_a_line_of_the_log():
    (found,) = problems(
        '[policy.home]\nweights = {click = 1}\nformula = "rank_position"\nalpha = {"x\\ny" = 1}'
    )
    assert found == 'policy.home: alpha: "x?y" has no weight'
    (found,) = problems('"x\\n{}y" = 1')
    assert found.startswith('unknown key "x?{}y"')


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[policy.home]\nformla = 'expression'\nweights = {click = 1}",
            'unknown key "formla" in [policy.home]; did you mean "formula"?',
        ),
        (
            "[policy.home]\nweights = {click = 1}\ncolour = 'red'",
            'unknown key "colour" in [policy.home] (known: formula, weights, bounds, multiplier, '
            "alpha, beta, expression, models, shadow)",
        ),
        (
            "[calibration.feed.click]\nmethod = 'platt'\nslope = 1\nintercpt = 0\nintercept = 0",
            'unknown key "intercpt" in [calibration.feed.click]; did you mean "intercept"?',
        ),
        ("[defaults]\nfeed = 'home'", 'unknown key "defaults"; did you mean "default"?'),
        (
            "[policy.home]\nformula = 'power_prodcut'\nweights = {click = 1}",
            'policy.home.formula: must be "weighted_sum", "power_product", "rank_position" or '
            '"expression"; did you mean "power_product"?',
        ),
        (
            "[calibration.feed.click]\nmethod = 'plat'",
            'calibration.feed.click.method: unknown method "plat"; did you mean "platt"?',
        ),
        (
            "[calibration.feed.click]\nslope = 1",
            "calibration.feed.click.method: required key is missing",
        ),
        (
            "[calibration.feed.click]\nmethod = 'scale'",
            "calibration.feed.click.factor: required key is missing",
        ),
        (
            "[policy.home]\nweights = {clik = 1}\nmodels = ['feed']",
            'policy.home: model "feed": unknown task "clik"; did you mean "click"?',
        ),
        (
            "[policy.home]\nweights = {click = 1}\nshadow = 'nxt'\n"
            "[policy.next]\nweights = {click = 1}",
            'policy.home.shadow: unknown policy "nxt"; did you mean "next"?',
        ),
    ],
    ids=lambda value: value[:50],
)
def test_a_misspelt_name_is_named_with_the_nearest_known_one(text, problem):
    assert problems(text) == [problem]


@pytest.mark.parametrize("model", ["feed", "a-model-that-is-not-loaded"])
def test_an_unknown_policy_in_default_is_a_mistake_even_if_no_model_uses_it(model):
    with pytest.raises(PoliciesInvalid) as caught:
        parsed(f"[default]\n{model} = 'hoem'\n[policy.home]\nweights = {{click = 1}}")
    assert caught.value.problems == [
        f'default.{model}: unknown policy "hoem"; did you mean "home"?'
    ]
    with pytest.raises(PoliciesInvalid) as caught:
        parsed(f"[default]\n{model} = 'x\\ny'".replace("'", '"'))
    assert caught.value.problems == [f'default.{model}: unknown policy "x?y" (known: default)']


def test_default_may_name_an_unknown_model_and_the_policy_that_every_model_has():
    found = policies_for(
        "[default]\nlater = 'home'\nfeed = 'default'\n[policy.home]\nweights={click=1}"
    )
    assert found.default.policy == traits().policy
    with pytest.raises(PoliciesInvalid, match=r'unknown policy "default" \(known: own\)'):
        policies_for(
            "[default]\nfeed = 'default'", policy=Policy(name="own", weights={"click": 1.0})
        )


def test_at_most_20_problems_are_listed():
    text = "[default]\n" + "\n".join(f"m{number} = 'x'" for number in range(30))
    assert len(problems(text)) == MAX_PROBLEMS == 20


def test_a_byte_order_mark_is_ignored():
    marked = PolicySet.parse(b"\xef\xbb\xbf" + FILE.encode())
    assert marked.policies == parsed(FILE).policies


MANY_PARTS = ".".join(["a"] * 40_000)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "text",
    [
        f"{MANY_PARTS} = 1",
        f"[{MANY_PARTS}]",
        f"[[{MANY_PARTS}]]",
        f"x = {{{MANY_PARTS} = 1}}",
        ' . "a\\"" . '.join(["'a.#'"] * 20_000) + " = 1",
        f'x = [\'\', """\n\\""""", {{{MANY_PARTS} = 1}}]',
    ],
    ids=["key", "table", "array of tables", "inline table", "quoted", "after strings"],
)
def test_a_key_of_very_many_parts_is_refused_at_once(text):
    began = time.process_time()
    (found,) = problems(text)
    assert time.process_time() - began < 2  # tomllib takes a minute
    line = 2 if "\n" in text else 1
    assert found == f"not valid TOML: a key has more than {MAX_KEY_PARTS} parts (at line {line})"


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "unit", ['\\"', '\\"""\n', "'''", '"""\\', "'", '"', "a", " ", ".", "1.5,", "#", "''''", "-"]
)
def test_looking_for_long_keys_takes_linear_time(unit):
    began = time.process_time()
    with pytest.raises(PoliciesInvalid):
        parsed("= " + unit * (LARGEST_FILE // len(unit) - 2))  # tomllib stops at the "="
    assert time.process_time() - began < 10


def test_only_dots_in_keys_are_counted():
    dots = "a.b.c.d.e.f.g.h.i.j.k"
    text = f"""
    # {dots}
    [policy.home]
    weights = {{ click = 1.5 }}
    [calibration.feed."click"]
    method = "isotonic"
    scores = [{", ".join(f"{number}.5" for number in range(1000))}]
    calibrated = [{", ".join(f"{number}.5" for number in range(1000))}]
    """
    assert policies_for(text).by_name["home"].calibrations[0].method == "isotonic"
    for quoted in (f'"{dots}"', f"'{dots}'", f'"""\n{dots}"""', f"'''{dots}'''"):
        (found,) = problems(f"[policy.home]\nweights = {{click = 1}}\nmultiplier = {quoted}")
        assert "multiplier is for formula" in found


KEYS = st.sampled_from(
    [
        *("default", "policy", "calibration", "feed", "home", "click", "name", "formula"),
        *("weights", "bounds", "alpha", "shadow", "models", "method", "slope", "[key]", "x\ny", ""),
    ]
)
VALUES = st.recursive(
    st.sampled_from(
        ["home", "platt", "scale", "click", "expression", "default", 1, 0.5, True, -1e9]
    )
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_table_is_a_policy_set_or_a_list_of_one_line_problems(tables):
    found: list[str] = []
    try:
        PolicySet.parse(tomlkit.dumps(tables).encode()).policies_for(traits())
    except PoliciesInvalid as error:
        found = error.problems
    assert len(found) <= MAX_PROBLEMS
    assert all(problem.isprintable() for problem in found)
