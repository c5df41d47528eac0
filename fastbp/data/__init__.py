"""Data sets and batches, as NumPy arrays."""
from fastbp.data.batching import DataLoader, batches
from fastbp.data.datasets import load_digits, load_mnist
from fastbp.data.idx import load_idx

__all__ = ["DataLoader", "batches", "load_digits", "load_idx", "load_mnist"]
