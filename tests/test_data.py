"""Data sets, IDX files and batches."""
import gzip
import hashlib
import math
import os
import random
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastbp as fb
from fastbp import data
from fastbp import random as fb_random
from fastbp.data.batching import order
from fastbp.errors import ShapeError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
PARTS = ("where:", "test_data.py:", "got:", "expected:", "fix:")


def idx(array):
    """The bytes of an IDX file that holds `array`, by the format's own words."""
    array = np.asarray(array)
    head = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    return head + struct.pack(f">{array.ndim}i", *array.shape) + array.astype(
        array.dtype.newbyteorder(">")).tobytes()


def raises(kind, *words):
    """`pytest.raises` that also wants every part of an error here, and `words`, in the message."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{w})" for w in (*PARTS, *words)))


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "some.file"
        path.write_bytes(content)
        return path
    return write


# ---- digits -------------------------------------------------------------------------------------

def test_digits():
    X, y = data.load_digits()
    assert X.dtype == np.float32 and X.shape == (1797, 64) and X.min() == 0 and X.max() == 1
    assert y.dtype == np.uint8 and y.shape == (1797,) and y[:10].tolist() == list(range(10))
    # UCI's own counts of the test set, and its first image.
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (X[0, :16] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
    table = np.column_stack([X * 16, y]).astype(np.uint8)
    assert hashlib.sha256(table.tobytes()).hexdigest().startswith("68aea062d35a1277")
    assert X.flags.writeable and X.flags.c_contiguous and y.flags.owndata


def test_digits_are_one_small_file_and_import_nothing_heavy():
    folder = os.path.dirname(data.__file__)
    shipped = [f for f in os.listdir(folder) if not f.endswith((".py", ".pyi", "__pycache__"))]
    assert shipped == ["digits-idx2-ubyte.gz"]
    assert os.path.getsize(os.path.join(folder, shipped[0])) < 50_000
    code = """if True:
        import sys, numpy, pickle
        from fastbp import data
        def forbidden(*a, **k): raise AssertionError("pickle")
        pickle.load = pickle.loads = pickle.Unpickler = forbidden
        before = set(sys.modules)
        data.load_digits()
        assert set(sys.modules) == before, set(sys.modules) - before
        assert not {"sklearn", "scipy", "pandas"} & set(sys.modules)
        """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_name_their_source():
    for words in ("Alpaydin", "Kaynak", "CC BY 4.0", "UCI",
                  "Optical Recognition of Handwritten Digits"):
        assert words in data.load_digits.__doc__


# ---- IDX ----------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(CODES)).flatmap(lambda dtype: hnp.arrays(
    dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))), st.booleans())
def test_idx_round_trip(tmp_path_factory, array, gzipped):
    path = tmp_path_factory.getbasetemp() / "round_trip"
    path.write_bytes(gzip.compress(idx(array)) if gzipped else idx(array))
    loaded = data.load_idx(path)
    assert loaded.dtype == array.dtype and loaded.dtype.isnative and loaded.shape == array.shape
    assert loaded.tobytes() == array.tobytes() and loaded.flags.writeable


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_idx_goes_by_the_first_bytes_not_by_the_name(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(idx(np.arange(6, dtype="i2").reshape(2, 3))))
    for path in (tmp_path / name, str(tmp_path / name), os.fsencode(tmp_path / name)):
        assert data.load_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("before, after", [
    (bytes, bytes), (gzip.compress, bytes), (bytes, gzip.compress),  # the last: cut, then packed
])
def test_idx_cut_off_anywhere(file, before, after):
    whole = before(idx(np.arange(12, dtype="i4").reshape(3, 4)))
    for length in range(len(whole)):
        with raises(ValueError, "not a whole IDX file", "some.file"):
            data.load_idx(file(after(whole[:length])))


HEAD = b"\0\0\x08\x01"
BAD = {
    "empty": (b"", "first bytes none"),
    "magic": (b"\1\0\x08\x01" + b"\0\0\0\1" + b"x", "01 00 08 01"),
    "unknown type": (b"\0\0\x0a\x01" + b"\0\0\0\1" + b"x", "00 00 0a 01"),
    "no dimension": (b"\0\0\x08\x00x", "1 to 32 dimensions"),
    "too many dimensions": (b"\0\0\x08\x21" + b"\0\0\0\1" * 33 + b"x", "1 to 32 dimensions"),
    "trailing byte": (idx(np.zeros(3, "u1")) + b"x", "after the last element"),
    "trailing byte after nothing": (HEAD + b"\0\0\0\0x", "after the last element"),
    "negative": (HEAD + b"\xff\xff\xff\xff" + b"x" * 9, r"sizes \(-1,\)"),
    "two negatives": (b"\0\0\x08\x02" + b"\xff\xff\xff\xff" * 2 + b"x", r"\(-1, -1\)"),
    "huge": (HEAD + b"\x7f\xff\xff\xff" + b"x" * 9, "2147483647 bytes"),
    "product beyond 64 bits": (b"\0\0\x08\x04" + b"\x40\0\0\0" * 4 + b"x", "no more than"),
    "product of 2 ** 64": (b"\0\0\x08\x04" + b"\0\1\0\0" * 4, "no more than"),
    "0 beside huge": (b"\0\0\x0e\x05" + b"\0\0\0\0" + b"\x7f\xff\xff\xff" * 4, "no more than"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("case", BAD)
def test_idx_bad_files(file, case, pack):
    content, words = BAD[case]
    with raises(ValueError, "not a whole IDX file", words):
        data.load_idx(file(pack(content)))


def test_idx_damaged_gzip(file):
    whole = bytearray(gzip.compress(idx(np.arange(99, dtype="u1"))))
    for place in (2, len(whole) // 2, len(whole) - 6):  # method, content, checksum
        damaged = whole.copy()
        damaged[place] ^= 0x55
        with raises(ValueError, "not a whole IDX file"):
            data.load_idx(file(bytes(damaged)))
    with raises(ValueError, "not a whole IDX file"):
        data.load_idx(file(bytes(whole) + b"more"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_header_that_promises_gigabytes_allocates_nothing_like_it(file, pack):
    path = file(pack(HEAD + b"\x7f\xff\xff\xff" + b"x" * 100))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            data.load_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_idx_gzip_bomb_is_not_inflated(file):
    path = file(gzip.compress(idx(np.zeros(10, "u1")) + bytes(50_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="after the last element"):
            data.load_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_idx_gzip_as_dense_as_gzip_gets(file):
    zeros = np.zeros(3_000_000, "u1")
    assert not data.load_idx(file(gzip.compress(idx(zeros), 9))).any()


def test_idx_paths_that_cannot_be_opened(tmp_path):
    with raises(FileNotFoundError, "nowhere"):
        data.load_idx(tmp_path / "nowhere")
    with raises(IsADirectoryError, "cannot read"):
        data.load_idx(tmp_path)
    with pytest.raises(TypeError):
        data.load_idx(0)


# ---- MNIST --------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
LABELS = np.array([3, 1, 4, 1, 255], np.uint8)


def put(folder, split, images=IMAGES, labels=LABELS, joint="-", end=""):
    pack = gzip.compress if end else bytes
    for array, name in ((images, f"{split}-images{joint}idx3-ubyte{end}"),
                        (labels, f"{split}-labels{joint}idx1-ubyte{end}")):
        if array is not None:
            (folder / name).write_bytes(pack(idx(array)))


@pytest.mark.parametrize("joint", "-.")
@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist(tmp_path, joint, end):
    put(tmp_path, "train", joint=joint, end=end)
    put(tmp_path, "t10k", IMAGES[:2], LABELS[:2], joint=joint, end=end)
    for folder in (tmp_path, str(tmp_path)):
        (X, y), (X_test, y_test) = data.load_mnist(folder)
        assert X.dtype == np.float32 and X.shape == (5, 784) and X.flags.c_contiguous
        assert y.dtype == np.uint8 and y.tolist() == [3, 1, 4, 1, 255]
        assert np.array_equal(X, IMAGES.reshape(5, 784).astype(np.float32) / np.float32(255))
        assert X.min() == 0 and X.max() == 1
        assert X_test.shape == (2, 784) and y_test.tolist() == [3, 1]


def test_mnist_split_that_is_not_there_is_none(tmp_path):
    put(tmp_path, "train")
    assert data.load_mnist(tmp_path)[1] is None
    for path in tmp_path.iterdir():
        path.unlink()
    put(tmp_path, "t10k", end=".gz")
    train, test = data.load_mnist(tmp_path)
    assert train is None and len(test[0]) == 5


def test_mnist_no_images_and_other_sizes(tmp_path):
    put(tmp_path, "train", IMAGES[:0], LABELS[:0])
    put(tmp_path, "t10k", IMAGES[:, :2, :3])
    (X, y), (X_test, _) = data.load_mnist(tmp_path)
    assert X.shape == (0, 784) and y.shape == (0,) and X_test.shape == (5, 6)


def test_mnist_labels_of_another_integer_type(tmp_path):
    put(tmp_path, "train", labels=np.array([1, -2, 3, 70000, 5], "i4"))
    y = data.load_mnist(tmp_path)[0][1]
    assert y.dtype == np.int32 and y.tolist() == [1, -2, 3, 70000, 5]


@pytest.mark.parametrize("images, labels, kind, words", [
    (IMAGES, None, FileNotFoundError, "train-labels-idx1-ubyte beside it"),
    (None, LABELS, FileNotFoundError, "train-images-idx3-ubyte beside it"),
    (IMAGES, LABELS[:4], ValueError, "5 images, 4 labels"),
    (IMAGES[0], LABELS, ValueError, r"uint8 \(28, 28\)"),
    (IMAGES.astype("f4"), LABELS, ValueError, r"float32 \(5, 28, 28\)"),
    (IMAGES, LABELS[:, None], ValueError, r"uint8 \(5, 1\)"),
    (IMAGES, LABELS.astype("f8"), ValueError, r"float64 \(5,\)"),
])
def test_mnist_files_that_do_not_fit(tmp_path, images, labels, kind, words):
    put(tmp_path, "train", images, labels)
    put(tmp_path, "t10k")
    with raises(kind, words):
        data.load_mnist(tmp_path)


def test_mnist_folders_without_data(tmp_path):
    with raises(FileNotFoundError, "no data in"):
        data.load_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").mkdir()  # as some archives unpack
    with raises(FileNotFoundError, "no data in"):
        data.load_mnist(tmp_path)
    with raises(FileNotFoundError, "cannot read"):
        data.load_mnist(tmp_path / "nowhere")
    with raises(NotADirectoryError, "cannot read"):
        data.load_mnist(__file__)


def test_mnist_bad_file_is_named(tmp_path):
    put(tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"<html>")
    with raises(ValueError, "train-labels-idx1-ubyte", "3c 68 74 6d"):
        data.load_mnist(tmp_path)


@pytest.mark.skipif("FASTBP_MNIST" not in os.environ, reason="FASTBP_MNIST names no folder")
def test_real_mnist():
    train, test = data.load_mnist(os.environ["FASTBP_MNIST"])
    for split, n in ((train, 60000), (test, 10000)):
        if split is not None:
            X, y = split
            assert X.shape == (n, 784) and y.shape == (n,)
            assert X.min() == 0 and X.max() == 1 and set(np.unique(y)) == set(range(10))
    assert train or test


# ---- batches ------------------------------------------------------------------------------------

X, Y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10, dtype=np.uint8)


class Indexed:
    """As little as a Tensor has to be: a length, and indexing by slices and integer arrays."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        assert isinstance(rows, slice) or rows.dtype == np.int64
        return Indexed(self.array[rows])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), size=st.integers(1, 40), shuffle=st.booleans())
