"""Layers, losses and what holds them together, with PyTorch's names and meanings."""
from fastbp.nn import functional, init
from fastbp.nn.activation import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from fastbp.nn.linear import Linear
from fastbp.nn.loss import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, MSELoss
from fastbp.nn.module import Module, ModuleList, Parameter, Sequential
from fastbp.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "ELU", "GELU", "GRU", "GRUCell", "HuberLoss", "Identity",
           "L1Loss", "LSTM", "LSTMCell", "LeakyReLU", "Linear", "LogSoftmax", "MSELoss", "Module", "ModuleList",
           "Parameter", "RNN", "RNNCell", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Softplus", "Tanh",
           "functional", "init"]
