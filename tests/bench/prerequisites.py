"""What benchmarks need besides this repository: each is looked for first, and named if missing."""

import sys
from importlib.util import find_spec
from pathlib import Path

from models import data
from models.data.dataset import Splits
from models.data.schema import DataInvalid
from models.training import experiment
from models.training.experiment import Experiment, ExperimentInvalid


def require_packages(*modules: str) -> None:
    """End the program if one of these modules cannot be imported."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; --help says how to get them")


def public_data(config: Path, name: str) -> tuple[Experiment, Splits]:
    """Return an experiment and its data; end the program if its tables have not been fetched."""
    try:
        settings = experiment.read(config)
        return settings, data.generate(settings.data, settings.tasks)
    except (ExperimentInvalid, DataInvalid) as error:
        sys.exit(f"{error}; get the tables with: python -m models fetch {name}")
