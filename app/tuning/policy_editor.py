"""A policies file that is changed in a few places and otherwise left as people wrote it.

What is written is first read as the server reads it, beside the model that it is for; it replaces
the old file in one step; and a file that somebody else changed meanwhile is left alone. Comments
and order stay, for which tomlkit is needed, a part of the extra `tune`.
"""

import difflib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.errors import PoliciesInvalid, TuningError
from app.files import read_small_file
from app.ranking.calibration import Calibration
from app.ranking.policies import LARGEST_FILE, ModelPolicies, ModelTraits, PolicySet
from app.ranking.policy import Policy


class PolicyEditor:
    """A file, perhaps one that is not there yet, and the changes that are to be made in it."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            TuningError: it cannot be read or is wrong as it is, or tomlkit is not installed.
        """
        try:
            import tomlkit
        except ImportError:
            raise TuningError(
                "policy files are written with tomlkit: pip install 'gatehouse[tune]'"
            ) from None
        self.path = path
        self._before = _content(path)
        try:
            self.policies = PolicySet.parse(self._before or b"")
        except PoliciesInvalid as error:
            raise TuningError(f"{path}: {error}") from None
        self._document = tomlkit.parse((self._before or b"").decode("utf-8-sig"))

    def rankers(self, model: ModelTraits) -> ModelPolicies:
        """Compile the policies for a model as the file has them, changes left out.

        Raises:
            TuningError: the file says of the model what it cannot do.
        """
        try:
            return self.policies.rankers(model)
        except PoliciesInvalid as error:
            raise TuningError(f"{self.path}: {error}") from None

    def set_calibration(self, model: str, task: str, calibration: Calibration) -> None:
        """Let the scores of a task be calibrated so."""
        of_model = self._table("calibration", model)
        of_model[task] = _table_of(calibration.model_dump())

    def set_policy(self, policy: Policy) -> None:
        """Give a policy its weights; if the file does not have it, all that it says but `shadow`.

        Raises:
            TuningError: the file has a policy of this name that is not the same but for weights.
        """
        former = self.policies.policies.get(policy.name)
        if former is None:
            said = policy.model_dump(exclude={"name", "shadow"}, exclude_none=True)
            self._table("policy")[policy.name] = _table_of(said)
            return
        if _form(former) != _form(policy):
            raise TuningError(f"{self.path}: has another policy {policy.name}: choose another --as")
        weights = self._table("policy")[policy.name]["weights"]
        for task, weight in policy.weights.items():
            if weights.get(task) != weight:
                weights[task] = weight

    def changes(self) -> str:
        """Return the changes as a unified diff."""
        before = (self._before or b"").decode("utf-8-sig").splitlines(keepends=True)
        after = self._text().splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, "before", str(self.path), n=1))

    def write(self, model: ModelTraits) -> None:
        """Write the file, whole or not at all.

        Raises:
            PoliciesInvalid: a server would not take it; nothing is written.
            TuningError: it was changed since it was read, or its folder cannot be written.
        """
        content = self._text().encode()
        PolicySet.parse(content).rankers(model)
        if _content(self.path) != self._before:
            raise TuningError(f"{self.path}: was changed meanwhile; nothing is written")
        try:
            _replace(self.path, content)
        except OSError as error:
            raise TuningError(f"{self.path}: {error.strerror}") from None

    def _text(self) -> str:
        import tomlkit

        return tomlkit.dumps(self._document)

    def _table(self, *names: str) -> Any:  # noqa: ANN401  (tomlkit's tables are many types)
        """Return the table of these names, made where it is not there."""
        import tomlkit

        table: Any = self._document
        for name in names:
            if name not in table:
                table[name] = tomlkit.table(is_super_table=True)
            table = table[name]
        return table


def _table_of(fields: Mapping[str, Any]) -> Any:  # noqa: ANN401
    import tomlkit

    table = tomlkit.table()
    for name, value in fields.items():
        if isinstance(value, Mapping):
            inline = tomlkit.inline_table()
            inline.update({key: _plain(each) for key, each in value.items()})
            table[name] = inline
        else:
            table[name] = _plain(value)
    return table


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _form(policy: Policy) -> dict[str, Any]:
    """Return how a policy computes, but for its weights."""
    return policy.model_dump(exclude={"weights", "models", "shadow"}, exclude_none=True)


def _content(path: Path) -> bytes | None:
    try:
        return read_small_file(path, max_bytes=LARGEST_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TuningError(f"{path}: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    """Put content in the place of a file in one step, with the rights that the file had."""
    real = path.resolve()  # of a link, what it leads to
    mode = real.stat().st_mode & 0o777 if real.exists() else 0o666 & ~_umask()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(real)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
