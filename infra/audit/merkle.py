"""A Merkle tree over entries that are read once, and its proofs: RFC 9162, section 2.1 (SHA-256).

The tree keeps its peaks (the roots of its perfect subtrees, at most one per level), and of all other nodes only those
of proofs that were requested in advance. So a tree of n entries takes O(log n) memory, and O(m log n) with m proofs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

_LEAF = b"\x00"
_NODE = b"\x01"
Range = tuple[int, int]
"""The entries from the first up to, but excluding, the second: each node of a tree covers one such range."""


class NotProven(Exception):
    """A proof does not lead to the root. The message is one sentence that names what is not proven."""


def leaf(entry: bytes) -> bytes:
    """Return the hash of an entry: ``MTH({d(0)})`` of section 2.1.1."""
    return hashlib.sha256(_LEAF + entry).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node. Its prefix differs from a leaf's, so neither can pass for the other."""
    return hashlib.sha256(_NODE + left + right).digest()


def _split(size: int) -> int:
    """Return the largest power of two that is smaller than ``size`` (at least 2): where a tree divides."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Return the nodes that prove an entry, from the leaf upwards: ``PATH(index, D_size)`` of section 2.1.3.1."""
    start, end, path = 0, size, list[Range]()
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def _perfect(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the perfect subtrees of a range from left to right, each as its level and its index on that level."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


class MerkleTree:
    """A tree that grows entry by entry.

    Args:
        ranges: the nodes to keep, in addition to the root.
        size: the number of entries that it already has.
        peaks: its peaks at that size, largest first.
    """

    def __init__(self, ranges: Iterable[Range] = (), size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if len(peaks) != size.bit_count():
            raise NotProven(f"A tree of {size} entries has {size.bit_count()} peaks, not {len(peaks)}.")
        self._size = size
        self._peaks = list(peaks)
        self._wanted = {part for one in ranges for part in _perfect(*one)}
        self._kept: dict[tuple[int, int], bytes] = {}

    @classmethod
    def proving(cls, indexes: Iterable[int], size: int) -> MerkleTree:
        """Return an empty tree that, once it has ``size`` entries, can prove the given ones."""
        return cls(part for index in indexes for part in inclusion_ranges(index, size))

    @property
    def size(self) -> int:
        """The number of entries."""
        return self._size

    @property
    def peaks(self) -> list[bytes]:
        """The roots of the perfect subtrees, largest first: all that is needed to resume."""
        return list(self._peaks)

    def add(self, entry: bytes) -> None:
        """Add an entry."""
        number, level, found = self._size, 0, leaf(entry)
        self._size += 1
        while True:
            if (level, number) in self._wanted:
                self._kept[level, number] = found
            if not number & 1:
                break
            found = node(self._peaks.pop(), found)
            number, level = number >> 1, level + 1
        self._peaks.append(found)

    def root(self) -> bytes:
        """Return the root: ``MTH(D_n)``."""
        return _folded(self._peaks) if self._peaks else hashlib.sha256().digest()

    def inclusion(self, index: int) -> list[bytes]:
        """Return the proof of an entry that was requested in advance."""
        return self.hashes(inclusion_ranges(index, self._size))

    def hashes(self, ranges: Iterable[Range]) -> list[bytes]:
        """Return the hashes of nodes that were requested in advance."""
        return [_folded([self._kept[part] for part in _perfect(*one)]) for one in ranges]


def _folded(parts: Sequence[bytes]) -> bytes:
    """Return the node above adjacent perfect subtrees, largest first."""
    found = parts[-1]
    for left in reversed(parts[:-1]):
        found = node(left, found)
    return found


def root_of(entry: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to: section 2.1.3.2.

    Raises:
        NotProven: a tree of this size has no such entry, or the proof has the wrong length.
    """
    if not 0 <= index < size:
        raise NotProven(f"There is no entry {index} in a tree of {size}.")
    number, last, found = index, size - 1, leaf(entry)
    for sibling in proof:
        if last == 0:
            raise NotProven(f"The proof of entry {index} is too long for a tree of {size}.")
        if number & 1 or number == last:
            found = node(sibling, found)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            found = node(found, sibling)
        number, last = number >> 1, last >> 1
    if last:
        raise NotProven(f"The proof of entry {index} is too short for a tree of {size}.")
    return found
