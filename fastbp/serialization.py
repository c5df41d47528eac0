"""Save and load of nested state: a zip of .npy members and one JSON member, or safetensors. No pickle."""
import contextlib
import errno
import fcntl
import json
import math
import os
import re
import secrets
import zipfile
from typing import Any

import numpy as np

from fastbp.errors import error

_FORMAT = 1
_STRUCTURE = "structure.json"
_FORMERLY_PYTORCHS = b"\x80\x02\x8a\x0a" + (0x1950a86a20f9469cfc6c).to_bytes(10, "little")
_FIX = "convert it, or leave it out"
_MAX_DEPTH = 100  # keeps json and the recursion below far from Python's own limit
_MAX_HEADER = 100_000_000  # of safetensors, as its package has it
_SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2",
                "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?"}


def save(path: str | os.PathLike, object: Any) -> None:
    """Write `object` to `path`, exactly that name, so that `load(path)` gives it back.

    Taken: dicts (keys str or int), lists and tuples, to 100 levels; NumPy arrays, NumPy scalars
    and what has `.numpy()`, such as Tensors, of bool, integer or floating dtype of at most 8
    bytes and of any shape; numbers, bools, None, strings.

    `numpy.load(path)` opens the file too, without pickle: a state dict's arrays stand there under
    their own names, nested ones as "model/0.weight". A path that ends in .safetensors gives that
    format (`pip install "fastbp[safetensors]"`), for one dict {name: array or tensor}.

    The file is whole at any moment: it is written under another name in the same folder, synced,
    and renamed, so that a crash leaves the old file or the new one. What a killed save left
    behind, the next save to that folder removes. A link is followed. The mode of a file that
    is replaced is kept. A device or a pipe is written to.

    TypeError for anything else, named as `state['optimizer']['x']`, and ValueError for deeper
    nesting (an object that contains itself): nothing is written. OSError where the file cannot
    be written, or a folder is there. ModuleNotFoundError: safetensors is not installed.
    """
    path = _path("save", path)
    target = os.path.realpath(path)
    write = (_safetensors_writer if _is_safetensors(path) else _npz_writer)(object)
    try:
        if not os.path.basename(path):    # "folder/", where there may be none yet
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _replace(target, write)
    except OSError as problem:
        raise error(
            type(problem), f"save: cannot write {path!r}", got=problem.strerror,
            expected="a file name in a folder with room", fix="check the path and the disk",
        ) from problem


def load(path: str | os.PathLike) -> Any:
    """The object that `save` wrote to `path`; of a path that ends in .safetensors, what any program wrote there.

    Arrays and Tensors come back as NumPy arrays (writable, bits, dtype, shape and Fortran order
    as they were), NumPy scalars as NumPy scalars, the rest as it was; subclasses of dict, list
    and tuple as these. Of safetensors a dict {name: array}, bfloat16 as float32. Nothing in the
    file is run, and no more is allocated than it holds.

    ValueError for a file that `save` did not write, that is cut off or damaged. OSError
    (FileNotFoundError, IsADirectoryError, ...) for one that can't be opened. ModuleNotFoundError:
    safetensors is not installed.
    """
    path = _path("load", path)
    read, fix = _read_npz, "copy or save it again; numpy.load reads other .npz files"
    what, expected = "damaged, or not a file of fastbp.save", f"a zip of .npy members and {_STRUCTURE}, as it writes it"
    if _is_safetensors(path):
        _safetensors()
        read, fix = _read_safetensors, "copy or save it again"
        what, expected = "damaged, or not in the format of safetensors", "what its package writes"
    try:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise OSError(errno.EINVAL, "a pipe or a device")  # to read it might never end
        file = open(path, "rb")  # noqa: SIM115
    except OSError as problem:
        raise error(
            type(problem), f"load: cannot open {path!r}", got=problem.strerror,
            expected="a file of fastbp.save", fix="check the path",
        ) from problem
    with file:
        try:
            return read(file)
        except MemoryError:
            raise
        except Exception as problem:  # over damaged bytes zipfile and NumPy raise a dozen types
            if _is_pytorchs(file):
                what, fix = "PyTorch's, a pickle", f"read it with PyTorch: torch.load({path!r}, weights_only=True)"
            raise error(
                ValueError, f"load: {path!r} is {what}", got=f"{type(problem).__name__}: {problem}", expected=expected,
                fix=fix,
            ) from problem


