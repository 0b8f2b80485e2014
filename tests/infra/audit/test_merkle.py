"""The Merkle tree: the published vectors of Certificate Transparency, the example of RFC 9162, and its properties."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.audit.merkle import (
    MerkleTree,
    NotProven,
    inclusion_ranges,
    leaf,
    node,
    root_of,
)

ENTRIES = [
    bytes.fromhex(entry)
    for entry in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
"""The entries, and the roots below, that every implementation of Certificate Transparency is tested with."""

ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = st.integers(1, 130)


def entries(size: int) -> list[bytes]:
    return [n.to_bytes(4, "big") for n in range(size)]


def root_by_the_book(of: Sequence[bytes]) -> bytes:
    """Compute ``MTH`` literally as section 2.1.1 defines it."""
    if len(of) < 2:
        return leaf(of[0]) if of else hashlib.sha256().digest()
    half = 1
    while half * 2 < len(of):
        half *= 2
    return node(root_by_the_book(of[:half]), root_by_the_book(of[half:]))


def grown(tree: MerkleTree, of: Sequence[bytes]) -> MerkleTree:
    for entry in of:
        tree.add(entry)
    return tree


@pytest.mark.parametrize("size", range(9))
def test_the_published_roots_are_reproduced(size: int) -> None:
    assert grown(MerkleTree(), ENTRIES[:size]).root().hex() == ROOTS[size]


def test_the_example_of_the_rfc_has_the_nodes_that_it_names() -> None:
    """Section 2.1.5: a tree of seven, whose proofs are [b, h, l], [c, g, l], [f, j, k] and [i, k]."""
    b, c, f = (1, 2), (2, 3), (5, 6)
    g, h, i, j, k, low = (0, 2), (2, 4), (4, 6), (6, 7), (0, 4), (4, 7)
    assert inclusion_ranges(0, 7) == [b, h, low]
    assert inclusion_ranges(3, 7) == [c, g, low]
    assert inclusion_ranges(4, 7) == [f, j, k]
    assert inclusion_ranges(6, 7) == [i, k]


@given(SIZES)
def test_a_tree_that_grows_has_the_root_by_the_book(size: int) -> None:
    assert grown(MerkleTree(), entries(size)).root() == root_by_the_book(entries(size))


@given(SIZES, st.data())
def test_each_entry_is_proven_and_nothing_else_is(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    tree = grown(MerkleTree.proving([index], size), entries(size))
    proof, root, entry = tree.inclusion(index), tree.root(), entries(size)[index]

    assert root_of(entry, index, size, proof) == root
    assert root_of(b"another", index, size, proof) != root
    for other in {index - 1, index + 1, size - 1} & set(range(size)) - {index}:
        assert _root(entry, other, size, proof) != root
    for n in range(len(proof)):
        forged = [*proof[:n], leaf(b"forged"), *proof[n + 1 :]]
        assert root_of(entry, index, size, forged) != root
    for wrong in ([*proof, leaf(b"more")], proof[:-1] if proof else [leaf(b"more")]):
        with pytest.raises(NotProven):
            root_of(entry, index, size, wrong)
    for nowhere in (-1, size):
        with pytest.raises(NotProven, match=f"no entry {nowhere} in a tree of {size}"):
            root_of(entry, nowhere, size, proof)


def _root(entry: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    try:
        return root_of(entry, index, size, proof)
    except NotProven:
        return None


@given(SIZES, st.data())
def test_a_tree_resumes_from_its_peaks(size: int, data: st.DataObject) -> None:
    middle = data.draw(st.integers(0, size))
    before = grown(MerkleTree(), entries(size)[:middle])
    after = grown(MerkleTree(size=middle, peaks=before.peaks), entries(size)[middle:])
    assert (after.size, after.root()) == (size, root_by_the_book(entries(size)))


def test_peaks_that_do_not_match_the_size_are_refused() -> None:
    with pytest.raises(NotProven, match="A tree of 3 entries has 2 peaks, not 1"):
        MerkleTree(size=3, peaks=[leaf(b"")])


def test_many_proofs_need_a_small_part_of_a_large_tree() -> None:
    """Ten of 100,000 entries: at most 17 nodes each, and none of the other 200,000 nodes is held."""
    size, wanted = 100_000, range(0, 100_000, 10_000)
    tree = grown(MerkleTree.proving(wanted, size), entries(size))

    assert len(tree._kept) <= len(wanted) * size.bit_length() + size.bit_length()
    assert len(tree.peaks) == size.bit_count()
    assert all(root_of(entries(size)[n], n, size, tree.inclusion(n)) == tree.root() for n in wanted)
