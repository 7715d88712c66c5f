"""The popularity baseline on MovieLens-100K: ``python -m tests.bench.popularity``.

Every candidate is scored by its number of training ratings, the same for all users. Needs tables
(`python -m models fetch movielens-100k`).
"""

from pathlib import Path

from models import data
from models.training import experiment
from models.training.evaluate import figures
from models.training.losses import target

CONFIG = Path("models/configs/movielens/mmoe.toml")
POPULARITY = 1  # the column of the dense feature `movie`


def main() -> None:
    """Print the metrics of both tasks on the test set, in Markdown."""
    settings = experiment.read(CONFIG)
    test = data.generate(settings.data, settings.tasks).test
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
