"""Save and load: round trips, whole files at any moment, damaged files."""
import errno
import fcntl
import io
import json
import math
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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


def test_the_file_is_an_npz_without_pickles(tmp_path):
    path = tmp_path / "state.npz"
    save(path, {"0.weight": STATE["w"], "opt": {"state": {0: {"exp_avg": np.float32(3)}}}})
    with np.load(path, allow_pickle=False) as npz:
        assert sorted(npz.files) == ["0.weight", "opt/state/0/exp_avg", "structure.json"]
        assert same(npz["0.weight"], STATE["w"]) and npz["opt/state/0/exp_avg"] == 3
        assert json.loads(npz["structure.json"])["fastbp"] == 1


def test_names_that_are_not_plain_or_come_twice_are_numbers(path):
    a, state = np.arange(3), {}
    for key in ("", "../x", "a/b", "é", "n" * 300, "#2", 1, "1", "structure.json", "..", "x y", "\0", "/", "a"):
        state[key] = a + len(state)
    state["a"] = {"b": a + 20, "": a + 21}
    save(path, state)
    assert same(load(path), state)
    with zipfile.ZipFile(path) as whole:
        names = [name.removesuffix(".npy") for name in whole.namelist()]
    assert len(set(names)) == len(names) == 16
    plain = {2: "a/b", 6: "1"}
    assert names[1:] == [plain.get(n, f"#{n}") for n in range(15)]


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


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    reader.start()
    save(path, STATE)
    assert stat.S_ISFIFO(os.stat(path).st_mode) and os.listdir(tmp_path) == ["pipe"]
    reader.join(10)
    (tmp_path / "copy").write_bytes(read[0])
    assert same(load(tmp_path / "copy"), STATE)


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
    with raises(IsADirectoryError, "cannot write"):
        save(f"{tmp_path}/runs/", 1)
    with raises(TypeError, "save: the path is none", "got:      dict", r'fix:      fb.save\("state.npz", object\)'):
        save(STATE, tmp_path / "x")    # PyTorch's order
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


def test_written_then_synced_then_renamed(path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(fd):
        calls.append("fsync")
        fsync(fd)
        if not calls[1:]:
            with zipfile.ZipFile(os.path.join(path.parent, *temporaries(path.parent))) as whole:
                assert whole.testzip() is None and not path.exists()
        else:
            assert stat.S_ISDIR(os.fstat(fd).st_mode) and path.exists()

    def renamed(old, new):
        calls.append("replace")
        assert os.path.dirname(old) == os.path.dirname(new)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    save(path, STATE)
    assert calls == ["fsync", "replace", "fsync"] and os.listdir(path.parent) == ["state"]


KILLS = """if True:
    import os, random, signal, sys, time
    import numpy as np
    from fastbp.serialization import load, save

    def state(n):
        return {"n": n, "a": np.full(20_000, n), "b": [np.full(20_000, n)]}

    path, rng, n, cut = sys.argv[1], random.Random(0), 0, 0
    save(path, state(n))
    for _ in range(500):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            while True:
                n += 1
                os.write(writing, b".")
                save(path, state(n))
        os.close(writing)
        os.read(reading, 1)
        time.sleep(rng.uniform(0, 0.008))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        last = n + 1 + len(os.read(reading, 1000))
        os.close(reading)
        found = load(path)
        assert found["n"] in (last - 1, last), (found["n"], last)
        n = found["n"]
        assert (found["a"] == n).all() and (found["b"][0] == n).all()
        stale = [name for name in os.listdir(os.path.dirname(path)) if name != "state"]
        assert len(stale) <= 1, stale
        cut += len(stale)
    print(cut)
    """


def test_500_kills_at_random_moments_leave_the_old_file_or_the_new(path):
    done = subprocess.run([sys.executable, "-c", KILLS, path], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) > 50    # were in the middle of a save
    save(path, STATE)
    assert os.listdir(path.parent) == ["state"]


def test_the_next_save_removes_what_a_killed_one_left(path):
    code = """if True:
        import os, signal, sys
        from fastbp.serialization import save
        os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        save(sys.argv[1], 1)
        """
    for n, target in enumerate((path, path.parent / "other")):
        done = subprocess.run([sys.executable, "-c", code, target])
        assert done.returncode == -signal.SIGKILL
        assert len(temporaries(path.parent)) == 1, n
    save(path, STATE)
    assert os.listdir(path.parent) == ["state"]


def test_only_stale_files_are_removed(path):
    names = [f".fastbp-{n:016x}.tmp" for n in range(2)]
    others = ["state.tmp", ".fastbp-0.tmp", f".fastbp-{0:016x}.tmp.npz"]
    for name in (*names, *others):
        (path.parent / name).touch()
    with open(path.parent / names[1], "r+b") as written:
        fcntl.flock(written, fcntl.LOCK_EX)
        save(path, STATE)
        assert sorted(os.listdir(path.parent)) == sorted(["state", names[1], *others])
    save(path, STATE)
    assert sorted(os.listdir(path.parent)) == sorted(["state", *others])


def test_a_file_that_another_save_took_for_stale_is_made_anew(path, monkeypatch):
    flock = fcntl.flock

    def meanwhile(file, how):
        if how == fcntl.LOCK_EX and not removed:
            removed.append(file.name)
            os.unlink(file.name)
        flock(file, how)

    removed = []
    monkeypatch.setattr(fcntl, "flock", meanwhile)
    save(path, STATE)
    assert removed and same(load(path), STATE) and os.listdir(path.parent) == ["state"]


def test_where_the_file_system_locks_nothing_files_of_others_stay(path, monkeypatch):
    def unable(file, how):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unable)
    name = f".fastbp-{0:016x}.tmp"
    (path.parent / name).touch()
    save(path, STATE)
    assert sorted(os.listdir(path.parent)) == [name, "state"] and same(load(path), STATE)


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
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with raises(OSError, "cannot open", "got:      a pipe or a device"):
            load(path)
    with raises(TypeError, "load: the path is none", "got:      BytesIO"):
        load(io.BytesIO())


