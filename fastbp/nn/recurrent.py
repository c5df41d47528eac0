"""Recurrent layers, RNN, GRU and LSTM, several deep and both ways through time; and cells, which take one step."""
import math

from fastbp.create import zeros
from fastbp.errors import ShapeError, error
from fastbp.gates.linear import matrices
from fastbp.gates.recurrent import gru, lstm, rnn
from fastbp.gates.shape import concatenate, expand_dims, reshape, stack, transpose
from fastbp.nn import functional as F
from fastbp.nn import init
from fastbp.nn.module import Module, Parameter, floating
from fastbp.random import generator
from fastbp_ext.gate import tensors_of
from fastbp_ext.tensor import empty


class _Recurrent(Module):
    """What layers and cells have in common. The kinds, below, say how many gates and states there are."""

    def _set_sizes(self, input_size, hidden_size, bias):
        if input_size < 1 or hidden_size < 1:
            raise ValueError(f"{type(self).__name__}: input_size and hidden_size are 1 or more, not {input_size!r} "
                             f"and {hidden_size!r}")
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bool(bias)

    def _shapes(self, inputs):
        """The shapes of the parameters, by their names without an end."""
        rows = self._gates * self.hidden_size
        shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, self.hidden_size)}
        return shapes | {"bias_ih": (rows,), "bias_hh": (rows,)} if self.bias else shapes

    def _add_parameters(self, inputs, suffix, dtype, rng):
        bound = 1 / math.sqrt(self.hidden_size)
        for name, shape in self._shapes(inputs).items():    # a weight lies (in, rows) in memory, as Linear's
            setattr(self, name + suffix, Parameter(init.uniform_(empty(shape[::-1], dtype).T, -bound, bound, rng)))

    def _weights(self, inputs, suffix):
        """The parameters in their order, checked: a scan takes their sizes for granted."""
        found = []
        for name, shape in self._shapes(inputs).items():
            p = getattr(self, name + suffix)
            if getattr(p, "shape", None) != shape:
                raise error(ShapeError, f"{type(self).__name__}: {name}{suffix} does not fit the layer",
                            got=f"shape {getattr(p, 'shape', p)}", expected=f"shape {shape}",
                            fix="make the layer for such sizes")
            found.append(p)
        return found

    def _checked(self, x, single, batched):
        """x (steps, batch, in), or for a cell (batch, in), and whether it came without a batch: see `forward`."""
        (x,) = tensors_of(matrices, x)
        if x.ndim not in (len(single), len(batched)) or x.shape[-1] != self.input_size or x.size == 0:
            texts = (f"({', '.join([*names, str(self.input_size)])})" for names in (batched[:-1], single[:-1]))
            raise error(ShapeError, f"{type(self).__name__}: the input does not fit the layer", got=f"shape {x.shape}",
                        expected=" or, without a batch, ".join(texts) + ", no size 0",
                        fix="reshape it, or make the layer for such an input")
        return x, x.ndim == len(single)

    def _first_states(self, hx, x, shape, axis):
        """The states before the first step, each of `shape`; axis: where they lack the batch, or None."""
        if hx is None:
            return self._states * [zeros(shape, dtype=x.dtype)]
        if self._states > 1 and not (isinstance(hx, (tuple, list)) and len(hx) == self._states):
            raise error(TypeError, f"{type(self).__name__}: there are two states", got=type(hx).__name__,
                        expected="a pair (h, c)", fix="give both, or None for zeros")
        states = tensors_of(matrices, *(hx if self._states > 1 else [hx]))
        if axis is not None:
            shape = shape[:axis] + shape[axis + 1:]
        if any(s.shape != shape for s in states):
            raise error(ShapeError, f"{type(self).__name__}: a first state does not fit the layer and its input",
                        got=" and ".join(f"shape {s.shape}" for s in states), expected=f"shape {shape}",
                        fix="give a state for each row of the batch, or None for zeros")
        return states if axis is None else [expand_dims(s, axis) for s in states]

    def _steps(self, x, states, suffix="", reverse=False):
        """Each state behind every step, (T, B, H), from x (T, B, in) and the states before the first, (B, H)."""
        w, w_h, *biases = self._weights(x.shape[2], suffix)
        x = F.linear(reshape(x, -1, x.shape[2]), w)
        if not self.bias:
            biases = 2 * (zeros(self._gates * self.hidden_size, dtype=x.dtype),)
        y = self._scan(x, w_h.T, biases, states, reverse)
        return [y] if self._states == 1 else [y[0], y[1]]

    def _pair(self, states):
        return states[0] if self._states == 1 else tuple(states)

    def extra_repr(self):
        usual = {"num_layers": 1, "nonlinearity": "tanh", "bias": True, "batch_first": False, "dropout": 0.0,
                 "bidirectional": False}
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *(
            f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name, value) != value)])


