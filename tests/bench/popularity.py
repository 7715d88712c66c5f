"""The popularity baseline on MovieLens-100K: ``python -m tests.bench.popularity``.

Every candidate is scored by its number of training ratings, the same for all users. Needs tables
(`python -m models fetch movielens-100k`).
"""

import argparse
from pathlib import Path

from models.training.evaluate import figures
from models.training.losses import target
from tests.bench.prerequisites import public_data

CONFIG = Path("models/configs/movielens/mmoe.toml")
POPULARITY = 1  # the column of the dense feature `movie`


def main() -> None:
    """Print the metrics of both tasks on the test set, in Markdown."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    settings, splits = public_data(CONFIG, "movielens-100k")
    test = splits.test
    scores = test.candidate["movie"][:, POPULARITY].double().numpy()
    requests = test.row_to_request.numpy()
    users = test.users.numpy()[requests]
    print("| task | AUC | per-user AUC | NDCG@10 |\n| --- | ---: | ---: | ---: |")
    for task in settings.tasks:
        label, inside = target(task, task.link, test.labels)
        rows, observed = inside.numpy(), label.double().numpy()
        found = figures(task.kind, observed[rows], scores[rows], users[rows], requests[rows])
        print(f"| {task.name} | {found['auc']:.4f} | {found['user_auc']:.4f} | ", end="")
        print(f"{found['ndcg_10']:.4f} |")


if __name__ == "__main__":
    main()
