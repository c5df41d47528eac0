"""Save and load: round trips, whole files at any moment, damaged files."""
import errno
import io
import json
import math
import os
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastbp import serialization
from fastbp.serialization import load, save

PARTS = ("where:", "test_serialization.py:", "got:", "expected:", "fix:")
STATE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "lr": 0.1, "n": [1, (2, None)]}


def raises(kind, *words):
    """`pytest.raises` that also wants every part of an error here, and `words`, in the message."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{w})" for w in (*PARTS, *words)))


def same(a, b):
    """Whether `a` and `b` agree in types, keys and their order, dtypes, shapes and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


class Tensor:
    def __init__(self, array):
        self.array = array

    def numpy(self):
        return self.array


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def temporaries(folder):
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


# ---- round trips --------------------------------------------------------------------------------

@st.composite
def arrays(draw, max_dims=3):
    """Arrays of every dtype and all bit patterns: NaN payloads, -0, denormals."""
    dtype = np.dtype(draw(st.sampled_from("?bhilBHILefd")))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=max_dims, min_side=0, max_side=3))
    size = math.prod(shape) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    return (raw % 2 if dtype.kind == "b" else raw).view(dtype).reshape(shape)


TEXT = st.text(st.characters(exclude_categories=()), max_size=5)  # lone surrogates too
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT, arrays(),
    arrays(max_dims=0).map(lambda array: array[()]),
)
OBJECTS = st.recursive(LEAVES, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
    st.dictionaries(TEXT | st.integers(), inner, max_size=3)), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(OBJECTS)
def test_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round_trip"
    save(path, value)
    assert same(load(path), value)


