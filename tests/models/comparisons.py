"""Small things to compare: tiny experiments, and runs whose figures are made up."""

from pathlib import Path

from models.compare import compare
from models.compare.compare import Comparison, Entry
from models.compare.runs import Run
from models.training.evaluate import Evaluation
from tests import TINY_EXPERIMENT

TINY = TINY_EXPERIMENT.read_text(encoding="utf-8")


def tiny_files(folder: Path, *architectures: str, text: str = TINY) -> list[Path]:
    """An experiment file for each architecture."""
    paths = []
    for architecture in architectures:
        paths.append(folder / f"{architecture}.toml")
        paths[-1].write_text(text.replace('"ple"', f'"{architecture}"'), encoding="utf-8")
    return paths


def a_run(seed: int, evaluation: Evaluation, *, name: str = "MMoE", digest: str = "0") -> Run:
    return Run(
        digest=digest,
        name=name,
        seed=seed,
        parameters=1234,
        embedding_parameters=56,
        epochs=2,
        seconds=1.0,
        evaluation=evaluation,
    )


def made_up(folder: Path, figures: dict[str, list[Evaluation]]) -> Comparison:
    """A comparison of given evaluations, by architecture and seed."""
    entries: tuple[Entry, ...] = compare.read(tiny_files(folder, *figures))
    runs = {
        entry.name: [
            a_run(seed, evaluation, name=entry.name)
            for seed, evaluation in enumerate(figures[entry.experiment.network.architecture])
        ]
        for entry in entries
    }
    return Comparison(entries, runs)