def as_array(x: Any) -> np.ndarray:
    """An array, a Tensor or PyTorch's tensor as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    if hasattr(x, "detach") and hasattr(x, "cpu"):  # PyTorch's: with a gradient, or on a GPU, it refuses NumPy
        x = x.detach().cpu()
        x = x.float() if "bfloat16" in str(x.dtype) else x
    return x.numpy() if hasattr(x, "numpy") else np.asarray(x)


# --- the file on the disk


def _path(function: str, path: Any) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise error(
            TypeError, f"{function}: the path is none", got=type(path).__name__, expected="a str or a pathlib.Path",
            fix='fb.save("state.npz", object), fb.load("state.npz")',
        ) from None


def _replace(target: str, write: Any) -> None:
    """The file that `write(file)` writes takes the place of `target`, at once or not at all."""
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as file:  # a device or a pipe stays what it is; a folder is refused
            write(file)
        return
    folder = os.path.dirname(target)
    _remove_stale(folder)
    file = _temporary(folder)
    try:
        with file:
            write(file)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), os.stat(target).st_mode & 0o777)
            os.fsync(file.fileno())
            os.replace(file.name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(file.name)  # gone already if it was renamed
        raise
    with contextlib.suppress(OSError):  # not every file system syncs folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary(folder: str) -> Any:
    """A new file in `folder`. Its lock, which ends with its process, says that it is being written."""
    while True:
        file = open(os.path.join(folder, f".fastbp-{secrets.token_hex(8)}.tmp"), "xb")  # noqa: SIM115
        with contextlib.suppress(OSError):  # not every file system locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):
            return file
        file.close()  # another save took it for stale before it was locked


def _remove_stale(folder: str) -> None:
    """Remove what saves that were killed left in `folder`."""
    for name in os.listdir(folder):
        if re.fullmatch(r"\.fastbp-[0-9a-f]{16}\.tmp", name):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError), open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


# --- .npz


def _npz_writer(object: Any) -> Any:
    """What writes `object` to a file; all of it is looked at first."""
    arrays: dict[str, np.ndarray] = {}
    document = {"fastbp": _FORMAT, "object": _encode(object, (), arrays)}
    structure = json.dumps(document).encode()

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open(_STRUCTURE, "w") as member:
                member.write(structure)
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
    return write


def _read_npz(file: Any) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        # Stored, not packed, and all together no longer than the file: no size can lie.
        stored = all(
            info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
            for info in members.values()
        )
        total = sum(info.file_size for info in members.values())
        if not stored or total > os.fstat(file.fileno()).st_size:
            raise ValueError("members that are packed, or longer than the file")

        def take(name: str) -> zipfile.ZipInfo:
            if name not in members:
                raise ValueError(f"member {name!r} is missing, or used twice")
            return members.pop(name)

        document = json.loads(archive.read(take(_STRUCTURE)))
        if document["fastbp"] != _FORMAT:
            raise ValueError(f"format {document['fastbp']!r}; this fastbp reads {_FORMAT}")
        return _decode(
            document["object"], lambda name: _read_array(archive, take(f"{name}.npy"))
        )


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{info.filename!r}: another version of .npy")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        size = member.tell() + math.prod(shape) * dtype.itemsize
    if not _is_plain(dtype):
        raise ValueError(f"{info.filename!r}: dtype {dtype}")
    if size != info.file_size:
        raise ValueError(f"{info.filename!r}: {info.file_size} bytes, its header says {size}")
    with archive.open(info) as member:  # once more: after a seek zipfile checks no CRC
        return np.lib.format.read_array(member, allow_pickle=False)


def _encode(value: Any, keys: tuple[Any, ...], arrays: dict[str, np.ndarray]) -> Any:
    """`value` in JSON; its arrays go to `arrays`, by name. `keys` lead to it.

    A list, number, string, bool or None is itself; else one pair, {kind: content}. Floats are
    in Python's spelling: the shortest that gives the same bits, NaN, Infinity.
    """
    if len(keys) > _MAX_DEPTH:
        raise error(
            ValueError, "save: nested too deeply", got=f"{_name(keys[:3])}... goes on",
            expected=f"{_MAX_DEPTH} levels at most", fix="is a dict or list put into itself?",
        )
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise _unsupported(f"the key {key!r} of {_name(keys)}", key, "a str or int key")
        return {"dict": [[k, _encode(v, (*keys, k), arrays)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(v, (*keys, i), arrays) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    numpy_scalar = isinstance(value, np.generic)
    if isinstance(value, str) or not numpy_scalar and isinstance(value, (bool, int, float)):
        return value
    if value is None:
        return None
    array = _array_of(value, keys, "dicts, lists, tuples, arrays, numbers, strings")
    name = "/".join(map(str, keys))
    plain = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name, re.ASCII) and len(name) <= 200
    if not plain or name in arrays or name == _STRUCTURE:
        name = f"#{len(arrays)}"
    arrays[name] = array
    return {"scalar" if numpy_scalar else "array": name}


def _array_of(value: Any, keys: tuple[Any, ...], expected: str, fix: str = _FIX) -> np.ndarray:
    """The array in what has one, `state[keys]`; TypeError for anything else and for other dtypes."""
    array = as_array(value) if hasattr(value, "numpy") else value
    if not isinstance(array, (np.ndarray, np.generic)):
        raise _unsupported(_name(keys), value, expected, fix)
    if not _is_plain(array.dtype):
        raise _unsupported(
            f"{_name(keys)}, of dtype {array.dtype},", value, "bool, integers, float16 to float64"
        )
    return np.asarray(array)


def _decode(node: Any, read: Any) -> Any:
    """The inverse of `_encode`; `read(name)` gives the array of that name."""
    if isinstance(node, list):
        return [_decode(item, read) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "dict":
        return {key: _decode(item, read) for key, item in content}
    if kind == "tuple":
        return tuple(_decode(item, read) for item in content)
    if kind == "array":
        return read(content)
    if kind == "scalar":
        return read(content)[()]
    raise ValueError(f"{_STRUCTURE}: unknown kind {kind!r}")


def _is_plain(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def _name(keys: tuple[Any, ...]) -> str:
    return "state" + "".join(f"[{key!r}]" for key in keys)


def _unsupported(what: str, value: Any, expected: str, fix: str = _FIX) -> Exception:
    return error(
        TypeError, f"save: {what} cannot be saved", got=type(value).__name__, expected=expected, fix=fix
    )


def _is_pytorchs(file: Any) -> bool:
    """Whether torch.save wrote the file: a zip with a member data.pkl, or formerly a pickle that begins so."""
    file.seek(0)
    if file.read(len(_FORMERLY_PYTORCHS)) == _FORMERLY_PYTORCHS:
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except Exception:  # it is damaged
        return False


# --- safetensors


def _is_safetensors(path: str) -> bool:
    return path.endswith(".safetensors")


def _safetensors() -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as missing:
        raise error(
            ModuleNotFoundError, "save, load: files .safetensors need the package of that name",
            got="no package safetensors", expected="it, or a path that ends otherwise",
            fix='pip install "fastbp[safetensors]"',
        ) from missing
    return safetensors


def _safetensors_writer(object: Any) -> Any:
    """What writes the state dict `object` to a file."""
    _safetensors()
    from safetensors.numpy import save
    only = "one dict {name: array or tensor} in a file .safetensors", "save it to a path that ends in .npz"
    if not isinstance(object, dict):
        raise _unsupported("state", object, *only)
    arrays = {}
    for key, value in object.items():
        if type(key) is not str or key == "__metadata__":
            raise _unsupported(f"the key {key!r} of state", key, *only)
        array = _array_of(value, (key,), *only)
        arrays[key] = np.array(array, array.dtype.newbyteorder("<"), order="C")
    # The names, shapes and layouts are PyTorch's, which is what readers ask this entry for.
    content = save(arrays, metadata={"format": "pt"})
    return lambda file: file.write(content)


def _read_safetensors(file: Any) -> dict[str, np.ndarray]:
    arrays, header = {}, int.from_bytes(file.read(8), "little")
    if header > _MAX_HEADER:    # its package refuses that too, but takes a whole file to look
        raise ValueError(f"a header of {header} bytes")
    file.seek(0)
    for name, entry in _safetensors().deserialize(file.read()):
        if entry["dtype"] not in _SAFETENSORS:
            raise ValueError(f"{name!r} is of dtype {entry['dtype']}, which NumPy lacks: convert it first")
        array = np.frombuffer(entry["data"], np.dtype(_SAFETENSORS[entry["dtype"]]).newbyteorder("<"))
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = np.array(array.reshape(entry["shape"]), array.dtype.newbyteorder("="))
    return arrays