@pytest.mark.parametrize("value", [
    {"": 1, "a/b": 2, "../x": 3, "arr_0": 4, "structure.json": 5, "é\n\0": 6, "dict": 7},
    {1: "int", "1": "str", -5: 0, 2 ** 70: 0}, {"array": "arr_0"}, {"dict": [["a", 1]]},
    [True, 1, 1.0, False, 0, -0.0, None, 2 ** 100, 5e-324, 1.7976931348623157e308, 0.1],
    [math.inf, -math.inf, math.nan], ["NaN", "null", ""], [], (), {}, [[]], ((),), 3, "x", None,
    np.float32(0.1), np.float64(0.1), np.int64(-3), np.bool_(True), [np.uint8(255)],
    np.array(1.5), np.array(True), np.zeros((0, 3), np.float32), np.zeros((2, 0), bool),
    np.array([1, np.inf, -np.inf, -0.0]), np.arange(3, dtype=">f4"), np.zeros((1,) * 30),
    np.array([0x7FC01234, 0xFF800001], np.uint32).view(np.float32),
    np.array([0x7FF8000000001234, 0xFFF0000000000001], np.uint64).view(np.float64),
    {"state": {0: {"step": 5, "exp_avg": np.ones(3)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
], ids=lambda value: repr(value)[:30])
def test_values(path, value):
    save(path, value)
    assert same(load(path), value)


def test_tensors_come_back_as_arrays(path):
    save(path, {"w": Tensor(STATE["w"]), "s": Tensor(np.array(2.0))})
    assert same(load(path), {"w": STATE["w"], "s": np.array(2.0)})


def test_orders_and_strides_are_preserved_as_values(path):
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = [np.asfortranarray(a), a.T, a[:, ::-1, ::2], a.transpose(1, 0, 2),
              np.broadcast_to(a[:1], (5, 3, 4)), a.view(np.memmap)]
    save(path, arrays)
    for got, want in zip(load(path), arrays, strict=True):
        assert type(got) is np.ndarray and np.array_equal(got, want) and got.dtype == want.dtype
    assert load(path)[0].flags.f_contiguous


def test_loaded_arrays_are_writable_and_own_memory(path):
    save(path, [STATE["w"], STATE["w"]])
    a, b = load(path)
    a[:] = 7
    assert same(b, STATE["w"])


def test_subclasses_come_back_as_their_base(path):
    from collections import OrderedDict, namedtuple
    save(path, OrderedDict(p=namedtuple("P", "x y")(1, 2), s=np.str_("t")))
    assert same(load(path), {"p": (1, 2), "s": "t"})


def test_the_file_is_an_npz_without_pickles(path):
    save(path, {"a": STATE["w"], "b": np.float32(3)})
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
        assert sorted(npz.files) == ["arr_0", "arr_1", "structure.json"]
        assert same(npz["arr_0"], STATE["w"]) and npz["arr_1"] == 3
        assert json.loads(npz["structure.json"])["fastbp"] == 1


def test_the_path_is_used_as_given(tmp_path):
    for name in ("plain", "x.bin", "ü", "n" * 255, os.fsencode(tmp_path / "bytes")):
        save(tmp_path / name if isinstance(name, str) else name, 1)
        assert load(tmp_path / name if isinstance(name, str) else name) == 1
    assert sorted(os.listdir(tmp_path)) == sorted(["plain", "x.bin", "ü", "n" * 255, "bytes"])
    for call in (lambda: save(0, 1), lambda: load(0)):
        with pytest.raises(TypeError):
            call()


def test_relative_paths_and_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    os.symlink("folder/real", "link")
    save("link", 1)
    assert os.path.islink("link") and load("folder/real") == load("link") == 1
    assert os.listdir("folder") == ["real"]


def test_mode_is_the_umasks_and_then_the_replaced_files(path):
    umask = os.umask(0o027)
    try:
        save(path, 1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        save(path, 2)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and load(path) == 2
    finally:
        os.umask(umask)


# ---- what is refused on save --------------------------------------------------------------------

class Odd:
    pass


LOOP = {}
LOOP["self"] = [LOOP]


@pytest.mark.parametrize("value, kind, where", [
    ({"optimizer": {"x": {1, 2}}}, TypeError, r"state\['optimizer'\]\['x'\]"),
    ({"a": [0, (1, Odd())]}, TypeError, r"state\['a'\]\[1\]\[1\]"),
    ({3: b"bytes"}, TypeError, r"state\[3\]"),
    (Odd, TypeError, "state cannot be saved"),
    ({"a": 1j}, TypeError, r"state\['a'\]"),
    ({"a": np.array([1j])}, TypeError, r"state\['a'\], of dtype complex128"),
    ({"a": np.array([None])}, TypeError, r"state\['a'\], of dtype object"),
    ({"a": np.array(["x"])}, TypeError, r"state\['a'\], of dtype <U1"),
    ({"a": np.zeros(1, "i4,f4")}, TypeError, r"state\['a'\], of dtype"),
    ({"a": np.datetime64("2020")}, TypeError, r"state\['a'\], of dtype datetime64"),
    ({"a": np.longdouble(1)}, TypeError, r"state\['a'\], of dtype float128"),
    ({"a": Tensor(np.array([None]))}, TypeError, r"state\['a'\], of dtype object"),
    ({"a": Tensor([1, 2])}, TypeError, r"state\['a'\]"),
    ({"a": {(1, 2): 3}}, TypeError, r"the key \(1, 2\) of state\['a'\]"),
    ({True: 1}, TypeError, "the key True of state"),
    ({1.5: 1}, TypeError, "the key 1.5 of state"),
    ({None: 1}, TypeError, "the key None of state"),
    (LOOP, ValueError, r"state\['self'\]\[0\]\['self'\]... goes on"),
], ids=repr)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(path, value, kind, where):
    if "float128" in where and np.dtype(np.longdouble).itemsize <= 8:
        pytest.skip("no wider float here")
    with raises(kind, where):
        save(path, value)
    assert os.listdir(path.parent) == []
    save(path, STATE)
    before = path.read_bytes()
    with raises(kind, where):
        save(path, value)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["state"]


def test_a_hundred_levels(path):
    value = 1
    for _ in range(100):
        value = {"a": value}
    save(path, value)
    assert load(path) == value
    with raises(ValueError, "nested too deeply"):
        save(path, [value])


def test_save_to_where_it_cannot(tmp_path):
    with raises(FileNotFoundError, "cannot write", "nowhere"):
        save(tmp_path / "nowhere" / "x", 1)
    with raises(IsADirectoryError, "cannot write"):
        save(tmp_path, 1)
    assert temporaries(tmp_path) == temporaries(tmp_path.parent) == []


# ---- whole at any moment ------------------------------------------------------------------------

def test_a_full_disk_leaves_the_old_file(path):
    save(path, STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with raises(OSError, "cannot write", os.strerror(errno.EFBIG)):
            save(path, np.ones(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(load(path), STATE) and os.listdir(path.parent) == ["state"]


@pytest.mark.parametrize("module, name", [
    (np.lib.format, "write_array"), (os, "fsync"), (os, "replace"),
])
def test_an_interrupt_leaves_the_old_file(path, monkeypatch, module, name):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    save(path, STATE)
    monkeypatch.setattr(module, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, np.ones(3))
    assert same(load(path), STATE) and os.listdir(path.parent) == ["state"]
    assert not serialization._writing


def test_written_then_synced_then_renamed(path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(fd):
        calls.append("fsync")
        with zipfile.ZipFile(os.path.join(path.parent, *temporaries(path.parent))) as whole:
            assert whole.testzip() is None and not path.exists()
        fsync(fd)

    def renamed(old, new):
        calls.append("replace")
        assert os.path.dirname(old) == os.path.dirname(new)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    save(path, STATE)
    assert calls == ["fsync", "replace"] and os.listdir(path.parent) == ["state"]


SAVER = """if True:
    import sys
    import numpy as np
    from fastbp.serialization import save
    n = int(sys.argv[2])
    while True:
        print(n, flush=True)
        save(sys.argv[1], {"n": n, "a": np.full(100_000, n), "b": [np.full(100_000, n)]})
        n += 1
    """


def test_kills_at_random_moments_leave_the_old_file_or_the_new(path):
    rng = random.Random(0)
    state = {"n": 0, "a": np.zeros(1), "b": [np.zeros(1)]}
    save(path, state)
    for _ in range(20):
        command = [sys.executable, "-c", SAVER, path, str(state["n"] + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saver:
            first = saver.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            saver.kill()
            last = int((first + saver.stdout.read()).split()[-1])
        assert saver.returncode == -signal.SIGKILL
        state = load(path)
        assert state["n"] in (last - 1, last)
        assert (state["a"] == state["n"]).all() and (state["b"][0] == state["n"]).all()
    save(path, STATE)
    assert os.listdir(path.parent) == ["state"]


def test_the_next_save_removes_what_a_killed_one_left(path):
    code = """if True:
        import os, signal, sys
        from fastbp.serialization import save
        os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        save(sys.argv[1], 1)
        """
    other = path.parent / "other"
    for target in (path, other):
        done = subprocess.run([sys.executable, "-c", code, target])
        assert done.returncode == -signal.SIGKILL
    assert len(temporaries(path.parent)) == 2
    save(path, STATE)
    assert len(temporaries(path.parent)) == 1
    save(other, STATE)
    assert sorted(os.listdir(path.parent)) == ["other", "state"]


def test_only_stale_files_are_removed(path):
    prefix = f".fastbp-{zlib.crc32(b'state'):08x}-"
    running = [f"{prefix}{pid}-0123abcd.tmp" for pid in {1, os.getppid()} - {os.getpid()}]
    own = f"{prefix}{os.getpid()}-0123abcd.tmp"  # of an earlier process with this number
    others = ["state.tmp", f"{prefix}x-0123abcd.tmp", f"{prefix}0123abcd.tmp"]
    for name in (*running, own, *others):
        (path.parent / name).touch()
    save(path, STATE)
    assert sorted(os.listdir(path.parent)) == sorted(["state", *running, *others])


def test_files_of_another_users_process_stay(path, monkeypatch):
    def forbidden(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    name = f".fastbp-{zlib.crc32(b'state'):08x}-12345-0123abcd.tmp"
    (path.parent / name).touch()
    save(path, STATE)
    assert sorted(os.listdir(path.parent)) == [name, "state"]


def test_threads_may_save_to_one_path(path):
    problems = []

    def saver(n):
        try:
            for _ in range(20):
                save(path, [n, np.full(1000, n)])
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=saver, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n, array = load(path)
    assert not problems and (array == n).all() and os.listdir(path.parent) == ["state"]


# ---- what is refused on load --------------------------------------------------------------------

def npy(array, **header):
    """A .npy file of `array`, with other words in its header."""
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        raw, {**np.lib.format.header_data_from_array_1_0(array), **header})
    return raw.getvalue() + array.tobytes()


def archive(members, **kwargs):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", **kwargs) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return raw.getvalue()


def document(node, **other):
    return json.dumps({"fastbp": 1, "object": node, **other})


ONE = {"array": "arr_0"}
GOOD = {"structure.json": document(ONE), "arr_0.npy": npy(np.arange(4.0))}


def test_the_pieces_that_follow_make_a_good_file(path):
    path.write_bytes(archive(GOOD))
    assert same(load(path), np.arange(4.0))


def pickled():
    raw = io.BytesIO()
    np.lib.format.write_array(raw, np.array([print, None]), allow_pickle=True)
    return raw.getvalue()


def version_2():
    raw = io.BytesIO()
    np.lib.format.write_array(raw, np.arange(4.0), version=(2, 0))
    return raw.getvalue()


BAD = {
    "empty": (b"", "BadZipFile"),
    "not a zip": (b"hello" * 100, "BadZipFile"),
    "a pickle": (b"\x80\x04N.", "BadZipFile"),
    "other npz": (archive({"a.npy": npy(np.arange(4.0))}), "'structure.json' is missing"),
    "no members": (archive({}), "'structure.json' is missing"),
    "missing array": (archive({"structure.json": document(ONE)}), "'arr_0.npy' is missing"),
    "array used twice": (
        archive({**GOOD, "structure.json": document([ONE, ONE])}), "'arr_0.npy' .* used twice"),
    "packed": (archive(GOOD, compression=zipfile.ZIP_DEFLATED), "packed"),
    "object array": (archive({**GOOD, "arr_0.npy": pickled()}), "dtype object"),
    "complex": (archive({**GOOD, "arr_0.npy": npy(np.ones(2, complex))}), "dtype complex128"),
    "structured": (archive({**GOOD, "arr_0.npy": npy(np.ones(2, "i4,i4"))}), "dtype"),
    "promises gigabytes": (
        archive({**GOOD, "arr_0.npy": npy(np.arange(4.0), shape=(2 ** 31,))}), "its header says"),
    "promises 2 ** 64": (
        archive({**GOOD, "arr_0.npy": npy(np.arange(4.0), shape=(2 ** 32, 2 ** 32))}),
        "its header says"),
    "promises too little": (
        archive({**GOOD, "arr_0.npy": npy(np.arange(4.0), shape=(3,))}), "its header says"),
    "negative shape": (
        archive({**GOOD, "arr_0.npy": npy(np.arange(4.0), shape=(-2, -2))}), "ValueError"),
    "empty array member": (archive({**GOOD, "arr_0.npy": b""}), "ValueError"),
    "not an npy": (archive({**GOOD, "arr_0.npy": b"x" * 200}), "magic"),
    "cut npy": (archive({**GOOD, "arr_0.npy": npy(np.arange(4.0))[:-1]}), "its header says"),
    "npy version 2": (archive({**GOOD, "arr_0.npy": version_2()}), "another version of .npy"),
    "no JSON": (archive({**GOOD, "structure.json": b"{'a'"}), "JSONDecodeError"),
    "no text": (archive({**GOOD, "structure.json": b"\xff\xfe\xfd"}), "UnicodeDecodeError"),
    "deep JSON": (archive({**GOOD, "structure.json": b"[" * 100_000}), "RecursionError"),
    "deep object": (
        archive({**GOOD, "structure.json": document(0).replace("0", "[" * 9000 + "]" * 9000)}),
        "RecursionError"),
    "a list": (archive({**GOOD, "structure.json": "[]"}), "TypeError"),
    "no version": (archive({**GOOD, "structure.json": '{"object": 1}'}), "KeyError"),
    "next version": (archive({**GOOD, "structure.json": document(ONE, fastbp=2)}), "format 2"),
    "no object": (archive({**GOOD, "structure.json": '{"fastbp": 1}'}), "KeyError"),
    "unknown kind": (archive({**GOOD, "structure.json": document({"set": []})}), "kind 'set'"),
    "two kinds": (archive({**GOOD, "structure.json": document({"a": 1, "b": 2})}), "ValueError"),
    "no kind": (archive({**GOOD, "structure.json": document({})}), "ValueError"),
    "dict of no pairs": (archive({**GOOD, "structure.json": document({"dict": [1]})}), "TypeError"),
    "list as a key": (
        archive({**GOOD, "structure.json": document({"dict": [[[], 1]]})}), "TypeError"),
    "tuple of no list": (archive({**GOOD, "structure.json": document({"tuple": 1})}), "TypeError"),
}


@pytest.mark.parametrize("case", BAD)
def test_load_refuses(path, case):
    content, words = BAD[case]
    path.write_bytes(content)
    with raises(ValueError, "damaged, or not a file of fastbp.save", path.name, "got: .*" + words):
        load(path)


def test_nothing_is_unpickled(path, monkeypatch):
    import pickle
    unpickled = []
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *a, **k: unpickled.append(a))
    path.write_bytes(BAD["object array"][0])
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    assert unpickled == []


def test_a_file_cut_off_anywhere_is_refused(path):
    save(path, STATE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            load(path)


@pytest.mark.parametrize("change", [1, 0x80, 0xFF])
def test_a_damaged_byte_gives_the_same_object_or_a_ValueError(path, change):
    save(path, STATE)
    whole, refused = bytearray(path.read_bytes()), 0
    for i in range(len(whole)):
        damaged = whole.copy()
        damaged[i] ^= change
        path.write_bytes(damaged)
        try:
            assert same(load(path), STATE), i
        except ValueError as problem:
            assert "damaged" in str(problem)
            refused += 1
    assert refused > len(whole) // 2


def test_a_damaged_byte_deep_in_an_array_is_found(path):
    save(path, np.zeros(100_000))
    damaged = bytearray(path.read_bytes())
    damaged[400_000] ^= 1
    path.write_bytes(damaged)
    with raises(ValueError, "CRC"):
        load(path)


def lying(content, name, size):
    """The zip `content`, with another size of the member `name` in the list at its end."""
    content = bytearray(content)
    entry = content.rindex(name.encode()) - 46
    assert content[entry:entry + 4] == b"PK\x01\x02"
    content[entry + 20:entry + 28] = struct.pack("<II", size, size)
    return bytes(content)


HUGE = npy(np.arange(4.0), shape=(2 ** 27,))  # a header that promises a gigabyte
GIGABYTE = len(HUGE) - 32 + 2 ** 30


@pytest.mark.parametrize("content", [
    archive({**GOOD, "arr_0.npy": HUGE}),
    lying(archive(GOOD), "arr_0.npy", GIGABYTE),
    lying(archive({**GOOD, "arr_0.npy": HUGE}), "arr_0.npy", GIGABYTE),
    lying(archive(GOOD), "structure.json", GIGABYTE),
], ids=["npy", "zip", "both", "json"])
def test_lying_sizes_allocate_nothing_like_them(path, content):
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with raises(ValueError):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_packed_bomb_is_not_inflated(path):
    bomb = {**GOOD, "arr_0.npy": npy(np.zeros(5_000_000))}
    path.write_bytes(archive(bomb, compression=zipfile.ZIP_DEFLATED))
    tracemalloc.start()
    try:
        with raises(ValueError, "got: .*packed"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_load_from_where_it_cannot(tmp_path):
    with raises(FileNotFoundError, "cannot open", "nowhere"):
        load(tmp_path / "nowhere")
    with raises(IsADirectoryError, "cannot open"):
        load(tmp_path)


def test_out_of_memory_is_not_called_damage(path, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    save(path, STATE)
    monkeypatch.setattr(np.lib.format, "read_array", full)
    with pytest.raises(MemoryError):
        load(path)