def test_every_row_comes_once_in_order(n, size, shuffle):
    x, y = np.arange(3 * n).reshape(n, 3), np.arange(n)
    got = list(data.batches(x, y, batch_size=size, shuffle=shuffle, rng=7))
    rows = np.random.default_rng(7).permutation(n) if shuffle else np.arange(n)
    assert [len(b) for _, b in got] == [min(size, n - i) for i in range(0, n, size)]
    assert len(got) == math.ceil(n / size) and all(type(b) is tuple for b in got)
    assert np.array_equal(np.concatenate([b for b, _ in got]), x[rows])
    assert np.array_equal(np.concatenate([b for _, b in got]), y[rows])


def test_one_array_gives_the_bare_batch():
    got = list(data.batches(X, batch_size=4))
    assert [type(b) for b in got] == [np.ndarray] * 3
    assert np.array_equal(np.concatenate(got), X)


def test_batches_are_views_unless_shuffled():
    assert all(np.shares_memory(b, X) for b in data.batches(X, batch_size=3))
    for b in data.batches(X, batch_size=3, shuffle=True, rng=0):
        assert not np.shares_memory(b, X)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_what_has_a_length_and_indexing(shuffle):
    got = data.batches(Indexed(X), Y, batch_size=np.int64(4), shuffle=shuffle, rng=3)
    want = data.batches(X, Y, batch_size=4, shuffle=shuffle, rng=3)
    for (xb, yb), (xw, yw) in zip(got, want, strict=True):
        assert isinstance(xb, Indexed) and np.array_equal(xb.array, xw) and np.array_equal(yb, yw)


