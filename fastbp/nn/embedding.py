"""Embedding: a table of vectors, looked up by number."""
from fastbp.errors import ShapeError, error
from fastbp.gates.embedding import checked_row, look_up
from fastbp.nn import init
from fastbp.nn.module import Module, Parameter, floating
from fastbp_ext.tensor import empty, tensor


class Embedding(Module):
    """y = weight[x]: integers x of any shape and dtype give y (*x.shape, embedding_dim)

    weight (num_embeddings, embedding_dim) is drawn from N(0, 1). padding_idx: a row that begins as 0 and gets no
    gradient. IndexError names a number out of range, and its place. ValueError: max_norm, which is not supported.
    """

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None, max_norm=None, dtype=None, rng=None):
        if max_norm is not None:
            raise error(ValueError, "Embedding: max_norm is not supported", got=repr(max_norm), expected="None",
                        fix="scale the weight between steps: layer.weight.copy_(...)")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = checked_row("Embedding", padding_idx, num_embeddings)
        dtype = floating("Embedding", dtype or "float32")
        weight = init.normal_(empty((num_embeddings, embedding_dim), dtype), rng=rng)
        if padding_idx is not None:
            weight.numpy()[self.padding_idx] = 0
        self.weight = Parameter(weight)

    @classmethod
    def from_pretrained(cls, embeddings, freeze=True, padding_idx=None):
        """An Embedding of these vectors (num_embeddings, embedding_dim), copied; freeze: they are not trained."""
        weight = tensor(embeddings)
        if weight.ndim != 2:
            raise error(ShapeError, "from_pretrained: embeddings are a matrix", got=f"shape {weight.shape}",
                        expected="(num_embeddings, embedding_dim)", fix="one vector in each row")
        made = cls(0, weight.shape[1], dtype=weight.dtype)
        made.num_embeddings, made.padding_idx = len(weight), checked_row("from_pretrained", padding_idx, len(weight))
        made.weight = Parameter(weight, requires_grad=not freeze)
        return made

    def forward(self, x):
        return look_up(f"Embedding({self.extra_repr()})", x, self.weight, self.padding_idx)

    def extra_repr(self):
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
