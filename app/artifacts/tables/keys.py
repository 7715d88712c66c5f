"""Key to row, in arrays that can be memory-mapped.

Keys are sorted by a 64-bit hash. The first bits of the hash name a bucket, and `starts` says where
each bucket starts among the sorted keys: there are two to four times as many buckets as keys, so a
bucket has a few keys. A lookup hashes n keys, reads the keys of their buckets side by side,
`[n, w]` with w the most keys of one of them, and compares.

The hash of an int64 is SplitMix64, which is a bijection. The hash of a string of the UTF-8 bytes
b₀ … bₙ₋₁ is SplitMix64 of n + Σ (bᵢ + 1) · rⁱ mod 2⁶⁴, r odd and drawn by the seed. The sum over a
substring of all keys, written one after the other, is a difference of two prefix sums, so it takes
no loop over keys. A string is found only if its bytes are equal, not only its hash.

Each index has a random seed, so nobody can choose keys that share a bucket.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from app.artifacts.encoding import hash_integers
from app.errors import ArtifactInvalid

Int64 = npt.NDArray[np.int64]
Uint64 = npt.NDArray[np.uint64]
Int32 = npt.NDArray[np.int32]
Uint32 = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]

LONGEST_KEY = 256
"""The most characters of a string key; also the limit of a key in a request."""

MOST_IN_BUCKET = 64
"""Keys of one bucket. Half a million tables of a billion keys would have one with 20."""
_MOST_BITS = 28  # of a bucket's number: its starts take 1 GiB
_SEEDS = 8  # that are tried until no bucket has too many keys
_AT_ONCE = 2**16  # bytes of keys that are hashed together, so that the powers of r stay small
_PIECE = 2**20  # entries that are checked together
_RANGE = np.arange(_AT_ONCE)


class KeyIndex(Protocol):
    """Finds the rows of keys."""

    @property
    def rows(self) -> Int32:
        """The row of each entry, `[m]`; -1 for a key that is removed."""

    def find(self, keys: Int64 | Sequence[str]) -> Int64:
        """Return the row of each key, int64 `[n]`; -1 for a key that is not there."""

    def check(self) -> None:
        """Check the arrays, as far as lookups depend on them.

        Raises:
            ArtifactInvalid: they are not an index.
        """

    def keys_at(self, entries: Int64) -> list[int] | list[str]:
        """Return the keys at places of the index."""


@dataclass(frozen=True, slots=True, eq=False)
class Int64Index:
    """An index of int64 keys.

    Attributes:
        seed: of the hash.
        bits: there are `2^bits` buckets.
        keys: `[m]` in the order of their hashes.
        rows: `[m]` the row of each; -1 for a key that is removed.
        starts: `[2^bits + 1]`.
    """

    seed: int
    bits: int
    keys: Int64
    rows: Int32
    starts: Uint32

    def find(self, keys: Int64 | Sequence[str]) -> Int64:
        """Return the row of each key, int64 `[n]`; -1 for a key that is not there."""
        wanted = np.asarray(keys, np.int64)
        if len(wanted) == 0 or len(self.keys) == 0:
            return np.full(len(wanted), -1)
        first, slots = _slots(self.starts, hash_integers(wanted, self.seed), self.bits)
        if slots.shape[1] == 0:
            return np.full(len(wanted), -1)
        match = self.keys.take(slots, mode="clip") == wanted[:, None]  # [n, w]
        return _rows_at(self.rows, first + match.argmax(axis=1), match.any(axis=1))

    def check(self) -> None:
        """Check the arrays; see `KeyIndex.check`."""
        entries = len(self.keys)
        _check_order(self.starts, self.bits, entries, self._hashes)

    def _hashes(self, at: slice) -> Uint64:
        return hash_integers(self.keys[at], self.seed)

    def keys_at(self, entries: Int64) -> list[int]:
        """Return the keys at places of the index."""
        found: list[int] = self.keys[entries].tolist()
        return found


@dataclass(frozen=True, slots=True, eq=False)
class StringIndex:
    """An index of strings.

    Attributes:
        seed: of the hash.
        bits: there are `2^bits` buckets.
        text: UTF-8 of the keys in the order of their hashes.
        offsets: `[m + 1]` where each starts.
        hashes: `[m]` ascending.
        rows: `[m]` the row of each; -1 for a key that is removed.
        starts: `[2^bits + 1]`.
    """

    seed: int
    bits: int
    text: Bytes
    offsets: Int64
    hashes: Uint64
    rows: Int32
    starts: Uint32

    def find(self, keys: Int64 | Sequence[str]) -> Int64:
        """Return the row of each key, int64 `[n]`; -1 for a key that is not there."""
        if len(keys) == 0 or len(self.hashes) == 0:
            return np.full(len(keys), -1)
        wanted: Sequence[str] = keys  # type: ignore[assignment]
        packed = pack(wanted)
        if len(packed.text) > _AT_ONCE:
            if len(wanted) == 1:  # no key is as long as this
                return np.full(1, -1)
            middle = len(wanted) // 2
            return np.concatenate([self.find(wanted[:middle]), self.find(wanted[middle:])])
        hashes = hash_packed(packed, self.seed)
        first, slots = _slots(self.starts, hashes, self.bits)
        if slots.shape[1] == 0:
            return np.full(len(wanted), -1)
        match = self.hashes.take(slots, mode="clip") == hashes[:, None]  # [n, w]
        while True:
            best = match.argmax(axis=1)
            found = match.any(axis=1)
            slot = first + best
            differs = found & ~self._equal(slot, packed)
            if not differs.any():
                return _rows_at(self.rows, slot, found)
            match[differs, best[differs]] = False  # another key with this hash; try the next

    def _equal(self, slot: Int64, packed: "Packed") -> npt.NDArray[np.bool_]:
        """Return whether the keys at `slot` have the bytes of the keys that are looked up."""
        start = self.offsets.take(slot, mode="clip")
        same: npt.NDArray[np.bool_]
        same = self.offsets.take(slot + 1, mode="clip") - start == packed.length
        place = np.repeat(start - packed.start, packed.length)
        place += _RANGE[: len(place)]
        wrong = self.text.take(place, mode="clip") != packed.text if len(self.text) else place >= 0
        if wrong.any():
            same[np.repeat(np.arange(len(slot)), packed.length)[wrong]] = False
        return same

    def check(self) -> None:
        """Check the arrays; see `KeyIndex.check`."""
        lengths = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.text) or (lengths < 0).any():
            raise ArtifactInvalid("keys.offsets: do not fit to keys")
        if len(lengths) and lengths.max() > 4 * LONGEST_KEY:
            raise ArtifactInvalid(f"keys: a key has {lengths.max()} bytes")
        _check_order(self.starts, self.bits, len(self.hashes), self.hashes.__getitem__)

    def keys_at(self, entries: Int64) -> list[str]:
        """Return the keys at places of the index."""
        starts, ends = self.offsets[entries].tolist(), self.offsets[entries + 1].tolist()
        return [
            self.text[start:end].tobytes().decode("utf-8", "replace")
            for start, end in zip(starts, ends, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Packed:
    """Strings as UTF-8, one after the other: `text` uint8, `start` and `length` int64 `[n]`."""

    text: Bytes
    start: Int64
    length: Int64

    def __len__(self) -> int:
        """How many there are."""
        return len(self.length)


def pack(keys: Sequence[str]) -> Packed:
    """Return strings as UTF-8, one after the other.

    A lone surrogate, which has no UTF-8 form, gets bytes that are those of no string.
    """
    joined = "".join(keys)
    content = joined.encode("utf-8", "surrogatepass")
    if len(content) == len(joined):
        length = np.fromiter(map(len, keys), np.int64, len(keys))  # [n]
    else:
        encoded = [each.encode("utf-8", "surrogatepass") for each in keys]
        content = b"".join(encoded)  # two halves of a pair must not join
        length = np.fromiter(map(len, encoded), np.int64, len(keys))  # [n]
    return Packed(np.frombuffer(content, np.uint8), np.cumsum(length) - length, length)


def hash_packed(packed: Packed, seed: int) -> Uint64:
    """Return the hashes of at most `_AT_ONCE` bytes of strings, uint64 `[n]`."""
    powers, inverse = _powers(seed)
    total = len(packed.text)
    sums = np.zeros(total + 1, np.uint64)
    np.cumsum((packed.text + np.uint64(1)) * powers[:total], out=sums[1:])
    own = sums.take(packed.start + packed.length) - sums.take(packed.start)  # [n], times r^start
    return hash_integers(
        (own * inverse.take(packed.start) + packed.length.view(np.uint64)).view(np.int64), seed
    )


@lru_cache(maxsize=32)
def _powers(seed: int) -> tuple[Uint64, Uint64]:
    """Return r⁰, r¹, … and r⁻⁰, r⁻¹, … mod 2⁶⁴, `[_AT_ONCE + 1]` each."""
    r = int(hash_integers(np.array([seed]), 1)[0]) & ~7 | 5  # odd, of the largest order
    both = []
    for each in (r, pow(r, -1, 2**64)):
        factors = np.full(_AT_ONCE + 1, each, np.uint64)
        factors[0] = 1
        both.append(np.multiply.accumulate(factors))
    return both[0], both[1]


def _slots(starts: Uint32, hashes: Uint64, bits: int) -> tuple[Int64, Int64]:
    """Return where the buckets of hashes start, `[n]`, and the places to look at, `[n, w]`."""
    bucket = (hashes >> np.uint64(64 - bits)).view(np.int64)
    first = starts.take(bucket).astype(np.int64)  # [n]
    widest = int((starts.take(bucket + 1) - first).max())
    return first, first[:, None] + _RANGE[:widest]


def _rows_at(rows: Int32, slot: Int64, found: npt.NDArray[np.bool_]) -> Int64:
    at = rows.take(slot, mode="clip").astype(np.int64)  # [n]
    if not found.all():
        at[~found] = -1
    return at


def _check_order(
    starts: Uint32, bits: int, entries: int, hashes_of: Callable[[slice], Uint64]
) -> None:
    """Check that keys are in the order of their hashes, and that the buckets start where they do.

    Raises:
        ArtifactInvalid: they are not.
    """
    if starts[0] != 0 or starts[-1] != entries:
        raise ArtifactInvalid("keys.starts: do not cover keys")
    widest = 0
    for begin in range(0, len(starts) - 1, _PIECE):
        step = np.diff(starts[begin : begin + _PIECE + 1].astype(np.int64))
        if step.min() < 0:
            raise ArtifactInvalid("keys.starts: are not ascending")
        widest = max(widest, int(step.max()))
    if widest > MOST_IN_BUCKET:
        raise ArtifactInvalid(f"keys.starts: a bucket has {widest} keys, limit {MOST_IN_BUCKET}")
    last = np.uint64(0)
    for begin in range(0, entries, _PIECE):
        hashes = hashes_of(slice(begin, begin + _PIECE))
        bucket = (hashes >> np.uint64(64 - bits)).view(np.int64)
        place = np.arange(begin, begin + len(hashes))
        inside = (starts.take(bucket) <= place) & (place < starts.take(bucket + 1))
        if hashes[0] < last or (hashes[1:] < hashes[:-1]).any() or not inside.all():
            raise ArtifactInvalid("keys: are not in the order of their hashes")
        last = hashes[-1]


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A new index.

    Attributes:
        index: in memory.
        same: int64 `[d, 2]`: pairs of entries with the same key, the one that was given first
            first; an index must have none.
    """

    index: Int64Index | StringIndex
    same: Int64


