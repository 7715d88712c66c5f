"""The synthetic data of the MMoE paper: two regression tasks with a chosen correlation.

Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts*, KDD 2018, section 3.2:

1. u₁, u₂ orthogonal unit vectors in Rᵈ;
2. w₁ = c·u₁ and w₂ = c·(p·u₁ + √(1-p²)·u₂), so that cos(w₁, w₂) = p  (eq. 2);
3. x ~ N(0, I);
4. yₖ = wₖᵀx + Σᵢ sin(αᵢ·wₖᵀx + βᵢ) + ε, ε ~ N(0, 0.01)  (eqs. 3 and 4).

The correlation of the labels increases with p, but not linearly, because of the sines.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt

from models.data.dataset import Dataset, SplitsInMemory
from models.networks.config import DenseFeature, Feature, Record, TaskKind

Floats = npt.NDArray[np.float64]

NOISE_VARIANCE = 0.01


class SyntheticConfig(Record):
    """`dim` is d, `scale` is c, `correlation` is p, `sinusoids` the number of sines."""

    LABELS: ClassVar[dict[str, TaskKind]] = {"y1": "regression", "y2": "regression"}

    source: Literal["synthetic"] = "synthetic"
    rows: int = Field(default=10_000, ge=10)
    dim: int = Field(default=100, ge=2)
    scale: float = Field(default=1.0, gt=0)
    correlation: float = Field(default=0.5, ge=-1, le=1)
    sinusoids: PositiveInt = 5
    seed: int = Field(default=0, ge=0)


def features(config: SyntheticConfig) -> tuple[Feature, ...]:
    """Half of x stands on the user's side and half on the candidate's."""
    half = config.dim // 2
    return (
        DenseFeature(name="x_user", side="user", dim=half),
        DenseFeature(name="x_candidate", side="candidate", dim=config.dim - half),
    )


@dataclass(frozen=True, slots=True)
class Curves:
    """The two functions x → y: weights `[2, d]`, and the sines' α and β `[m]`, which they share."""

    weights: Floats
    alpha: Floats
    beta: Floats

    @classmethod
    def draw(cls, config: SyntheticConfig, random: np.random.Generator) -> "Curves":
        """Draw the weights with the configured cosine, and the sines."""
        # The Q of a QR decomposition has orthonormal columns.
        u1, u2 = np.linalg.qr(random.normal(size=(config.dim, 2)))[0].T  # [d] each
        p = config.correlation
        weights = config.scale * np.stack([u1, p * u1 + np.sqrt(1 - p**2) * u2])  # eq. 2
        alpha = random.uniform(1, 4, size=config.sinusoids)
        beta = random.uniform(0, 2 * np.pi, size=config.sinusoids)
        return cls(weights, alpha, beta)

    def __call__(self, x: Floats) -> Floats:
        """Return both labels without noise, `[B, d]` → `[B, 2]`."""
        linear = x @ self.weights.T  # [B, 2]
        phases = linear[:, :, None] * self.alpha + self.beta  # [B, 2, m]
        return np.asarray(linear + np.sin(phases).sum(axis=2))  # [B, 2], eqs. 3 and 4


def generate(config: SyntheticConfig) -> SplitsInMemory:
    """Draw `rows` examples: eight tenths to learn from, one to validate on and one to test on.

    Every row is a request of one candidate. The same configuration gives the same data.
    """
    random = np.random.default_rng(config.seed)
    curves = Curves.draw(config, random)
    x = random.normal(size=(config.rows, config.dim))  # [B, d]
    expected = curves(x)  # [B, 2]
    labels = expected + np.sqrt(NOISE_VARIANCE) * random.normal(size=expected.shape)
    tenth = config.rows // 10
    parts = np.split(np.arange(config.rows), [config.rows - 2 * tenth, config.rows - tenth])
    train, validation, test = (_dataset(x[rows], labels[rows], expected[rows]) for rows in parts)
    return SplitsInMemory(train, validation, test)


def _dataset(x: Floats, labels: Floats, expected: Floats) -> Dataset:
    columns = torch.from_numpy(x).float()  # [B, d]
    user, candidate = columns.tensor_split([x.shape[1] // 2], dim=1)  # [B, d // 2], [B, d - d // 2]
    rows = torch.arange(len(x))
    return Dataset(
        user={"x_user": user.contiguous()},
        candidate={"x_candidate": candidate.contiguous()},
        row_to_request=rows,
        labels=dict(zip(("y1", "y2"), torch.from_numpy(labels).float().unbind(1), strict=True)),
        expected=dict(zip(("y1", "y2"), torch.from_numpy(expected).float().unbind(1), strict=True)),
        users=rows,
    )
