"""Layers, losses and what holds them together, with PyTorch's names and meanings."""
from fastbp import hints
from fastbp.nn import functional, init, utils
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
from fastbp.nn.attention import MultiheadAttention
from fastbp.nn.convolution import AdaptiveAvgPool2d, AvgPool2d, Conv1d, Conv2d, MaxPool2d
from fastbp.nn.dropout import Dropout, Dropout1d, Dropout2d
from fastbp.nn.embedding import Embedding
from fastbp.nn.flatten import Flatten, Unflatten
from fastbp.nn.linear import Linear
from fastbp.nn.loss import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, MSELoss
from fastbp.nn.module import Module, ModuleList, Parameter, Sequential
from fastbp.nn.normalization import BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from fastbp.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "BCEWithLogitsLoss", "BatchNorm1d", "BatchNorm2d", "Conv1d",
           "Conv2d", "CrossEntropyLoss", "Dropout", "Dropout1d", "Dropout2d", "ELU", "Embedding", "Flatten",
           "GELU", "GRU", "GRUCell", "HuberLoss", "Identity", "L1Loss", "LSTM", "LSTMCell", "LayerNorm",
           "LeakyReLU", "Linear", "LogSoftmax", "MSELoss", "MaxPool2d", "Module", "ModuleList",
           "MultiheadAttention", "Parameter", "RMSNorm", "RNN", "RNNCell", "ReLU", "Sequential", "SiLU",
           "Sigmoid", "Softmax", "Softplus", "Tanh", "Unflatten", "functional", "init", "utils"]


def __getattr__(name):
    raise hints.missing("fastbp.nn", name, hints.NN)