def build(keys: Int64 | Packed, rows: Int32) -> BuiltIndex:
    """Return an index of keys, `[m]`, and the row of each.

    Raises:
        ArtifactInvalid: too many keys share a bucket with every seed that was tried.
    """
    count = len(rows)
    bits = min(_MOST_BITS, max(1, (2 * count - 1).bit_length()))
    for _ in range(_SEEDS):
        seed = secrets.randbits(32)
        hashes = hash_integers(keys, seed) if isinstance(keys, np.ndarray) else _hash(keys, seed)
        order = np.argsort(hashes, kind="stable")
        sorted_hashes = hashes[order]
        same = _same(keys, order, sorted_hashes)
        bucket = (sorted_hashes >> np.uint64(64 - bits)).view(np.int64)
        sizes = np.bincount(bucket, minlength=2**bits)
        if sizes.max() <= MOST_IN_BUCKET or len(same):
            break
    else:
        raise ArtifactInvalid(f"more than {MOST_IN_BUCKET} keys have nearly the same hash")
    starts = np.zeros(2**bits + 1, np.uint32)
    np.cumsum(sizes, out=starts[1:])
    ordered = rows[order]
    if isinstance(keys, np.ndarray):
        return BuiltIndex(Int64Index(seed, bits, keys[order], ordered, starts), same)
    length = keys.length[order]
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(length, out=offsets[1:])
    text = _gathered(keys, order)
    index = StringIndex(seed, bits, text, offsets, sorted_hashes, ordered, starts)
    return BuiltIndex(index, same)


