"""Data sets: the digits that are shipped, and files in MNIST's format."""
import os

import numpy as np

from fastbp.data.idx import load_idx
from fastbp.errors import error

_DIGITS = os.path.join(os.path.dirname(__file__), "digits-idx2-ubyte.gz")

_Split = tuple[np.ndarray, np.ndarray]


def load_digits() -> _Split:
    """X float32 (1797, 64) in [0, 1], y uint8 (1797,): 8 x 8 images of handwritten digits.

    Each pixel counts the dark points of a 4 x 4 block, 0 to 16, divided by 16.

    Source: the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
    C. Kaynak, UCI Machine Learning Repository, 1998, https://archive.ics.uci.edu/dataset/80,
    under CC BY 4.0. Changed only in form: `digits-idx2-ubyte.gz` beside this module is an IDX
    file of uint8 (1797, 65), 64 pixels and the digit in each row, made from the copy in
    scikit-learn (`sklearn/datasets/data/digits.csv.gz`), in its order.
    """
    table = load_idx(_DIGITS)
    return np.divide(table[:, :64], 16, dtype=np.float32), table[:, 64].copy()


def load_mnist(folder: str | os.PathLike) -> tuple[_Split | None, _Split | None]:
    """`((X, y) train, (X, y) test)` from the files of MNIST, Fashion-MNIST and their like.

    X float32 (n, 784) in [0, 1], a row for each image, pixels divided by 255 (other sizes
    than 28 x 28 give other widths); y uint8 (n,), or the integer type of the file.
    None for a split with no file in the folder. Names: `train-images-idx3-ubyte`,
    `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, also with
    `.idx` for `-idx`, also with `.gz`.

    FileNotFoundError or NotADirectoryError: no such folder, no data in it, images without
    labels or labels without images. ValueError: a bad file (see `load_idx`), images that are
    not uint8 (n, rows, columns), labels that are not integers (n,), another number of labels
    than images.
    """
    folder = os.fsdecode(folder)
    try:
        names = os.listdir(folder)
    except OSError as problem:
        raise error(
            type(problem), f"load_mnist: cannot read {folder!r}", got=problem.strerror,
            expected="a folder", fix="check the path",
        ) from problem
    train, test = _load_split(folder, "train"), _load_split(folder, "t10k")
    if train is None and test is None:
        raise error(
            FileNotFoundError, f"load_mnist: no data in {folder!r}",
            got=f"{len(names)} other names",
            expected="train-images-idx3-ubyte, train-labels-idx1-ubyte, or t10k-..., or .gz",
            fix="pass the folder that holds these files",
        )
    return train, test


def _load_split(folder: str, split: str) -> _Split | None:
    images_path = _find(folder, f"{split}-images", "idx3-ubyte")
    labels_path = _find(folder, f"{split}-labels", "idx1-ubyte")
    if images_path is None and labels_path is None:
        return None
    if images_path is None or labels_path is None:
        missing = "images-idx3-ubyte" if images_path is None else "labels-idx1-ubyte"
        raise error(
            FileNotFoundError, f"load_mnist: half of a split in {folder!r}",
            got=images_path or labels_path, expected=f"{split}-{missing} beside it",
            fix="add the missing file, or take the other away",
        )
    images, labels = load_idx(images_path), load_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise error(
            ValueError, f"load_mnist: {images_path!r} does not hold images",
            got=f"{images.dtype} {images.shape}", expected="uint8 (n, rows, columns)",
            fix="check that the file has its right name",
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise error(
            ValueError, f"load_mnist: {labels_path!r} does not hold labels",
            got=f"{labels.dtype} {labels.shape}", expected="integers (n,)",
            fix="check that the file has its right name",
        )
    if len(images) != len(labels):
        raise error(
            ValueError, f"load_mnist: the {split} files in {folder!r} do not belong together",
            got=f"{len(images)} images, {len(labels)} labels", expected="as many of each",
            fix="take both files from one source",
        )
    n, height, width = images.shape
    return np.divide(images.reshape(n, height * width), 255, dtype=np.float32), labels


def _find(folder: str, stem: str, kind: str) -> str | None:
    for name in (f"{stem}{joint}{kind}{end}" for end in ("", ".gz") for joint in "-."):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    return None