def test_order_is_one_permutation_of_the_generator():
    assert order(10, False, 5) is None
    want = np.random.default_rng(5).permutation(10)
    for rng in (5, np.int64(5), np.random.default_rng(5)):
        assert np.array_equal(order(10, True, rng), want)
    got = np.concatenate(list(data.batches(Y, batch_size=4, shuffle=True, rng=5)))
    assert np.array_equal(got, want) and order(10, True, 5).dtype == np.int64


def test_a_generator_goes_on_and_an_int_starts_afresh():
    def epoch(rng):
        return np.concatenate(list(data.batches(Y, batch_size=4, shuffle=True, rng=rng))).tolist()

    rng, same = np.random.default_rng(1), np.random.default_rng(1)
    assert epoch(rng) == same.permutation(10).tolist()
    assert epoch(rng) == same.permutation(10).tolist()
    assert epoch(1) == epoch(1) == np.random.default_rng(1).permutation(10).tolist()


def test_the_order_is_drawn_at_the_call_and_not_without_shuffle():
    rng = np.random.default_rng(1)
    data.batches(Y, batch_size=4, rng=rng)
    assert rng.bit_generator.state == np.random.default_rng(1).bit_generator.state
    first = data.batches(Y, batch_size=10, shuffle=True, rng=rng)
    second = data.batches(Y, batch_size=10, shuffle=True, rng=rng)
    same = np.random.default_rng(1)
    want = [same.permutation(10).tolist(), same.permutation(10).tolist()]
    assert [next(second).tolist(), next(first).tolist()] == want[::-1]


