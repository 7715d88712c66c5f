"""Change a few values in a policies file, and leave the rest as people wrote it.

Before the new content is written, it is checked as a server checks it, together with the model that
it is for. It replaces the old file in one step. If the file was changed since it was read, it is
not replaced. Comments and order are kept. Needs tomlkit, which is in the extra `tune`.
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

_MARK = "\ufeff"  # a byte order mark, which some editors write first


class PolicyEditor:
    """A policies file and the changes to make in it. The file need not exist yet."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            TuningError: it cannot be read or has mistakes, or tomlkit is not installed.
        """
        try:
            import tomlkit
        except ImportError:
            raise TuningError(
                "writing policies files needs tomlkit: pip install -e '.[tune]'"
            ) from None
        self.path = path
        self._before = _content(path)
        try:
            self.policies = PolicySet.parse(self._before or b"")
        except PoliciesInvalid as error:
            raise TuningError(f"{path}: {error}") from None
        content = (self._before or b"").decode()
        self._mark = _MARK if content.startswith(_MARK) else ""
        self._document = tomlkit.parse(content.removeprefix(_MARK))

    def policies_for(self, model: ModelTraits) -> ModelPolicies:
        """Compile the file's policies for a model, without the changes.

        Raises:
            TuningError: the file needs something that the model does not have.
        """
        try:
            return self.policies.policies_for(model)
        except PoliciesInvalid as error:
            raise TuningError(f"{self.path}: {error}") from None

    def set_calibration(self, model: str, task: str, calibration: Calibration) -> None:
        """Set the calibration of a model's task."""
        of_model = self._table("calibration", model)
        of_model[task] = _table_of(calibration.model_dump())

    def set_policy(self, policy: Policy) -> None:
        """Set the weights of a policy, or add the policy, without its `shadow`, if it is new.

        Raises:
            TuningError: the file has a policy of this name that differs in more than its weights.
        """
        former = self.policies.policies.get(policy.name)
        if former is None:
            fields = policy.model_dump(exclude={"name", "shadow"}, exclude_none=True)
            self._table("policy")[policy.name] = _table_of(fields)
            return
        if _without_weights(former) != _without_weights(policy):
            raise TuningError(
                f'{self.path}: policy "{policy.name}" exists and differs in more than its weights; '
                "choose another name"
            )
        weights = self._table("policy")[policy.name]["weights"]
        for task, weight in policy.weights.items():
            if weights.get(task) != weight:
                weights[task] = weight

    def changes(self) -> str:
        """Return the changes as a unified diff."""
        before = (self._before or b"").decode().splitlines(keepends=True)
        after = self._text().splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, "before", str(self.path), n=1))

    def write(self, model: ModelTraits) -> None:
        """Replace the file in one step.

        Raises:
            PoliciesInvalid: a server would refuse the new content; nothing is written.
            TuningError: the file was changed since it was read, or it cannot be written.
        """
        content = self._text().encode()
        PolicySet.parse(content).policies_for(model)
        if _content(self.path) != self._before:
            raise TuningError(f"{self.path}: was changed since it was read; nothing is written")
        try:
            _replace(self.path, content)
        except OSError as error:
            raise TuningError(f"{self.path}: {error.strerror}") from None

    def _text(self) -> str:
        import tomlkit

        return self._mark + tomlkit.dumps(self._document)

    def _table(self, *names: str) -> Any:  # noqa: ANN401  (tomlkit's tables are many types)
        """Return the table of this path; create the tables that are missing."""
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
            inline.update({key: _plain(member) for key, member in value.items()})
            table[name] = inline
        else:
            table[name] = _plain(value)
    return table


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _without_weights(policy: Policy) -> dict[str, Any]:
    """Return how a policy computes, apart from its weights."""
    return policy.model_dump(exclude={"weights", "models", "shadow"}, exclude_none=True)


def _content(path: Path) -> bytes | None:
    try:
        return read_small_file(path, max_bytes=LARGEST_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TuningError(f"{path}: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    """Replace a file in one step, and keep its permissions."""
    real = path.resolve()  # the target of a link
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
