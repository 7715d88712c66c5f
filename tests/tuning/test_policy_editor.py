"""The editor keeps what people wrote, and never leaves a partial or invalid file."""

import os
import stat

import pytest

from app.errors import PoliciesInvalid, TuningError
from app.ranking.calibration import Isotonic, Platt
from app.ranking.policies import ModelTraits, PolicySet
from app.ranking.policy import Policy
from app.tuning.policy_editor import PolicyEditor

MODEL = ModelTraits(
    name="feed",
    tasks=("click", "like"),
    policy=Policy(name="default", weights={"click": 1.0}),
    probabilities=frozenset({"click", "like"}),
)
WRITTEN = """\
# Who changes this tells the feed team.
[default]
feed = "home"

[policy.home]  # the first page
formula = "power_product"
weights = { click = 1.0, like = 0.5 }  # as of March
bounds = { like = [0.0, 3.0] }
shadow = "next"

[policy.next]
formula = "expression"
expression = "click * (1 + w.like*like)"

[policy.next.weights]
like = 2.0  # a guess

[calibration.feed.click]
method = "scale"
factor = 0.5
"""
PLATT = Platt(method="platt", slope=0.9, intercept=-0.1)
ISOTONIC = Isotonic(method="isotonic", scores=(0.0, 0.5, 1.0), calibrated=(0.0, 0.25, 1.0))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "policies.toml"
    path.write_text(WRITTEN)
    return path


def changed(path) -> list[tuple[str, str]]:
    """Lines that differ from `WRITTEN`, each with what it was."""
    lines = zip(WRITTEN.splitlines(), path.read_text().splitlines(), strict=True)
    return [(old, new) for old, new in lines if old != new]


def test_weights_change_in_place_and_everything_else_is_kept(path):
    file = PolicyEditor(path)
    file.set_policy(file.policies_for(MODEL).default.policy.reweighted({"like": 0.7}))
    file.write(MODEL)
    assert changed(path) == [
        (
            "weights = { click = 1.0, like = 0.5 }  # as of March",
            "weights = { click = 1.0, like = 0.7 }  # as of March",
        )
    ]


def test_weights_in_a_table_of_their_own_change_in_place(path):
    file = PolicyEditor(path)
    file.set_policy(file.policies_for(MODEL).by_name["next"].policy.reweighted({"like": 1.25}))
    file.write(MODEL)
    assert changed(path) == [("like = 2.0  # a guess", "like = 1.25  # a guess")]


def test_a_new_policy_and_new_calibrations_are_added(path):
    file = PolicyEditor(path)
    file.set_calibration("feed", "click", PLATT)
    file.set_calibration("feed", "like", ISOTONIC)
    file.set_policy(Policy(name="late", weights={"like": 1.0}, bounds={"like": (0.0, 2.0)}))
    file.write(MODEL)
    read = PolicySet.parse(path.read_bytes())
    assert read.calibrations["feed"] == {"click": PLATT, "like": ISOTONIC}
    assert read.policies["late"].weights == {"like": 1.0}
    assert read.policies["late"].bounds == {"like": (0.0, 2.0)}
    assert read.policies["home"] == PolicySet.parse(WRITTEN.encode()).policies["home"]
    assert path.read_text().startswith(WRITTEN[: WRITTEN.index("[calibration")])


@pytest.mark.parametrize(
    "policy",
    [
        Policy(name="mine", weights={"click": 1.0, "like": -2.0}),
        Policy(
            name="mine",
            formula="rank_position",
            weights={"click": 1.0},
            alpha={"click": 0.5},
            beta={"click": 1.0},
        ),
        Policy(name="mine", formula="expression", expression="click**w.a", weights={"a": 0.3}),
    ],
    ids=lambda policy: policy.formula,
)
def test_a_missing_file_is_created(tmp_path, policy):
    file = PolicyEditor(tmp_path / "new.toml")
    file.set_policy(policy)
    file.set_calibration("feed", "click", PLATT)
    file.write(MODEL)
    read = PolicySet.parse((tmp_path / "new.toml").read_bytes())
    assert read.policies_for(MODEL).by_name["mine"].policy.model_dump() == policy.model_dump()
    assert list(tmp_path.iterdir()) == [tmp_path / "new.toml"]