def _hash(keys: Packed, seed: int) -> Uint64:
    """Return the hashes of any number of strings, uint64 `[n]`."""
    hashes = np.zeros(len(keys.length), np.uint64)
    ends = keys.start + keys.length
    begin = 0
    while begin < len(hashes):
        offset = keys.start[begin]
        end = max(begin + 1, int(np.searchsorted(ends, offset + _AT_ONCE, side="right")))
        part = Packed(
            keys.text[offset : ends[end - 1]],
            keys.start[begin:end] - offset,
            keys.length[begin:end],
        )
        hashes[begin:end] = hash_packed(part, seed)
        begin = end
    return hashes


def _same(keys: Int64 | Packed, order: Int64, hashes: Uint64) -> Int64:
    """Return pairs of entries with the same key, int64 `[d, 2]`: its first entry and another."""
    equal = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(equal) == 0 or isinstance(keys, np.ndarray):  # the hash of an int64 is a bijection
        runs = np.cumsum(np.append(True, hashes[1:] != hashes[:-1]))  # [m] number of the run
        first = order[np.searchsorted(runs, runs[equal + 1])] if len(equal) else equal
        return np.stack([first, order[equal + 1]], axis=1)
    pairs = []
    seen: dict[bytes, int] = {}
    run = np.uint64(0)
    for place in np.union1d(equal, equal + 1).tolist():
        if hashes[place] != run:
            seen, run = {}, hashes[place]
        entry = int(order[place])
        start = keys.start[entry]
        key = keys.text[start : start + keys.length[entry]].tobytes()
        if (first_entry := seen.setdefault(key, entry)) != entry:
            pairs.append((first_entry, entry))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _gathered(keys: Packed, order: Int64) -> Bytes:
    """Return the text of strings in another order."""
    parts = []
    for begin in range(0, len(order), _PIECE // 16):
        chosen = order[begin : begin + _PIECE // 16]
        length = keys.length[chosen]
        step = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        parts.append(keys.text[np.repeat(keys.start[chosen], length) + step])
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)
