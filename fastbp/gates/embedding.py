"""Embedding: rows of a table by their numbers."""
import operator

import numpy as np

from fastbp.errors import ShapeError, error
from fastbp_ext.gate import as_index, tensors_of
from fastbp_ext.tensor import Tensor, from_numpy

from .arithmetic import ne, where
from .row import gate, grouped
from .shape import contiguous, contiguous_row, expand_dims, reshape, scatter, take


@gate("take", name="embedding", public=False, vjp=[
    lambda dy, y, w, index, axis, padding: scatter(
        contiguous(where(expand_dims(ne(index, padding), 1), dy, 0)), index, axis=0, shape=w.shape)])
def take_padded(w, index, padding):
    """y[m] = w[index[m]], and row `padding` of w gets no gradient"""
    return (index.size, w.shape[1]), {"axis": 0, "padding": padding}


def checked_row(name, row, rows):
    """The number of a row, counted from 0; None stays. IndexError: there is no such row."""
    if row is None:
        return None
    if not -rows <= operator.index(row) < rows:
        raise error(IndexError, f"{name}: padding_idx is out of range", got=row, expected=f"{-rows} to {rows - 1}",
                    fix="it is the number of a row of the table")
    return operator.index(row) % rows


def look_up(name, x, weight, padding_idx=None):
    """weight[x] (*x.shape, D); `name` is who asks, for errors."""
    (w,) = tensors_of(take_padded, weight)
    if w.ndim != 2:
        raise error(ShapeError, f"{name}: the weight is a matrix", got=f"shape {w.shape}",
                    expected="(num_embeddings, embedding_dim)", fix="one vector in each row")
    x = x if isinstance(x, Tensor) else from_numpy(np.asarray(x))
    index, _ = as_index(x, w.shape[0], name, "indices", False)
    padding_idx, row = checked_row(name, padding_idx, w.shape[0]), contiguous_row(index)
    y = take(w, row, axis=0) if padding_idx is None else take_padded(w, row, padding=padding_idx)
    return y if x.ndim == 1 else reshape(y, (*x.shape, w.shape[1]))


@grouped
def embedding(x, weight, padding_idx=None):
    """y = weight[x]: integers x of any shape and dtype, weight (num_embeddings, D), give y (*x.shape, D)

    Row padding_idx gets no gradient. IndexError: a number out of range. DtypeError: x are no integers.
    """
    return look_up("embedding", x, weight, padding_idx)
