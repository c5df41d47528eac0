"""The transcendental gates in ULP: a sample of what `python -m bench.ulp` measures, and NumPy's own tables."""
import csv
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb

ROOT = Path(__file__).parents[1]
TABLES = Path(np.__file__).parent / "_core" / "tests" / "data"
GATES = ["exp", "expm1", "log", "log1p", "tanh", "sigmoid", "softplus", "silu", "gelu", "gelu_tanh", "erf"]


@pytest.fixture(autouse=True)
def denormals():
    fb.set_flush_denormal(False)
    yield
    fb.set_flush_denormal(True)


@pytest.fixture
def ulp(monkeypatch):
    if not (ROOT / "bench").is_dir():
        pytest.skip("no source tree")
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import ulp
    return ulp


@pytest.mark.parametrize("name", GATES)
def test_float32_within_2_ulp(ulp, name):
    assert set(ulp.ORACLES) == set(GATES)
    worst = max((ulp.worst(name, bits) for bits in ulp.chunks(300_000)), key=lambda pair: pair[0])
    assert worst[0] <= 2, worst


@pytest.mark.parametrize("name", GATES)
def test_float64_within_2_ulp_or_4(ulp, name):
    pytest.importorskip("mpmath")
    worst = ulp.worst64(name, ulp.sample64(2_000))
    assert worst[0] <= ulp.LIMIT.get(name, 2), worst


def ordered(x):
    """Floats as whole numbers: neighbours differ by 1, -0 is 0."""
    bits = x.view(np.int32 if x.dtype == np.float32 else np.int64).astype(object)
    sign = 1 << (8 * x.itemsize - 1)
    return np.where(x.view(f"i{x.itemsize}") < 0, -(bits + sign), bits)


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh"])
def test_numpys_validation_table(name):
    path = TABLES / f"umath-validation-set-{name}.csv"
    if not path.exists():
        pytest.skip("this NumPy came without its tables")
    rows = [row for row in csv.reader(path.open()) if row[0] in ("np.float32", "np.float64")]
    assert len(rows) > 100
    for dtype in ("float32", "float64"):
        mine = [row for row in rows if row[0] == f"np.{dtype}"]
        if not mine:
            continue
        x, expected = (np.array([int(row[k], 16) for row in mine], f"u{np.dtype(dtype).itemsize}").view(dtype)
                       for k in (1, 2))
        y = getattr(fb, name)(fb.from_numpy(x)).numpy()
        allowed = np.array([max(2, int(row[3])) for row in mine])
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(y), nan)
        apart = np.abs(ordered(y)[~nan] - ordered(expected)[~nan])
        assert (apart <= allowed[~nan]).all(), (x[~nan][apart > allowed[~nan]], apart.max())
