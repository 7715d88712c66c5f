"""MovieLens: the raw files of GroupLens and of RecBole become the same requests."""

from collections import Counter

import pyarrow.parquet as parquet
import pytest

from app.cli.main import main as gatehouse_command
from app.main import gatehouse
from app.settings import Settings
from models import __main__ as cli, data
from models.data import movielens
from models.training import experiment
from tests import REPOSITORY
from tests.support.in_process import client_of

CONFIGS = REPOSITORY / "models" / "configs" / "movielens"
USERS, MOVIES = 6, 60
GENRES = {movie: [movielens.GENRES[1 + movie % 5]] for movie in range(1, MOVIES + 1)}
RATINGS = [
    (user, 1 + (user * 7 + i * 7) % MOVIES, 1 + (user + i) % 5, 1000 * user + i)
    for user in range(1, USERS + 1)
    for i in range(18 + user)
]


def year(movie):
    return "" if movie == 4 else str(1950 + movie)


def grouplens(folder):
    folder.mkdir()
    shuffled = sorted(RATINGS, key=hash)
    text = "".join("\t".join(map(str, rating)) + "\n" for rating in shuffled)
    (folder / "u.data").write_text(text)
    lines = []
    for movie in range(1, MOVIES + 1):
        flags = "|".join("1" if genre in GENRES[movie] else "0" for genre in movielens.GENRES)
        date = f"01-Jan-{year(movie)}" if year(movie) else ""
        lines.append(f"{movie}|Caf\xe9 {movie}|{date}||http://x|{flags}\n")
    (folder / "u.item").write_text("".join(lines), encoding="latin-1")
    users = "".join(f"{user}|{20 + user}|F|writer|00000\n" for user in range(1, USERS + 1))
    (folder / "u.user").write_text(users)
    return folder


def recbole(folder):
    folder.mkdir()
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    text = "".join("\t".join(map(str, rating)) + "\n" for rating in RATINGS)
    (folder / "ml-100k.inter").write_text(header + text)
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    lines = [
        f"{movie}\tFilm \u2603\t{year(movie)}\t{' '.join(GENRES[movie])}\n"
        for movie in range(1, MOVIES + 1)
    ]
    (folder / "ml-100k.item").write_text(header + "".join(lines), encoding="utf-8")
    header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    users = "".join(f"{user}\t{20 + user}\tF\twriter\t0\n" for user in range(1, USERS + 1))
    (folder / "ml-100k.user").write_text(header + users)
    return folder


@pytest.fixture
def tables(tmp_path):
    data.fetch("movielens-100k", tmp_path / "data" / "movielens-100k", recbole(tmp_path / "raw"))
    folder = tmp_path / "data" / "movielens-100k"
    return {
        part: parquet.read_table(folder / f"{part}.parquet").to_pylist()
        for part in ("train", "validation", "test")
    }


def test_both_forms_of_the_raw_files_give_the_same_tables(tmp_path):
    one = data.fetch("movielens-100k", tmp_path / "a", grouplens(tmp_path / "grouplens"))
    assert data.fetch("movielens-100k", tmp_path / "b", recbole(tmp_path / "recbole")) == one
    for part in one:
        a, b = (parquet.read_table(tmp_path / name / f"{part}.parquet") for name in "ab")
        assert a.equals(b)


def test_every_rating_is_a_row_once(tables):
    rated = Counter(
        (int(row["user_id"]), int(row["movie_id"]))
        for rows in tables.values()
        for row in rows
        if row["rated"]
    )
    assert rated == Counter((user, movie) for user, movie, _, _ in RATINGS)
    stars = {(user, movie): stars for user, movie, stars, _ in RATINGS}
    for row in tables["train"]:
        key = (int(row["user_id"]), int(row["movie_id"]))
        assert row["liked"] == (stars[key] >= 4 if row["rated"] else None)


