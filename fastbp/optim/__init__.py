"""Optimizers, schedules of their rates and averages of weights, with PyTorch's names and state dicts."""
from fastbp.optim import lr_scheduler, swa_utils
from fastbp.optim.adam import Adam, AdamW, NAdam, RAdam
from fastbp.optim.optimizer import Optimizer
from fastbp.optim.rmsprop import Adagrad, RMSprop
from fastbp.optim.sgd import SGD

__all__ = ["Adagrad", "Adam", "AdamW", "NAdam", "Optimizer", "RAdam", "RMSprop", "SGD", "lr_scheduler",
           "swa_utils"]