def test_out_of_memory_is_not_called_damage(path, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    save(path, STATE)
    monkeypatch.setattr(np.lib.format, "read_array", full)
    with pytest.raises(MemoryError):
        load(path)


# ---- PyTorch's files and tensors -----------------------------------------------------------------

@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_pytorch_is_told_from_a_damaged_one(path, zipped):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with raises(ValueError, "is PyTorch's, a pickle", r"fix: .*torch.load\('.*state', weights_only=True\)"):
        load(path)


@pytest.mark.parametrize("content", [
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", archive({"archive/data.pkl": b"\x80\x02}q\x00."})])
def test_what_pytorchs_files_look_like(path, content):
    path.write_bytes(content)
    with raises(ValueError, "is PyTorch's, a pickle"):
        load(path)


class OnAnotherMachine:
    """A tensor as PyTorch's are that NumPy can't read as they are."""
    dtype = "torch.bfloat16"

    def __init__(self, *done):
        self.done = done

    def __getattr__(self, name):
        if name not in ("detach", "cpu", "float"):
            raise AttributeError(name)
        return lambda: OnAnotherMachine(*self.done, name)

    def numpy(self):
        assert self.done == ("detach", "cpu", "float")
        return np.ones(3, np.float32)


def test_tensors_with_gradients_of_other_devices_and_bfloat16(path):
    save(path, {"w": OnAnotherMachine()})
    assert same(load(path), {"w": np.ones(3, np.float32)})


def test_tensors_of_pytorch(path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in (
        "float32", "float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool")}
    state["grad"] = torch.ones(2, 3).T.requires_grad_()
    save(path, state)
    for name, array in load(path).items():
        assert array.dtype == {"bfloat16": "float32", "grad": "float32"}.get(name, name)
        assert array.tolist() == state[name].tolist()
    with pytest.raises(TypeError, match="complex64"):
        save(path, torch.ones(2, dtype=torch.complex64))


# ---- safetensors ---------------------------------------------------------------------------------

def test_safetensors_without_the_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: save(tmp_path / "x.safetensors", {}), lambda: load(tmp_path / "x.safetensors")):
        with raises(ModuleNotFoundError, r'pip install "fastbp\[safetensors\]"'):
            call()
    assert os.listdir(tmp_path) == []
    save(tmp_path / "x.npz", 1)
    assert load(tmp_path / "x.npz") == 1


@pytest.fixture
def safe(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    return tmp_path / "state.safetensors"


FLAT = {"0.weight": np.arange(6, dtype=np.float32).reshape(3, 2).T, "scalar": np.array(2.5),
        "big": np.arange(3, dtype=">i4"), "empty": np.zeros((0, 3), np.float16), "é": np.array([True, False]),
        **{name: np.arange(4).astype(name) for name in ("int8", "uint8", "int16", "uint16", "int64", "uint32")}}


def test_safetensors_round_trip_in_c_order(safe):
    from safetensors.numpy import load_file
    save(safe, {**FLAT, "tensor": Tensor(FLAT["0.weight"])})
    for got in (load(safe), load_file(safe)):
        assert got.keys() == {*FLAT, "tensor"} and np.array_equal(got["tensor"], FLAT["0.weight"])
        for name, array in FLAT.items():
            assert got[name].dtype == array.dtype.newbyteorder("=") and got[name].shape == array.shape
            assert np.array_equal(got[name], array) and got[name].flags.c_contiguous
    got["tensor"][:] = load(safe)["0.weight"][:] = 7    # writable
    assert os.listdir(safe.parent) == [safe.name]


def test_safetensors_from_and_to_pytorch(safe):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file, save_file
    save(safe, FLAT)
    assert load_file(safe)["0.weight"].tolist() == FLAT["0.weight"].tolist()
    half = torch.tensor([1.0, -2.5, 3e38, float("inf"), 1e-40], dtype=torch.bfloat16)
    save_file({"w": torch.ones(2, 3), "b": half, "n": torch.tensor(3)}, safe, metadata={"format": "pt"})
    got = load(safe)
    assert got["w"].tolist() == [[1.0] * 3] * 2 and got["n"] == 3 and got["n"].shape == ()
    assert got["b"].dtype == np.float32 and got["b"].tolist() == half.float().tolist()
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, safe)
    with raises(ValueError, "'w' is of dtype F8_E4M3"):
        load(safe)


@pytest.mark.parametrize("value, where", [
    ([FLAT["scalar"]], "state cannot be saved"), ({"a": FLAT}, r"state\['a'\] cannot"), ({"a": 1.5}, r"state\['a'\]"),
    ({"a": "text"}, r"state\['a'\]"), ({3: FLAT["scalar"]}, "the key 3"),
    ({"__metadata__": FLAT["scalar"]}, "the key '__metadata__'"), ({"a": np.array([1j])}, "complex128"),
])
def test_safetensors_takes_one_dict_of_arrays(safe, value, where):
    with raises(TypeError, where, r"fix: .*\.npz|complex128"):
        save(safe, value)
    assert os.listdir(safe.parent) == []


def test_damaged_safetensors(safe):
    save(safe, STATE | {"n": np.arange(3), "lr": np.array(0.1)})
    whole = safe.read_bytes()
    for length in range(len(whole)):
        safe.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            load(safe)
    header = 8 + int.from_bytes(whole[:8], "little")
    for i in range(header):
        for change in (1, 0x80, 0xFF):
            safe.write_bytes(whole[:i] + bytes([whole[i] ^ change]) + whole[i + 1:])
            try:
                assert sum(array.nbytes for array in load(safe).values()) <= len(whole)
            except ValueError as problem:
                assert "damaged" in str(problem) or "NumPy lacks" in str(problem)


def test_safetensors_that_promise_gigabytes_allocate_nothing_like_them(safe):
    save(safe, {"w": np.arange(4.0)})
    whole = safe.read_bytes()
    for content in ((2 ** 31).to_bytes(8, "little") + whole[8:], whole.replace(b"[4]", b"[400000000]")[:-8],
                    whole.replace(b"[0,32]", b"[0,4000000000]")):
        safe.write_bytes(content)
        tracemalloc.start()
        try:
            with raises(ValueError, "damaged"):
                load(safe)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


def test_a_safetensors_header_of_gigabytes_is_not_read(safe):
    """The file, of holes, is as long as the header says."""
    with open(safe, "wb") as file:
        file.write((2 ** 32).to_bytes(8, "little") + b"{")
        file.truncate(8 + 2 ** 32)
    tracemalloc.start()
    try:
        with raises(ValueError, "damaged", "got: .*a header of 4294967296 bytes"):
            load(safe)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
