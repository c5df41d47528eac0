"""Save and load of nested state, as a zip of .npy members and one JSON member. No pickle."""
import contextlib
import json
import math
import os
import re
import secrets
import zipfile
import zlib
from typing import Any

import numpy as np

from fastbp.errors import error

_FORMAT = 1
_STRUCTURE = "structure.json"
_MAX_DEPTH = 100  # keeps json and the recursion below far from Python's own limit

_writing: set[str] = set()  # temporary files of the saves under way in this process


def save(path: str | os.PathLike, object: Any) -> None:
    """Write `object` to `path`, exactly that name, so that `load(path)` gives it back.

    Taken: dicts (keys str or int), lists and tuples, to 100 levels; NumPy arrays, NumPy scalars
    and what has `.numpy()`, such as Tensors, of bool, integer or floating dtype of at most 8
    bytes and of any shape; numbers, bools, None, strings.

    The file is whole at any moment: it is written under another name in the same folder, synced,
    and renamed, so that a crash leaves the old file or the new one. What a crashed save left
    behind, the next save to the same name removes. A link is followed. The mode of a file that
    is replaced is kept.

    TypeError for anything else, named as `state['optimizer']['x']`, and ValueError for deeper
    nesting (an object that contains itself): nothing is written. OSError where the file cannot
    be written.
    """
    arrays: list[np.ndarray] = []
    document = {"fastbp": _FORMAT, "object": _encode(object, (), arrays)}
    structure = json.dumps(document).encode()
    path = os.fsdecode(path)
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    prefix = os.path.join(folder, f".fastbp-{zlib.crc32(os.fsencode(name)):08x}-")
    temporary = f"{prefix}{os.getpid()}-{secrets.token_hex(4)}.tmp"
    _writing.add(temporary)
    try:
        _remove_stale(prefix)
        with open(temporary, "xb") as file:
            _write(file, structure, arrays)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), os.stat(target).st_mode & 0o777)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as problem:
        raise error(
            type(problem), f"save: cannot write {path!r}", got=problem.strerror,
            expected="a file name in a folder with room", fix="check the path and the disk",
        ) from problem
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # gone already if it was renamed
        _writing.discard(temporary)


def load(path: str | os.PathLike) -> Any:
    """The object that `save` wrote to `path`.

    Arrays and Tensors come back as NumPy arrays (writable, bits, dtype, shape and Fortran order
    as they were), NumPy scalars as NumPy scalars, the rest as it was; subclasses of dict, list
    and tuple as these. Nothing in the file is run, and no more is allocated than it holds.

    ValueError for a file that `save` did not write, that is cut off or damaged. OSError
    (FileNotFoundError, IsADirectoryError, ...) for one that can't be opened.
    """
    path = os.fsdecode(path)
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as problem:
        raise error(
            type(problem), f"load: cannot open {path!r}", got=problem.strerror,
            expected="a file of fastbp.save", fix="check the path",
        ) from problem
    with file:
        try:
            return _read(file)
        except MemoryError:
            raise
        except Exception as problem:  # over damaged bytes zipfile and NumPy raise a dozen types
            raise error(
                ValueError, f"load: {path!r} is damaged, or not a file of fastbp.save",
                got=f"{type(problem).__name__}: {problem}",
                expected=f"a zip of .npy members and {_STRUCTURE}, as fastbp.save writes it",
                fix="copy or save it again; numpy.load reads other .npz files",
            ) from problem


def _write(file: Any, structure: bytes, arrays: list[np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open(_STRUCTURE, "w") as member:
            member.write(structure)
        for i, array in enumerate(arrays):
            with archive.open(f"arr_{i}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _read(file: Any) -> Any:
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


def _encode(value: Any, keys: tuple[Any, ...], arrays: list[np.ndarray]) -> Any:
    """`value` in JSON; its arrays go to the end of `arrays`. `keys` lead to it.

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
    array = value.numpy() if hasattr(value, "numpy") else value
    if not isinstance(array, (np.ndarray, np.generic)):
        raise _unsupported(_name(keys), value, "dicts, lists, tuples, arrays, numbers, strings")
    if not _is_plain(array.dtype):
        raise _unsupported(
            f"{_name(keys)}, of dtype {array.dtype},", value, "bool, integers, float16 to float64"
        )
    arrays.append(np.asarray(array))
    return {"scalar" if numpy_scalar else "array": f"arr_{len(arrays) - 1}"}


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


def _unsupported(what: str, value: Any, expected: str) -> Exception:
    return error(
        TypeError, f"save: {what} cannot be saved", got=type(value).__name__, expected=expected,
        fix="convert it, or leave it out",
    )


def _remove_stale(prefix: str) -> None:
    """Remove the temporary files at `prefix` of processes that are gone."""
    folder, start = os.path.split(prefix)
    for name in os.listdir(folder):
        match = re.fullmatch(re.escape(start) + r"(\d{1,9})-[0-9a-f]{8}\.tmp", name)
        path = os.path.join(folder, name)
        if match and path not in _writing and not _is_other_process(int(match[1])):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _is_other_process(pid: int) -> bool:
    """Whether `pid` runs and is not this process, whose own files are in `_writing`."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
