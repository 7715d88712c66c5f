"""The console in a real, headless Chromium, against a real server."""

import itertools
import re
import shutil
import time
import tomllib
from pathlib import Path

import httpx
import pytest

from tests import REPOSITORY
from tests.support.server import running_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECRET = "0123456789abcdef0123456789abcdef"
POLICIES = """
[default]
tiny = "home"
[policy.home]
formula = "power_product"
weights = { click = 1.0, like = 0.5, dwell = 0.5 }
bounds = { click = [-3.0, 3.0], like = [0.0, 3.0] }
shadow = "likes"
[policy.likes]
formula = "weighted_sum"
weights = { click = 0.3, like = 1.0 }
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(store, tiny, tmp_path_factory):
    """A server with two policies; the second version in its store is damaged."""
    folder = tmp_path_factory.mktemp("console")
    shutil.copytree(store.folder, folder / "store")
    version = folder / "store" / tiny.model / str(tiny.version)
    damaged = version.with_name(str(tiny.version + 1))
    shutil.copytree(version, damaged)
    (damaged / "model.json").write_text(
        (version / "model.json")
        .read_text()
        .replace(f'"version": {tiny.version},', f'"version": {tiny.version + 1},')
    )
    with (damaged / "golden.safetensors").open("ab") as file:
        file.write(b"x")
    policies = folder / "policies.toml"
    policies.write_text(POLICIES)
    with running_server(folder / "store", folder / "log", "--policies", str(policies)) as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The console, opened; the test fails if its script reports an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = open_console(context, server.url)
    yield opened
    assert opened.errors == []
    context.close()


def open_console(context, url):
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on(
        "console",
        lambda line: page.errors.append(line.text) if line.type in ("error", "warning") else None,
    )
    page.goto(f"{url}/console")
    page.wait_for_selector("[data-side=A] tr[data-key]")
    page.wait_for_selector("[data-side=B] tr[data-key]")
    return page


def order(page, side):
    return page.eval_on_selector_all(
        f"[data-side={side}] tr[data-key]", "rows => rows.map(row => row.dataset.key)"
    )


def ranking(server, example, **wanted):
    answer = httpx.post(f"{server.url}/v1/score", json={**example, "ranking": wanted})
    return answer.json()["ranking"]


@pytest.fixture
def example(server):
    answer = httpx.get(f"{server.url}/v1/models/tiny/example", params={"candidates": 10}).json()
    del answer["ranking"]
    assert len(answer["candidate_keys"]) == 10
    return answer


def test_refused_version_and_its_reason_are_shown(page, server):
    [refused] = httpx.get(f"{server.url}/v1/models").json()["refused"]
    assert page.inner_text("#status") == "ready; 1 version refused"
    assert f"version {refused['version']} is refused" in page.inner_text("#findings")
    assert refused["reason"] in page.inner_text("#findings")
    row = page.inner_text("[data-model=tiny] tr.bad")
    assert row.split()[:2] == [str(refused["version"]), "refused"]
    assert refused["reason"] in row
    events = httpx.get(f"{server.url}/v1/events").json()["events"]
    assert page.get_attribute("#eventlist time", "datetime") == events[0]["at"]
    assert [event["text"] for event in events if event["is_problem"]] == [
        element.inner_text() for element in page.query_selector_all("#eventlist .bad")
    ]


def test_versions_show_their_golden_difference_precision_and_evaluation(page, server):
    [version] = httpx.get(f"{server.url}/v1/models/tiny").json()["versions"]
    row = page.inner_text("[data-model=tiny] tbody tr")
    largest, of, tolerance = row.split("\t")[3].replace("−", "-").split()
    assert of == "of"
    difference = version["golden"]["largest_difference"]
    assert float(largest) == pytest.approx(difference, rel=0.06)
    assert float(tolerance) == version["golden"]["tolerance"]
    assert "fp32" in row
    shown = page.inner_text("[data-model=tiny] .grid.wide table").split("\n")
    assert shown[0].split("\t") == ["measure", *version["evaluation"]]
    for line in shown[1:]:
        measure, *figures = line.split("\t")
        for task, figure in zip(version["evaluation"], figures, strict=True):
            exact = version["evaluation"][task].get(measure)
            if exact is None:
                assert figure == "–"
            else:
                assert float(figure.replace("−", "-")) == pytest.approx(exact, rel=0.06)


def test_heat_map_shows_the_weights_of_the_gates_as_a_table(page, server, example):
    for _ in range(3):
        httpx.post(f"{server.url}/v1/score", json=example).raise_for_status()
        time.sleep(0.3)
    page.wait_for_selector("[data-gates] table.heat")
    [version] = httpx.get(f"{server.url}/v1/models/tiny").json()["versions"]
    levels = version["gates"]["levels"]
    maps = page.query_selector_all("table.heat")
    assert len(maps) == len(levels) == 2
    for level, table in zip(levels, maps, strict=True):
        heads = [head.inner_text() for head in table.query_selector_all("thead th")]
        assert heads == ["gate", *level["experts"]]
        gates = [gate.inner_text() for gate in table.query_selector_all("tbody th")]
        assert gates == level["gates"]
        cells = [cell.inner_text() for cell in table.query_selector_all("tbody td")]
        weights = [weight for row in level["weights"] for weight in row]
        for cell, weight in zip(cells, weights, strict=True):
            if weight is None:
                assert cell == "·"
            else:
                assert float(cell.removesuffix(" %").lstrip("<")) == pytest.approx(
                    100 * weight, abs=5
                )


def test_expert_that_no_gate_uses_is_pointed_out(page):
    weights = [[0.98, 0.01, 0.01], [0.5, 0.49, 0.01]]
    level = {"gates": ["a", "b"], "experts": ["x", "y", "z"], "weights": weights}
    assert page.evaluate("level => expertShares(level)", level) == pytest.approx([2.94, 1.47, 0.03])
    heads = page.evaluate(
        "level => [...heatMap(level, 9).querySelectorAll('thead th')].map(e => e.textContent)",
        level,
    )
    assert heads == ["gate", "x", "y", "z †"]


def test_versions_are_compared_with_the_active_one(page):
    text = page.evaluate(
        """() => evaluation({version: 1, versions: [
            {version: 2, evaluation: {click: {auc: 0.76}}},
            {version: 1, evaluation: {click: {auc: 0.75, ndcg_10: 0.5}}}]}).innerText"""
    )
    assert "0.76 +0.01" in text
    assert "click" in text


def test_staleness_of_a_table_is_shown_where_the_server_has_one(page):
    shown = page.evaluate(
        "text => tableNotes(parse(text), 'tiny').map(note => [note.className, note.textContent])",
        'gatehouse_table_info{model="tiny",table="items",version="3.7"} 1\n'
        'gatehouse_table_rows{model="tiny",table="items"} 20000\n'
        'gatehouse_table_age_seconds{model="tiny",table="items"} 700\n'
        'gatehouse_table_max_age_seconds{model="tiny",table="items"} 600\n'
        'gatehouse_table_folded{model="tiny",table="items"} 1\n'
        'gatehouse_table_info{model="other",table="items",version="1"} 1\n',
    )
    assert shown == [
        ["small bad", "Table items 3.7: 20 k rows, newest data 12 min old, at most 10 min, folded"]
    ]


def test_playground_shows_the_orders_of_the_api(page, server, example):
    assert order(page, "A") == ranking(server, example, policy="home")
    assert order(page, "B") == ranking(server, example, policy="likes")
    assert "Kendall's tau" in page.inner_text("#agreement")


def test_slider_changes_the_order_as_the_api_does(page, server, example):
    before = order(page, "A")
    slider = page.get_by_label("Weight of click, policy A")
    slider.focus()
    slider.press("Home")  # the lowest weight that the bounds allow, by keyboard
    expected = ranking(server, example, policy="home", weights={"click": -3.0})
    assert expected != before
    page.wait_for_function(
        "expected => [...document.querySelectorAll('[data-side=A] tr[data-key]')]"
        ".map(row => row.dataset.key).join() === expected",
        arg=",".join(expected),
    )
    assert page.get_by_label("Weight of dwell, policy A").is_disabled()  # has no bounds
    assert "click^-3" in page.inner_text("[data-side=A] .formula")


def test_choosing_a_policy_ranks_with_it(page, server, example):
    page.get_by_label("Policy A", exact=True).select_option("likes")
    page.wait_for_function(
        "() => document.querySelector('#agreement').textContent.includes('tau 1.00')"
    )
    assert order(page, "A") == order(page, "B") == ranking(server, example, policy="likes")


def test_candidate_shows_the_explanation_of_the_api(page, server, example):
    wanted = {"policy": "home", "explain": True}
    answer = httpx.post(f"{server.url}/v1/score", json={**example, "ranking": wanted}).json()
    first = answer["explanation"]["candidates"][0]
    lead = first["tasks"]["like"]["lead"]
    shown = page.inner_text(f"[data-side=A] tr[data-key={first['candidate']}] td:nth-child(4)")
    text = shown.split()[-1].replace("−", "-")
    assert float(text) == pytest.approx(lead, rel=1e-2)


def test_drift_is_shown_where_the_server_measures_it(page):
    shown = page.evaluate(
        "text => driftNotes(parse(text), 'tiny').map(note => [note.className, note.textContent])",
        'gatehouse_feature_drift{model="tiny",feature="age"} 0.02\n'
        'gatehouse_feature_drift{model="tiny",feature="quality"} 0.4\n'
        'gatehouse_feature_drift{model="other",feature="age"} 3\n'
        'gatehouse_feature_drift{model="tiny",feature="new"} NaN\n',
    )
    note = "Drift of features against the training data: quality 0.4, age 0.02"
    assert shown == [["small bad", note]]


def test_choosing_a_candidate_shows_how_its_rank_score_is_made(page, server, example):
    wanted = {"policy": "home", "explain": True}
    answer = httpx.post(f"{server.url}/v1/score", json={**example, "ranking": wanted}).json()
    first = answer["explanation"]["candidates"][0]
    page.locator("[data-side=A] tr[data-key] button").first.press("Enter")
    text = page.inner_text(f"[data-side=A] tr[data-detail={first['candidate']}]").replace("−", "-")
    numbers = [
        float(word)
        for line in text.split("\n")
        if line.startswith("like")
        for word in line.split()[1:]
    ]
    expected = [first["tasks"]["like"][name] for name in ("raw", "calibrated", "share", "lead")]
    assert numbers == pytest.approx(expected, rel=1e-2)
    button = page.locator("[data-side=A] tr[data-key] button").first
    assert button.get_attribute("aria-expanded") == "true"
    assert page.evaluate("document.activeElement.textContent") == str(first["candidate"])
    button.press("Enter")
    assert page.locator("[data-side=A] tr[data-detail]").count() == 0


def wait_for_order(page, side, expected):
    page.wait_for_function(
        "([side, expected]) => [...document.querySelectorAll(`[data-side=${side}] tr[data-key]`)]"
        ".map(row => row.dataset.key).join() === expected",
        arg=[side, ",".join(expected)],
    )


def tried(server, example, policy):
    scores = httpx.post(f"{server.url}/v1/score", json=example).json()["scores"]
    body = {"scores": scores, "policy": policy, "candidate_keys": example["candidate_keys"]}
    answer = httpx.post(f"{server.url}/v1/models/tiny/rank", json=body)
    return answer.raise_for_status().json()["ranking"]


def test_any_formula_ranks_as_the_api_does_and_can_be_copied(page, server, example):
    weights = {"click": 1.0, "like": 0.5, "dwell": 0.5}
    for formula in ("weighted_sum", "rank_position"):
        page.get_by_label("Formula A").select_option(formula)
        wait_for_order(page, "A", tried(server, example, {"formula": formula, "weights": weights}))
    slider = page.get_by_label("Weight of dwell, policy A")
    slider.press("Home")
    changed = weights | {"dwell": 0.0}
    expected = tried(server, example, {"formula": "rank_position", "weights": changed})
    wait_for_order(page, "A", expected)
    policy = tomllib.loads(page.evaluate("policyToml(play.sides[0])"))["policy"]["home"]
    assert policy == {"formula": "rank_position", "weights": changed}
    page.get_by_label("Formula A").select_option("power_product")
    wait_for_order(page, "A", ranking(server, example, policy="home"))


def test_expression_is_tried_as_it_is_typed(page, server, example):
    page.get_by_label("Formula B").select_option("expression")
    page.get_by_label("Expression B").fill("w.c * click - like / (1 + w.d * dwell)")
    policy = {
        "formula": "expression",
        "expression": "w.c * click - like / (1 + w.d * dwell)",
        "weights": {"c": 1.0, "d": 1.0},
    }
    wait_for_order(page, "B", tried(server, example, policy))
    assert page.get_by_label("Weight of d, policy B").is_enabled()
    page.get_by_label("Expression B").fill("clik +")
    page.wait_for_selector("#playproblem .message")
    assert "/policy/expression" in page.inner_text("#playproblem")
    page.errors[:] = [error for error in page.errors if "422" not in error]


def test_copied_policy_is_valid_toml_with_the_weights_of_the_sliders(page):
    page.get_by_label("Weight of like, policy A").press("End")
    page.wait_for_function(
        "() => document.querySelector('[data-side=A] .formula').textContent.includes('like^3')"
    )
    text = page.evaluate("policyToml(play.sides[0])")
    policy = tomllib.loads(text)["policy"]["home"]
    assert policy["formula"] == "power_product"
    assert policy["weights"] == {"click": 1.0, "like": 3.0, "dwell": 0.5}
    assert policy["bounds"] == {"click": [-3.0, 3.0], "like": [0.0, 3.0]}


def test_charts_move_under_load(page, server, example):
    page.wait_for_function("() => document.querySelectorAll('#tiles b').length > 0")
    for _ in range(30):
        httpx.post(f"{server.url}/v1/score", json=example).raise_for_status()
    page.wait_for_function("() => parseFloat(document.querySelector('#tiles b').textContent) > 0")
    page.wait_for_selector("#stages .stack")
    page.wait_for_selector("#cards svg rect:not([height='0'])")
    page.hover("#latency svg")
    assert "compute" in page.inner_text("#stages")
    assert page.get_attribute("#latency svg", "aria-label").startswith("Latency: p50 ")


# Draws cards of a model with one, two and three tasks; returns where histograms and labels are.
HISTOGRAMS = """async () => {
  const model = (await read('/v1/models').then(response => response.json())).models[0];
  const {metrics} = snapshot(await read('/metrics').then(response => response.text()));
  const edges = [0, .001, .002, .005, .01, .02, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1, 2];
  // Scores of the first task begin at 0.005, and those of the second one end at 0.2.
  const upTo = [edge => edge < .005 ? 0 : edge, edge => Math.min(edge, .2), edge => edge];
  metrics.gatehouse_task_score_bucket = model.tasks.flatMap((task, index) => edges.map(edge => {
    const le = edge === 2 ? '+Inf' : String(edge);
    return [{model: model.name, task: task.name, le}, upTo[index](edge)];
  }));
  const tasks = [1, 2, 3].map(count => model.tasks.slice(0, count));
  show('cards', ...tasks.map(tasks => card({...model, tasks}, [], metrics)));
  const box = node => { const {left, right} = node.getBoundingClientRect(); return [left, right]; };
  return [...document.querySelectorAll('#cards .grid.fit svg')].map(svg =>
    ({chart: box(svg), labels: [...svg.querySelectorAll('text')].map(box)}));
}"""


@pytest.mark.parametrize("width", [390, 700, 1280, 1920])
def test_labels_of_histograms_stay_in_their_chart_and_apart(browser, server, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = open_console(context, server.url)
    page.wait_for_selector("#cards .card")
    histograms = page.evaluate(HISTOGRAMS)
    assert len(histograms) == 1 + 2 + 3
    for histogram in histograms:
        (left, right), labels = histogram["chart"], histogram["labels"]
        assert right - left <= 420  # 320 units: labels have at most 1.3 times their size
        assert len(labels) >= 3
        assert left <= labels[0][0]
        assert labels[-1][1] <= right
        assert all(before[1] + 2 < after[0] for before, after in itertools.pairwise(labels))
    assert page.errors == []
    context.close()


def test_request_that_is_wrong_shows_the_problems_of_the_api(page):
    page.locator("summary").click()
    page.fill("#request", '{"user": {}, "candidates": {"nothing": [1]}}')
    page.wait_for_selector("#playproblem .message")
    assert "Invalid request" in page.inner_text("#playproblem")
    assert "/candidates/nothing" in page.inner_text("#playproblem")
    page.fill("#request", "{")
    page.wait_for_function(
        "() => document.querySelector('#playproblem').textContent.includes('not JSON')"
    )
    page.errors[:] = [error for error in page.errors if "422" not in error]


def test_server_that_stops_is_reported_and_the_page_stays(page):
    page.context.set_offline(True)
    page.wait_for_function(
        "() => document.querySelector('#status').textContent === 'not reachable'"
    )
    assert "does not answer" in page.inner_text("#problems")
    assert page.inner_text("#findings") == ""
    assert order(page, "A")
    page.context.set_offline(False)
    page.wait_for_function(
        "() => document.querySelector('#status').textContent.startsWith('ready')"
    )
    page.errors[:] = [error for error in page.errors if "ERR_INTERNET_DISCONNECTED" not in error]


def test_page_loads_nothing_from_another_host(browser, server):
    context = browser.new_context()
    requested = []
    context.on("request", lambda request: requested.append(request.url))
    page = open_console(context, server.url)
    assert page.errors == []
    assert {url.split("/")[0] for url in requested} <= {"http:", "data:"}
    assert all(url.startswith((server.url, "data:")) for url in requested)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_light_and_dark(browser, server, scheme):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = open_console(context, server.url)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    )
    assert (red + green + blue < 200) == (scheme == "dark")
    assert page.errors == []
    context.close()


def test_playground_asks_for_a_key_where_keys_are_set(browser, store, tmp_path):
    with running_server(
        store.folder, tmp_path / "log", environment={"GATEHOUSE_KEYS": f"console:{SECRET}"}
    ) as server:
        page = browser.new_page()
        page.goto(f"{server.url}/console")
        page.wait_for_selector("#keyfield:not([hidden])")
        assert "API key" in page.inner_text("#playproblem")
        page.fill("#key", SECRET)
        page.press("#key", "Enter")
        page.wait_for_selector("[data-side=A] tr[data-key]")
        page.close()


def test_console_of_an_empty_store_says_what_to_do(browser, tmp_path):
    (tmp_path / "store").mkdir()
    with running_server(tmp_path / "store", tmp_path / "log", ready=False) as server:
        page = browser.new_page()
        page.goto(f"{server.url}/console")
        page.wait_for_selector("#cards .message")
        assert "No model is active" in page.inner_text("#cards")
        assert "not ready" in page.inner_text("#status")
        assert "needs an active model" in page.inner_text("#sides")
        page.close()


def test_guides_show_the_pictures_of_the_console():
    folder = REPOSITORY / "docker"
    shown = re.findall(r"(?:\]\(|src=\")(pictures/\w+\.png)", (folder / "OBSERVE.md").read_text())
    assert sorted(shown) == sorted(f"pictures/{file.name}" for file in folder.glob("pictures/*"))
    assert {Path(path).stem for path in shown} == {
        *("load", "refused", "playground", "dark", "phone"),
    }
    for path in shown:
        picture = folder / path
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 150_000
    assert "docker/pictures/playground.png" in (REPOSITORY / "README.md").read_text()