class _Layers(_Recurrent):

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
                 bidirectional=False, dtype=None, rng=None):
        name = type(self).__name__
        dtype, rng = floating(name, dtype or "float32"), generator(rng)
        self._set_sizes(input_size, hidden_size, bias)
        if num_layers < 1 or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"{name}: num_layers is 1 or more and dropout between 0 and 1, not {num_layers!r} and "
                             f"{dropout!r}")
        self.num_layers, self.batch_first, self.dropout = num_layers, bool(batch_first), dropout
        self.bidirectional = bool(bidirectional)
        for layer, suffix, _ in self._ways():
            self._add_parameters(hidden_size * (1 + self.bidirectional) if layer else input_size, suffix, dtype, rng)

    def _ways(self):
        """(layer, the end of its parameters' names, whether it goes back through time) of each that there is."""
        for layer in range(self.num_layers):
            yield layer, f"_l{layer}", False
            if self.bidirectional:
                yield layer, f"_l{layer}_reverse", True

    def forward(self, x, hx=None):
        x, single = self._checked(x, ("steps", "in"), ("batch", "steps", "in") if self.batch_first
                                  else ("steps", "batch", "in"))
        if single:
            x = expand_dims(x, 1)
        elif self.batch_first:
            x = transpose(x, (1, 0, 2))
        ways = 1 + self.bidirectional
        shape = self.num_layers * ways, x.shape[1], self.hidden_size
        first = self._first_states(hx, x, shape, 1 if single else None)
        last, outputs = [], []
        for n, (layer, suffix, reverse) in enumerate(self._ways()):
            y = self._steps(x, [s[n] for s in first], suffix, reverse)
            last.append([s[0] if reverse else s[-1] for s in y])
            outputs.append(y[0])
            if len(outputs) == ways:
                x = outputs[0] if ways == 1 else concatenate(outputs, axis=2)
                outputs = []
                if layer < self.num_layers - 1:
                    x = F.dropout(x, self.dropout, self.training)
        last = [stack(s) if len(s) > 1 else expand_dims(s[0], 0) for s in zip(*last, strict=True)]
        if single:
            x, last = x[:, 0], [s[:, 0] for s in last]
        elif self.batch_first:
            x = transpose(x, (1, 0, 2))
        return x, self._pair(last)


class _Cell(_Recurrent):

    def __init__(self, input_size, hidden_size, bias=True, dtype=None, rng=None):
        dtype, rng = floating(type(self).__name__, dtype or "float32"), generator(rng)
        self._set_sizes(input_size, hidden_size, bias)
        self._add_parameters(input_size, "", dtype, rng)

    def forward(self, x, hx=None):
        x, single = self._checked(x, ("in",), ("batch", "in"))
        if single:
            x = expand_dims(x, 0)
        first = self._first_states(hx, x, (x.shape[0], self.hidden_size), 0 if single else None)
        y = self._steps(expand_dims(x, 0), first)
        return self._pair([s[0, 0] if single else s[0] for s in y])