def test_none_draws_from_the_stream_of_manual_seed():
    stream = fb_random.generator()
    fb_random.manual_seed(11)
    first = order(10, True, None).tolist()
    assert first == np.random.default_rng(11).permutation(10).tolist()
    assert order(10, True, None).tolist() != first
    fb_random.manual_seed(np.int64(11))
    assert order(10, True, None).tolist() == first
    assert fb_random.generator() is stream and fb_random.generator(None) is stream


def test_generator():
    rng = np.random.default_rng(0)
    assert fb_random.generator(rng) is rng
    assert fb_random.generator(0) is not fb_random.generator(0)
    assert fb_random.generator(0).random() == rng.random()


@pytest.mark.parametrize("n, kind", [
    (None, TypeError), (1.0, TypeError), (True, TypeError), (np.random.default_rng(), TypeError),
    (-1, ValueError),
])
def test_manual_seed_takes_ints_of_0_or_more(n, kind):
    before = fb_random.generator().bit_generator.state
    with raises(kind, "manual_seed: n"):
        fb_random.manual_seed(n)
    assert fb_random.generator().bit_generator.state == before


def test_the_state_of_random_numbers_comes_back(tmp_path):
    fb_random.manual_seed(3)
    fb.randn(7)
    fb.save(tmp_path / "rng.npz", fb.get_rng_state())
    first = fb.randn(5).numpy()
    fb.set_rng_state(fb.load(tmp_path / "rng.npz"))
    assert fb.randn(5).numpy().tobytes() == first.tobytes()


@pytest.mark.parametrize("state", [{}, None, {"generator": 3}, {"generator": {"bit_generator": "MT19937"}},
                                   {"generator": {"bit_generator": "PCG64", "state": {"state": 1}}}])
def test_a_wrong_state_of_random_numbers_changes_nothing(state):
    before = fb.get_rng_state()
    with raises(ValueError, "set_rng_state"):
        fb.set_rng_state(state)
    assert fb.get_rng_state() == before


@pytest.mark.parametrize("arrays, kind, words", [
    ((X, Y[:9]), ShapeError, "10, 9 rows"),
    ((), ValueError, "no arrays"),
    ((X, np.array(1.0)), ShapeError, "array 1 has no rows"),
    ((X[:0], Y[:0]), ShapeError, "0 rows"),
    ((X, list(Y)), TypeError, "array 1 is not an array"),
    ((X, tuple(Y)), TypeError, "tuple"),
    (({},), TypeError, "dict"),
    (("text",), TypeError, "str"),
    ((1.0,), TypeError, "float"),
    ((None,), TypeError, "NoneType"),
])
def test_batches_checks_arrays_at_the_call(arrays, kind, words):
    with raises(kind, words):
        data.batches(*arrays, batch_size=2)


@pytest.mark.parametrize("size, kind", [
    (0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError), (None, TypeError),
    ("2", TypeError), (np.float32(2), TypeError), (np.bool_(True), TypeError),
])
def test_batches_checks_batch_size_at_the_call(size, kind):
    with raises(kind, "batch_size"):
        data.batches(X, batch_size=size)


@pytest.mark.parametrize("rng, kind", [
    ("1", TypeError), (1.0, TypeError), (True, TypeError), (np.random.RandomState(0), TypeError),
    (random.Random(0), TypeError), (-1, ValueError),
])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_checks_rng_at_the_call(rng, kind, shuffle):
    with raises(kind, "rng"):
        data.batches(X, batch_size=2, shuffle=shuffle, rng=rng)
