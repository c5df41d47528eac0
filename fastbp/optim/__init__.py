"""Optimizers, with PyTorch's arguments, update rules and state dicts."""
from fastbp.optim.adam import Adam, AdamW
from fastbp.optim.optimizer import Optimizer
from fastbp.optim.sgd import SGD

__all__ = ["Adam", "AdamW", "Optimizer", "SGD"]
