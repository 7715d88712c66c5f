"""Refusals: what the store has and this server cannot use, until its files change.

Files that somebody is still copying look broken. A refusal is therefore reported, which means
logged and counted, when two looks in a row find the same files.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.artifacts.store import Fingerprint

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Refusal:
    """Why something was refused, and when to try it again.

    Attributes:
        fingerprint: its files at that time. None if they were not the reason, or could not be read:
            then it is tried again at the next look.
        circumstances: what it was examined with; None if its files alone were the reason.
        is_reported: whether it was logged and counted.
    """

    reason: str
    fingerprint: Fingerprint | None
    circumstances: object
    is_reported: bool


class Refusals(Generic[Key]):
    """The versions, or the tables, that were refused; owned by the event loop."""

    def __init__(
        self,
        reasons: dict[Key, str],
        report: Callable[[Key, str], None],
        *,
        may_be_copied: Callable[[], bool],
    ) -> None:
        """Refuse nothing yet.

        Args:
            reasons: holds the reason of each refusal, for others to read.
            report: logs and counts a refusal.
            may_be_copied: whether files may be incomplete because they are being copied. If not,
                refusals are reported at once.
        """
        self._reasons = reasons
        self._report = report
        self._may_be_copied = may_be_copied
        self._refusals: dict[Key, _Refusal] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._refusals

    def add(
        self,
        key: Key,
        reason: str,
        fingerprint: Fingerprint | None = None,
        circumstances: object = None,
    ) -> None:
        """Refuse something; report it now unless its files may be incomplete."""
        former = self._refusals.get(key)
        is_reported = former is not None and former.is_reported and former.reason == reason
        refusal = _Refusal(reason, fingerprint, circumstances, is_reported)
        self._refusals[key] = refusal
        self._reasons[key] = reason
        is_whole = fingerprint is None or circumstances is not None
        if is_whole or not self._may_be_copied():
            self._report_once(key, refusal)

    def repeat(self, key: Key, fingerprint: Fingerprint, circumstances: object = None) -> bool:
        """Refuse something for the same reason again if nothing has changed since.

        Returns whether it is refused; otherwise it must be tried.

        Args:
            key: names it.
            fingerprint: its files now.
            circumstances: what it would be examined with now.
        """
        refusal = self._refusals.get(key)
        if refusal is None or refusal.fingerprint != fingerprint:
            return False
        if refusal.circumstances not in (None, circumstances):
            return False
        self._report_once(key, refusal)
        return True

    def forget(self, key: Key) -> None:
        """Refuse something no longer: it can be used now, or is gone."""
        self._refusals.pop(key, None)
        self._reasons.pop(key, None)

    def keep_only(self, is_kept: Callable[[Key], bool]) -> None:
        """Forget all others."""
        for key in [*self._reasons, *self._refusals]:
            if not is_kept(key):
                self.forget(key)

    def _report_once(self, key: Key, refusal: _Refusal) -> None:
        if not refusal.is_reported:
            refusal.is_reported = True
            self._report(key, refusal.reason)
