"""Bad input: what was wrong, where, what came, what was expected, one fix; and nothing is changed."""
import operator

import numpy as np
import pytest

import fastbp as fb
from fastbp import hints

X = fb.ones(4, 3)
LABELS = np.array([0, 1, 2, 0])

BAD = {
    "shapes that do not broadcast": (lambda: X + fb.ones(4), fb.ShapeError, "(4, 3) and (4,)"),
    "inner sizes": (lambda: X @ fb.ones(4, 3), fb.ShapeError, "(4, 3) @ (4, 3)"),
    "a 0-d factor": (lambda: X @ fb.tensor(1.0), fb.ShapeError, "@ ()"),
    "leading dimensions": (lambda: fb.ones(2, 4, 3) @ fb.ones(3, 3, 5), fb.ShapeError, "leading"),
    "(n, 1) against (n,)": (lambda: fb.mse_loss(fb.ones(4, 1), fb.ones(4)), fb.ShapeError, "(4, 1) and (4,)"),
    "float32 with float64": (lambda: X * np.ones(3), fb.DtypeError, "float32 and float64"),
    "complex": (lambda: fb.tensor(np.ones(2) * 1j), fb.DtypeError, "complex128"),
    "objects": (lambda: fb.tensor(np.array([None, 1])), fb.DtypeError, "object"),
    "text": (lambda: fb.tensor(["a", "b"]), fb.DtypeError, "<U1"),
    "float16": (lambda: fb.tensor(np.ones(2, np.float16)), fb.DtypeError, "float16"),
    "a label out of range": (lambda: fb.cross_entropy(X, np.array([0, 1, 3, 0])), IndexError, "3 at row 2"),
    "label -1": (lambda: fb.cross_entropy(X, np.array([0, -1, 0, 0])), IndexError, "-1 at row 1"),
    "a label of an N-d target": (lambda: fb.cross_entropy(fb.ones(2, 3, 2), np.array([[0, 1], [7, 0]])), IndexError,
                                 "7 at place (1, 0)"),
    "floating labels": (lambda: fb.cross_entropy(X, LABELS.astype(float)), fb.DtypeError, "float64"),
    "labels of another length": (lambda: fb.cross_entropy(X, LABELS[:3]), fb.ShapeError, "labels (3,)"),
    "labels (n, 1)": (lambda: fb.cross_entropy(X, LABELS[:, None]), fb.ShapeError, "labels (4, 1)"),
    "an empty batch": (lambda: fb.cross_entropy(fb.zeros(0, 3), LABELS[:0]), fb.ShapeError, "empty"),
    "an empty batch of mse": (lambda: fb.mse_loss(fb.zeros(0), fb.zeros(0)), fb.ShapeError, "empty"),
    "weights of another length": (lambda: fb.cross_entropy(X, LABELS, weight=fb.ones(2)), fb.ShapeError, "weight (2,)"),
    "an index out of range": (lambda: X[np.array([0, 4])], IndexError, "4 at row 1"),
    "a number out of range": (lambda: X[4], IndexError, "4 at dimension 0"),
    "too many indices": (lambda: X[0, 0, 0], IndexError, "3 for shape (4, 3)"),
    "a floating index": (lambda: X[np.array([0.0])], fb.DtypeError, "float64"),
    "a float as index": (lambda: X[1.5], fb.DtypeError, "1.5"),
    "an axis too far": (lambda: X.sum(2), fb.ShapeError, "axis 2 of 2 dimensions"),
    "an axis twice": (lambda: X.sum((0, -2)), fb.ShapeError, "axis=(0, -2)"),
    "reshape": (lambda: X.reshape(5, -1), fb.ShapeError, "12 elements"),
    "transpose": (lambda: X.transpose(0, 0), fb.ShapeError, "(0, 0)"),
    "squeeze": (lambda: X.squeeze(0), fb.ShapeError, "(4, 3)"),
    "broadcast_to": (lambda: fb.broadcast_to(X, (4,)), fb.ShapeError, "(4, 3) to (4,)"),
    "concatenate": (lambda: fb.concatenate([X, fb.ones(4)]), fb.ShapeError, "(4, 3), (4,)"),
    "stack": (lambda: fb.stack([X, fb.ones(4)]), fb.ShapeError, "(4, 3), (4,)"),
    "where without bool": (lambda: fb.where(X, X, X), fb.DtypeError, "float32"),
    "copy_": (lambda: fb.ones(4, 3).copy_(np.ones((2, 3))), fb.ShapeError, "(2, 3)"),
    "a gradient's shape": (lambda: setattr(fb.ones(3), "grad", fb.ones(2)), fb.ShapeError, "(2,)"),
    "not a tensor": (lambda: fb.exp(object()), fb.DtypeError, "object"),
    "a negative size": (lambda: fb.zeros(-1), fb.ShapeError, "(-1,)"),
    "hinge scores": (lambda: fb.hinge_loss(fb.ones(3), LABELS), fb.ShapeError, "(3,)"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, kind, got = BAD[what]
    before = X.numpy().tobytes()
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert got in message
    for part in ("where:", "got:", "expected:", "fix:"):
        assert part in message, message
    assert "test_errors.py:" in message, "the user's own file and line"
    assert X.numpy().tobytes() == before and X.grad is None


@pytest.mark.parametrize("call, kind", [
    (lambda: fb.mse_loss(X, X, reduction="max"), ValueError),
    (lambda: fb.cross_entropy(X, LABELS, label_smoothing=1.5), ValueError),
    (lambda: fb.huber_loss(X, X, delta=0), ValueError),
    (lambda: fb.gelu(X, approximate="erf"), ValueError),
    (lambda: fb.concatenate([]), ValueError),
    (lambda: fb.stack([]), ValueError),
    (lambda: fb.tensor([[1, 2], [3]]), ValueError),
    (lambda: fb.from_numpy([1, 2]), TypeError),
    (lambda: fb.exp(), TypeError),
    (lambda: fb.exp(X, X), TypeError),
    (lambda: X.sum(axis=0, axes=1), TypeError),
    (lambda: X.sum("0"), TypeError),
    (lambda: X.argmax((0, 1)), TypeError),
    (lambda: fb.tensor([X.detach().requires_grad_()]), TypeError),
    (lambda: X.item(), RuntimeError),
    (lambda: bool(X), RuntimeError),
    (lambda: len(fb.tensor(1.0)), TypeError),
    (lambda: list(fb.tensor(1.0)), TypeError),
    (lambda: X.backward(), RuntimeError),
    (lambda: operator.setitem(X, 0, 1), TypeError),
    (lambda: operator.setitem(X, X > 0, 1), TypeError),
])
def test_other_bad_calls(call, kind):
    with pytest.raises(kind):
        call()


@pytest.mark.parametrize("scores, labels, fix", [
    ((4, 3), (4, 3), "y.argmax(1)"),
    ((2, 4, 5), (2, 4), "scores.reshape(-1, 5), y.reshape(-1)"),
    ((4, 3), (3,), "check the batch"),
    ((4, 3), (4, 1), "y.reshape(-1)"),
])
def test_the_fix_of_labels_that_do_not_fit(scores, labels, fix):
    with pytest.raises(fb.ShapeError) as caught:
        fb.cross_entropy(fb.zeros(scores), np.zeros(labels, int))
    assert fix in str(caught.value) and f"scores {scores}, labels {labels}" in str(caught.value)


def test_the_fix_of_a_matmul_names_the_transpose():
    with pytest.raises(fb.ShapeError, match="transpose one of them"):
        fb.ones(4, 3) @ fb.ones(5, 3)


def test_errors_have_the_base_classes_of_the_contract():
    assert issubclass(fb.ShapeError, ValueError) and issubclass(fb.DtypeError, TypeError)
    assert issubclass(fb.StagingError, RuntimeError) and issubclass(fb.GradcheckError, AssertionError)


@pytest.mark.parametrize("call, fix", [
    (lambda: X.view(-1), "x.reshape"),
    (lambda: X.detach().cpu(), "leave it out"),
    (lambda: fb.nn.Linear(2, 3).weight.data, r"x.copy_\(values\)"),
    (lambda: setattr(fb.nn.Linear(2, 3).weight, "data", X), r"x.copy_\(values\)"),
    (lambda: fb.cat([X, X]), "fb.concatenate"),
    (lambda: fb.nn.BCELoss(), "nn.BCEWithLogitsLoss"),
])
def test_a_name_of_pytorch_says_what_to_write(call, fix):
    with pytest.raises(AttributeError, match=f"has no attribute '.*': write .*{fix}"):
        call()


def test_a_parameter_that_is_updated_by_an_operator_is_no_other_tensor():
    p, y = fb.tensor([1.0, 2.0], requires_grad=True), fb.ones(2)
    for sign, update in (("+", operator.iadd), ("-", operator.isub), ("*", operator.imul), ("/", operator.itruediv)):
        with fb.no_grad(), pytest.raises(TypeError, match=rf"x \{sign}= y changes no(.|\n)*p.copy_\(p \{sign} y\)"):
            update(p, y)
        assert update(p, y).requires_grad and update(y, 3.0).shape == (2,)    # other tensors, as ever
        with fb.no_grad():
            assert not update(p.detach(), y).requires_grad and update(2.0, y).shape == (2,)
    assert p.numpy().tolist() == [1, 2] and y.numpy().tolist() == [1, 1]


def test_any_other_name_is_missing_as_ever():
    for owner in (X, fb, fb.nn):
        assert not hasattr(owner, "nothing")
        with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
            owner.nothing    # noqa: B018


def test_hints_are_of_names_that_are_missing():
    for owner, known in [(X, hints.TENSOR), (fb, hints.FASTBP), (fb.nn, hints.NN)]:
        assert not [name for name in known if hasattr(owner, name) or name in dir(owner)]


def test_the_fix_for_truth_values_works_in_staged_functions_too():
    with pytest.raises(fb.DtypeError, match=r"fb.where\(x, 1.0, 0.0\)"):
        (X > 0).mean()
    share = fb.staged(lambda x: fb.where(x > 0, 1.0, 0.0).mean())
    assert share(fb.tensor([1.0, -1.0, 2.0, 3.0])).item() == 0.75


@pytest.mark.parametrize("dtype", ["cpu", object(), "int32"])
def test_a_device_is_no_dtype(dtype):
    with pytest.raises(fb.DtypeError, match="to: parameters can't have this dtype(.|\n)*leave a device out"):
        fb.nn.Linear(2, 3).to(dtype)