def test_other_candidates_are_movies_that_the_user_never_rated(tables):
    known = {(user, movie) for user, movie, _, _ in RATINGS}
    for rows in tables.values():
        for row in rows:
            assert row["rated"] == ((int(row["user_id"]), int(row["movie_id"])) in known)
        by_request = Counter(row["request_id"] for row in rows)
        rated = Counter(row["request_id"] for row in rows if row["rated"])
        assert all(by_request[request] == 5 * rated[request] for request in by_request)


def test_held_out_requests_are_later_and_histories_are_earlier(tables):
    time = {(user, movie): timestamp for user, movie, _, timestamp in RATINGS}
    times: dict[tuple[int, str], list[int]] = {}
    for part, rows in tables.items():
        for row in (candidate for candidate in rows if candidate["rated"]):
            user = int(row["user_id"])
            now = time[user, int(row["movie_id"])]
            recent = [time[user, int(movie)] for movie in row["recent_movies"]]
            assert recent == sorted(recent, reverse=True)
            assert all(earlier < now for earlier in recent)
            times.setdefault((user, part), []).append(now)
    for user in range(1, USERS + 1):
        assert max(times[user, "train"]) < min(times[user, "validation"])
        assert max(times[user, "validation"]) < min(times[user, "test"])


def test_popularity_counts_training_ratings(tables):
    counts = Counter(row["movie_id"] for row in tables["train"] if row["rated"])
    for rows in tables.values():
        assert all(row["popularity"] == counts[row["movie_id"]] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmoe", "single_task", "shared_bottom", "ple"])
def test_configuration_trains_on_the_tables(tmp_path, tables, name, capsys):
    assert tables
    configs = tmp_path / "models" / "configs" / "movielens"
    configs.mkdir(parents=True)
    for path in CONFIGS.glob("*.toml"):
        (configs / path.name).write_text(path.read_text().replace("epochs = 10", "epochs = 1"))
    config = configs / f"{name}.toml"
    assert experiment.read(config).network.architecture == name
    status = cli.main(["train", "--config", str(config), "--store", str(tmp_path / "store")])
    assert status == 0
    assert "ndcg 10" in capsys.readouterr().out


def test_raw_file_of_another_form_is_reported(tmp_path, capsys):
    folder = recbole(tmp_path / "raw")
    (folder / "ml-100k.user").write_text("header\nnobody\n")
    arguments = ["fetch", "movielens-100k", "--source", str(folder), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "a raw file has another form" in error
    assert error.count("\n") == 1


async def test_served_with_its_tables_a_request_by_keys_equals_the_full_one(tmp_path, tables):
    """Also for a movie without a year: a missing number is the same in a table and in a request."""
    assert tables
    config = tmp_path / "models" / "configs" / "movielens" / "mmoe.toml"
    config.parent.mkdir(parents=True)
    text = (CONFIGS / "mmoe.toml").read_text()
    config.write_text(text.replace("epochs = 10", "epochs = 1"))
    store, out = tmp_path / "store", tmp_path / "out"
    assert cli.main(["train", "--config", str(config), "--store", str(store), "--quiet"]) == 0
    assert cli.main(["tables", "--config", str(config), "--out", str(out)]) == 0
    for name, key in (("items", "movie_id"), ("users", "user_id")):
        command = [name, "publish", str(out / f"{name}.parquet"), "--key", key]
        assert gatehouse_command([*command, "--store", str(store)]) == 0
    items, users = (parquet.read_table(out / f"{name}.parquet") for name in ("items", "users"))
    movies = items.to_pydict()
    assert None in [year for year, _ in movies["movie"]]
    short = {"user": {"user_id": "3"}, "candidates": {"movie_id": movies["movie_id"]}}
    user = next(row for row in users.to_pylist() if row["user_id"] == "3")
    full = {"user": user, "candidates": movies}
    settings = Settings(store=store, lanes=1, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            by_key, whole = [
                (await client.post("/v1/models/movielens/score", json=request)).json()
                for request in (short, full)
            ]
    assert by_key["tables"] == {"items": "1", "users": "1"}
    assert by_key["scores"] == whole["scores"]
    assert by_key["ranking"] == whole["ranking"]
    assert len(set(by_key["rank_score"])) > MOVIES / 2