# --- the kinds: (T, B, H), or of two states (2, T, B, H), from what _steps has

class _RNN:
    _gates = _states = 1

    def _set_nonlinearity(self, name):
        if name not in ("tanh", "relu"):
            raise ValueError(f'{type(self).__name__}: nonlinearity is "tanh" or "relu", not {name!r}')
        self.nonlinearity = name

    def _scan(self, x, w, biases, states, reverse):
        return rnn(x, *states, w, biases[0] + biases[1], reverse, self.nonlinearity == "relu")


class _GRU:
    _gates, _states = 3, 1

    def _scan(self, x, w, biases, states, reverse):
        n, (b, c) = 2 * self.hidden_size, biases
        return gru(x, *states, w, concatenate([b[:n] + c[:n], c[n:], b[n:]]), reverse)


class _LSTM:
    _gates, _states = 4, 2

    def _scan(self, x, w, biases, states, reverse):
        return lstm(x, states[0], w, biases[0] + biases[1], states[1], reverse)


class RNN(_RNN, _Layers):
    """h[t] = tanh(x[t] weight_ih^T + bias_ih + h[t - 1] weight_hh^T + bias_hh), or relu (Elman, 1990)

    x (T, B, input_size), with batch_first (B, T, input_size), or (T, input_size) without a batch, and hx
    (layers ways, B, hidden_size), zeros unless given, give y (T, B, ways hidden_size), the states of the last layer
    behind each step, and the states of all layers behind the last. ways: 2 with bidirectional, else 1; the way
    back through time begins at the last step. The parameters of layer k have PyTorch's names, weight_ih_lk,
    weight_hh_lk, bias_ih_lk, bias_hh_lk, with _reverse of the way back, and are drawn in this order from
    U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)). dropout: between layers. ShapeError: x or hx does not fit.
    """

    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False,
                 dropout=0.0, bidirectional=False, dtype=None, rng=None):
        self._set_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng)


class GRU(_GRU, _Layers):
    """h[t] = a + z (h[t - 1] - a), a = tanh(x_a + r h_a), r = sigmoid(x_r + h_r), z = sigmoid(x_z + h_z)

    The parts of x[t] weight_ih^T + bias_ih and of h[t - 1] weight_hh^T + bias_hh are those of r, z, a (Cho et al.,
    2014, with r behind the product, as in PyTorch). Arguments, shapes and parameters are those of `RNN`.
    """


class LSTM(_LSTM, _Layers):
    """h[t] = o tanh(c[t]), c[t] = f c[t - 1] + i g; i, f, o = sigmoid(x + h), g = tanh(x + h)

    The parts of x[t] weight_ih^T + bias_ih and of h[t - 1] weight_hh^T + bias_hh are those of i, f, g, o (Hochreiter
    and Schmidhuber, 1997; f: Gers et al., 2000). Arguments, shapes and parameters are those of `RNN`, but hx is
    a pair (h, c), and so are the states behind the last step.
    """

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
                 bidirectional=False, proj_size=0, dtype=None, rng=None):
        if proj_size:
            raise NotImplementedError("LSTM: there are no projections, proj_size is 0: put an nn.Linear behind it")
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng)


class RNNCell(_RNN, _Cell):
    """One step of `RNN`: x (B, input_size) or (input_size,), and h likewise, zeros unless given, give the next h."""

    def __init__(self, input_size, hidden_size, bias=True, nonlinearity="tanh", dtype=None, rng=None):
        self._set_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, bias, dtype, rng)


class GRUCell(_GRU, _Cell):
    """One step of `GRU`: x (B, input_size) or (input_size,), and h likewise, zeros unless given, give the next h."""


class LSTMCell(_LSTM, _Cell):
    """One step of `LSTM`: x (B, input_size) or (input_size,), and (h, c), zeros unless given, give the next (h, c)."""
