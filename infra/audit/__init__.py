"""Proofs of the log: hash chain, Merkle tree, signed checkpoints, export bundles."""
