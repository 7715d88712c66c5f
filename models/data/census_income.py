"""UCI Census-Income (KDD): the data set of the MMoE and PLE papers, as a table to train on.

Ma et al. (KDD 2018, section 6.2) and Tang et al. (RecSys 2020) predict two labels of a person from
the 1994 and 1995 Current Population Surveys: income above 50,000 dollars, and never married.

The archive has 199,523 training and 99,762 test rows of 42 fields without header. The training rows
become `train.parquet`; the test rows are split 1:1 at random into `validation.parquet` and
`test.parquet`, as in the papers. No field is changed, except that text is stripped of blanks.

Source: https://archive.ics.uci.edu/dataset/117/census+income+kdd (CC BY 4.0).
"""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc
import pyarrow.parquet as parquet

from models.data import raw_files
from models.data.schema import DataInvalid

URL = "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip"
TRAIN_FILES = ("census-income.data", "census_income_1994_1995_train.csv")
TEST_FILES = ("census-income.test", "census_income_1994_1995_test.csv")
SCHEMA = Path(__file__).parents[1] / "configs" / "census_income" / "schema.toml"
ROWS = (199_523, 99_762)
"""Training and test rows of the published files."""
ROW_GROUP_ROWS = 65_536
SPLIT_SEED = 0

COLUMNS = (
    "age",
    "class_of_worker",
    "industry_code",
    "occupation_code",
    "education",
    "wage_per_hour",
    "enrolled_in_education",
    "marital_status",
    "major_industry",
    "major_occupation",
    "race",
    "hispanic_origin",
    "sex",
    "union_member",
    "reason_for_unemployment",
    "employment_status",
    "capital_gains",
    "capital_losses",
    "dividends",
    "tax_filer_status",
    "previous_region",
    "previous_state",
    "household_and_family",
    "household_summary",
    "instance_weight",
    "migration_msa",
    "migration_region",
    "migration_within_region",
    "same_house_1_year_ago",
    "previous_residence_sunbelt",
    "persons_worked_for_employer",
    "parents_present",
    "father_birth_country",
    "mother_birth_country",
    "birth_country",
    "citizenship",
    "own_business",
    "veterans_questionnaire",
    "veterans_benefits",
    "weeks_worked",
    "year",
    "income",
)
NUMBERS = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "dividends",
    "instance_weight",
    "persons_worked_for_employer",
    "weeks_worked",
)


def fetch(folder: Path, source: Path | None = None) -> dict[str, int]:
    """Write the three tables and their schema to `folder`.

    Args:
        folder: created if absent.
        source: a folder or an archive (zip, tar) with the raw files, at any depth; downloaded from
            UCI if `None`.

    Returns:
        The number of rows of each table, by name.

    Raises:
        DataInvalid: the source does not contain the two files, or a file has other columns.
        OSError: the download failed, or the folder cannot be written.
    """
    archive = source or raw_files.download(URL, folder / "census-income.zip")
    files = raw_files.find(archive, (*TRAIN_FILES, *TEST_FILES))
    train = _table(*raw_files.first(files, TRAIN_FILES))
    held_out = _table(*raw_files.first(files, TEST_FILES))
    if source is None and (train.num_rows, held_out.num_rows) != ROWS:
        raise DataInvalid(
            f"{archive}: has {train.num_rows:,} training and {held_out.num_rows:,} test rows, "
            f"expected {ROWS[0]:,} and {ROWS[1]:,}"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(held_out.num_rows)
    half = held_out.num_rows // 2
    tables = {
        "train": train,
        "validation": held_out.take(pa.array(order[:half])),
        "test": held_out.take(pa.array(order[half:])),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        parquet.write_table(table, path, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    shutil.copy(SCHEMA, folder / SCHEMA.name)
    return {name: table.num_rows for name, table in tables.items()}


def _table(name: str, content: bytes) -> pa.Table:
    """Parse a raw file."""
    try:
        table = pc.read_csv(
            io.BytesIO(content),
            read_options=pc.ReadOptions(column_names=COLUMNS),
            convert_options=pc.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise DataInvalid(f"{name}: {str(error).splitlines()[0]}") from error
    columns = {name: compute.utf8_trim_whitespace(table[name]) for name in COLUMNS}
    for name in NUMBERS:
        kind = pa.float64() if name == "instance_weight" else pa.int64()
        columns[name] = compute.cast(columns[name], kind)
    return pa.table(columns)