def test_a_different_policy_of_the_same_name_is_not_overwritten(path):
    file = PolicyEditor(path)
    home = file.policies_for(MODEL).default.policy
    with pytest.raises(
        TuningError, match='policy "next" exists and differs in more than its weights'
    ):
        file.set_policy(home.model_copy(update={"name": "next"}))


def test_a_policy_under_a_new_name_is_added(path):
    file = PolicyEditor(path)
    home = file.policies_for(MODEL).default.policy
    file.set_policy(home.reweighted({"like": 2.0}).model_copy(update={"name": "home-2"}))
    file.write(MODEL)
    read = PolicySet.parse(path.read_bytes())
    assert read.policies["home-2"].weights == {"click": 1.0, "like": 2.0}
    assert read.policies["home-2"].shadow is None
    assert read.policies["home"].weights == {"click": 1.0, "like": 0.5}


def test_a_file_that_a_server_would_refuse_is_not_written(path):
    file = PolicyEditor(path)
    file.set_policy(file.policies_for(MODEL).default.policy.reweighted({"like": 5.0}))
    with pytest.raises(PoliciesInvalid, match="outside its bounds"):
        file.write(MODEL)
    assert path.read_text() == WRITTEN


def test_a_file_changed_since_it_was_read_is_not_replaced(path):
    file = PolicyEditor(path)
    file.set_calibration("feed", "click", PLATT)
    path.write_text(WRITTEN + "# me too\n")
    with pytest.raises(TuningError, match="was changed since it was read"):
        file.write(MODEL)
    assert path.read_text() == WRITTEN + "# me too\n"


def test_a_full_disk_leaves_the_old_file_and_no_temporary_file(path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    file = PolicyEditor(path)
    file.set_calibration("feed", "click", PLATT)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TuningError, match="No space left"):
        file.write(MODEL)
    assert path.read_text() == WRITTEN
    assert list(path.parent.iterdir()) == [path]


def test_permissions_are_kept_and_a_link_is_followed(path):
    path.chmod(0o640)
    link = path.with_name("link.toml")
    link.symlink_to(path)
    file = PolicyEditor(link)
    file.set_calibration("feed", "click", PLATT)
    file.write(MODEL)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "platt" in path.read_text()


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("policy = 3", "policy: "),
        ("[", "not valid TOML"),
        ("[default]\nfeed = 'x'", "unknown policy"),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path, content, rule):
    (tmp_path / "policies.toml").write_text(content)
    with pytest.raises(TuningError, match=rule):
        PolicyEditor(tmp_path / "policies.toml").policies_for(MODEL)


def test_a_file_with_a_byte_order_mark_is_changed_like_any_other(path):
    path.write_text(WRITTEN, encoding="utf-8-sig")
    file = PolicyEditor(path)
    file.set_policy(file.policies_for(MODEL).default.policy.reweighted({"like": 0.7}))
    file.write(MODEL)
    assert path.read_text() == "\ufeff" + WRITTEN.replace("like = 0.5", "like = 0.7")


def test_a_fifo_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "policies.toml")
    with pytest.raises(TuningError, match=r"policies\.toml: not a regular file"):
        PolicyEditor(tmp_path / "policies.toml")


def test_changes_is_a_unified_diff(path):
    file = PolicyEditor(path)
    assert file.changes() == ""
    file.set_policy(file.policies_for(MODEL).default.policy.reweighted({"like": 0.7}))
    signs = [line for line in file.changes().splitlines() if line[0] in "+-"]
    assert signs[2:] == [
        "-weights = { click = 1.0, like = 0.5 }  # as of March",
        "+weights = { click = 1.0, like = 0.7 }  # as of March",
    ]


def test_a_byte_order_mark_is_kept(path):
    path.write_text("\ufeff" + WRITTEN)
    file = PolicyEditor(path)
    assert file.changes() == ""
    file.set_policy(file.policies_for(MODEL).default.policy.reweighted({"like": 0.7}))
    file.write(MODEL)
    text = path.read_text()
    assert text.count("\ufeff") == 1
    assert text == "\ufeff" + WRITTEN.replace("click = 1.0, like = 0.5", "click = 1.0, like = 0.7")
