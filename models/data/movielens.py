"""MovieLens-100K as requests: one user, movies that the user rated next, and movies never rated.

Harper and Konstan, "The MovieLens Datasets: History and Context", TiiS 2015: 943 users gave 100,000
ratings from 1 to 5 to 1,682 movies.

The ratings of a user, in the order of time, are cut into requests of `RATED` movies, to which
`UNRATED` movies per rated one are added, drawn uniformly from those that the user never rated. The
tasks are `rated`, and `liked` (4 or 5) on rated movies. The last fifth of a user's requests, at
least one, is for the test, the tenth before it, at least one, for validation. The history of a
request has earlier ratings only, the popularity of a movie is its number of training ratings.

The licence of MovieLens forbids redistribution. Source: https://grouplens.org/datasets/movielens.
"""

import csv
import io
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from models.data import raw_files
from models.data.schema import DataInvalid

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
RATING_FILES = ("u.data", "ml-100k.inter")  # of GroupLens, and of RecBole's sample data
MOVIE_FILES = ("u.item", "ml-100k.item")
USER_FILES = ("u.user", "ml-100k.user")
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
SCHEMA = Path(__file__).parents[1] / "configs" / "movielens" / "schema.toml"
RATED, UNRATED, HISTORY = 5, 4, 20
LIKED = 4  # stars
SEED = 0


@dataclass(frozen=True, slots=True)
class Movie:
    """What is known of a movie; the year is `None` for one movie without a date."""

    genres: list[str]
    year: int | None


@dataclass(frozen=True, slots=True)
class Rating:
    """A rating of a movie, in stars."""

    movie: str
    stars: float
    timestamp: float


@dataclass(frozen=True, slots=True)
class Request:
    """Movies that a user rated one after the other, and those rated before."""

    user: str
    part: str
    rated: Sequence[Rating]
    before: Sequence[Rating]


def fetch(folder: Path, source: Path | None = None) -> dict[str, int]:
    """Write the three tables and their schema to `folder`.

    Args:
        folder: created if absent.
        source: a folder or an archive with the raw files of GroupLens or RecBole; downloaded from
            GroupLens if `None`.

    Returns:
        The number of rows of each table, by name.

    Raises:
        DataInvalid: the source does not contain the raw files, or one has another form.
        OSError: the download failed, or the folder cannot be written.
    """
    source = source or raw_files.download(URL, folder / "ml-100k.zip", SHA256)
    files = raw_files.find(source, (*RATING_FILES, *MOVIE_FILES, *USER_FILES))
    try:
        ratings = _ratings(*raw_files.first(files, RATING_FILES))
        movies = _movies(*raw_files.first(files, MOVIE_FILES))
        users = _users(*raw_files.first(files, USER_FILES))
    except (IndexError, ValueError, KeyError) as error:
        if isinstance(error, DataInvalid):
            raise
        raise DataInvalid(f"{source}: a raw file has another form: {error!r}") from error
    requests = [request for user, rated in ratings.items() for request in _requests(user, rated)]
    training = [r for request in requests if request.part == "train" for r in request.rated]
    popularity = Counter(rating.movie for rating in training)
    random = np.random.default_rng(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for part in ("train", "validation", "test"):
        mine = [request for request in requests if request.part == part]
        table = _table(mine, ratings, movies, users, popularity, random)
        parquet.write_table(table, folder / f"{part}.parquet", row_group_size=65_536)
        rows[part] = table.num_rows
    shutil.copy(SCHEMA, folder / SCHEMA.name)
    return rows


def _lines(name: str, content: bytes) -> Iterator[list[str]]:
    """The fields of every line, without the header of RecBole's files."""
    separator = "\t" if name.startswith("ml-100k") or name == "u.data" else "|"
    text = content.decode("utf-8" if name.startswith("ml-100k") else "latin-1")
    lines = csv.reader(io.StringIO(text), delimiter=separator, quoting=csv.QUOTE_NONE)
    if name.startswith("ml-100k"):
        next(lines)
    yield from lines


def _ratings(name: str, content: bytes) -> dict[str, list[Rating]]:
    """The ratings of each user in the order of time, then of the movie."""
    by_user: dict[str, list[Rating]] = {}
    for user, movie, stars, timestamp in _lines(name, content):
        by_user.setdefault(user, []).append(Rating(movie, float(stars), float(timestamp)))
    for ratings in by_user.values():
        ratings.sort(key=lambda rating: (rating.timestamp, int(rating.movie)))
    return dict(sorted(by_user.items(), key=lambda entry: int(entry[0])))


def _movies(name: str, content: bytes) -> dict[str, Movie]:
    if name.startswith("ml-100k"):
        return {
            movie: Movie(genres.split(), int(year) if year.isdigit() else None)
            for movie, _, year, genres in _lines(name, content)
        }
    movies = {}
    for fields in _lines(name, content):
        genres = [g for g, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
        year = fields[2][-4:]
        movies[fields[0]] = Movie(genres, int(year) if year.isdigit() else None)
    return movies


def _users(name: str, content: bytes) -> dict[str, tuple[int, str, str]]:
    """The age, gender and occupation of each user."""
    return {
        user: (int(age), gender, occupation)
        for user, age, gender, occupation, _ in _lines(name, content)
    }


def _requests(user: str, ratings: Sequence[Rating]) -> Iterator[Request]:
    """Cut the ratings of a user into requests; the last are for the test and validation."""
    count = -(-len(ratings) // RATED)
    test = max(1, count // 5)
    validation = max(1, count // 10)
    for i in range(count):
        left = count - i  # requests from here on
        part = "test" if left <= test else "validation" if left <= test + validation else "train"
        first = i * RATED
        yield Request(user, part, ratings[first : first + RATED], ratings[:first])


def _table(
    requests: Sequence[Request],
    ratings: Mapping[str, Sequence[Rating]],
    movies: Mapping[str, Movie],
    users: Mapping[str, tuple[int, str, str]],
    popularity: Mapping[str, int],
    random: np.random.Generator,
) -> pa.Table:
    """One row per candidate; the rows of a request are adjacent, in random order."""
    every = list(movies)
    columns: dict[str, list[object]] = {name: [] for name in _NAMES}
    for number, request in enumerate(requests):
        seen = {rating.movie for rating in ratings[request.user]}
        stars = {rating.movie: rating.stars for rating in request.rated}
        free = [movie for movie in every if movie not in seen]
        drawn = random.choice(len(free), size=min(len(free), UNRATED * len(stars)), replace=False)
        candidates = [*stars, *(free[i] for i in drawn)]
        recent = [rating.movie for rating in request.before[-HISTORY:]][::-1]
        age, gender, occupation = users[request.user]
        for i in random.permutation(len(candidates)):
            movie = candidates[i]
            rated = movie in stars
            row = (
                f"{request.part}-{number}",
                *(request.user, age, gender, occupation, recent),
                *(movie, movies[movie].genres, movies[movie].year, popularity.get(movie, 0)),
                *(rated, stars[movie] >= LIKED if rated else None),
            )
            for name, value in zip(_NAMES, row, strict=True):
                columns[name].append(value)
    return pa.table(columns)


_NAMES = (
    *("request_id", "user_id", "age", "gender", "occupation", "recent_movies"),
    *("movie_id", "genres", "release_year", "popularity", "rated", "liked"),
)
