"""The command line, as a person sees it."""
import gzip
import importlib.util
import os
import pty
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

import fastbp as fb
from fastbp import data


def fastbp(*args, cwd=None, **options):
    return subprocess.run([sys.executable, "-m", "fastbp", *map(str, args)], capture_output=True, text=True, cwd=cwd,
                          **options)


def on_a_terminal(*args, **environment):
    """What Python with these arguments writes to a terminal."""
    pid, fd = pty.fork()
    if pid == 0:
        usual = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, *map(str, args)], usual | environment)
    seen = b""
    while True:
        try:
            chunk = os.read(fd, 1000)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.waitpid(pid, 0)
    return seen


def test_bench_prints_the_peak_and_a_ratio_for_each_row():
    result = fastbp("bench", "--quick")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    lines = result.stdout.splitlines()
    assert any(re.fullmatch(r"peak: +\d+ G float32 multiply-adds/s in a product, \d+ GB/s read and written in a copy",
                            line) for line in lines)
    rows = lines[lines.index("") + 3:-1]
    assert len(rows) == 6 and all(re.search(r" [\d.]+ [mun]s +[\d.]+ [mun]s +[\d.]+$", row) for row in rows)
    assert rows[0].startswith("circuit") and rows[-1].startswith("784-500-10 ReLU, batch 100, SGD")
    assert max(map(len, lines[lines.index(""):])) <= 80


def test_bench_refuses_to_time_engines_that_disagree(monkeypatch):
    from fastbp import benchmark
    monkeypatch.setattr(fb, "tanh", lambda x: fb.sigmoid(x))
    with pytest.raises(RuntimeError, match="disagree"):
        benchmark.chain(1000)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_train_reaches_four_percent_on_the_digits(seed):
    result = fastbp("train", "--seed", seed)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("64-100-10 ReLU net, SGD") and "1,437 images to train on, 360 to test" in lines[0]
    rows = [line.split() for line in lines if re.match(r" *\d+ ", line)]
    assert [int(r[0]) for r in rows] == list(range(1, 41))
    assert float(rows[-1][4].rstrip("%")) <= 4
    assert re.fullmatch(r"the same 40 epochs: fastbp [\d.]+ s, NumPy [\d.]+ s, [\d.]+ times as long; "
                        r"weights differ by at most [\d.e-]+", lines[-1])
    assert result.stderr == "", "plain lines where there is no terminal"
    assert max(map(len, lines[1:-1])) <= 80


def test_numpy_trains_the_same_net():
    last = fastbp("train", "--epochs", 3).stdout.splitlines()[-1]
    assert float(last.split()[-1]) < 1e-5    # later, rounding grows with each step


def test_the_seed_sets_every_number():
    def numbers(seed):
        out = fastbp("train", "--epochs", 2, "--seed", seed, "--hidden", 16).stdout.splitlines()
        return [line.split()[:5] for line in out[2:4]]
    assert numbers(1) == numbers(1) != numbers(2)


def write_mnist(folder, prefix, n, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n).astype(np.uint8)
    X = (rng.random((n, 28, 28)) * 60 + 19 * y[:, None, None]).astype(np.uint8)
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz", "wb") as f:
        f.write(struct.pack(">4B3i", 0, 0, 8, 3, n, 28, 28) + X.tobytes())
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as f:
        f.write(struct.pack(">4Bi", 0, 0, 8, 1, n) + y.tobytes())


def test_train_on_a_folder(tmp_path):
    write_mnist(tmp_path, "t10k", 600)
    one = fastbp("train", "--data", tmp_path, "--epochs", 1, "--save", tmp_path / "w.npz", "--threads", 2)
    assert one.returncode == 0, one.stderr
    few = tmp_path / "few"
    few.mkdir()
    write_mnist(few, "t10k", 3)
    assert "2 images to train on, 1 to test" in fastbp("train", "--data", few, "--epochs", 1).stdout
    write_mnist(few, "t10k", 1)
    assert "too few images" in fastbp("train", "--data", few).stderr
    assert "784-500-10" in one.stdout and "500 images to train on, 100 to test" in one.stdout
    assert fb.load(tmp_path / "w.npz")["0.weight"].shape == (500, 784)
    write_mnist(tmp_path, "train", 300, seed=1)
    both = fastbp("train", "--data", tmp_path, "--epochs", 1, "--hidden", 20, "--batch-size", 50, "--lr", 0.01)
    assert "784-20-10" in both.stdout and "300 images to train on, 600 to test" in both.stdout
    assert "rate 0.01, batches of 50" in both.stdout


def test_a_terminal_gets_a_progress_bar(tmp_path):
    write_mnist(tmp_path, "train", 3000)
    seen = on_a_terminal("-m", "fastbp", "train", "--data", tmp_path, "--epochs", "2", "--hidden", "2000").decode()
    drawn = [part for part in re.split(r"[\r\n]", seen) if part.startswith("epoch ") and "loss" in part and "%" in part]
    assert drawn and all(re.match(r"epoch [12]/2 .* \d?\d:\d\d left *$", part) for part in drawn)
    rows = [line.rpartition("\r")[2] for line in seen.split("\r\n") if re.match(r" *[12] ", line.rpartition("\r")[2])]
    assert len(rows) == 2 and max(map(len, drawn + rows)) <= 80


def test_train_writes_a_log_and_curves(tmp_path):
    log, plot = tmp_path / "log.csv", tmp_path / "curve.svg"
    options = ["--plot", plot] if importlib.util.find_spec("matplotlib") else []
    result = fastbp("train", "--epochs", 3, "--log", log, *options)
    assert result.returncode == 0, result.stderr
    columns, *rows = [line.split(",") for line in log.read_text().splitlines()]
    assert columns == ["epoch", "loss", "train_loss", "train_error", "test_loss", "test_error", "seconds"]
    printed = [line.split() for line in result.stdout.splitlines() if re.match(r" *\d+ ", line)]
    assert [f"{float(row[4]):.4f}" for row in rows] == [row[3] for row in printed] and len(rows) == 3
    assert not options or plot.read_text().count("test_loss") == plot.read_text().count("test_error") == 1
    for option in ("--log", "--plot"):
        result = fastbp("train", "--epochs", 1, option, tmp_path / "no" / "file.svg")
        assert result.returncode == 2 and "file.svg" in result.stderr and "Traceback" not in result.stderr


def test_a_rate_that_is_too_high_stops_with_a_word(tmp_path):
    result = fastbp("train", "--epochs", 20, "--lr", 1e30, "--save", tmp_path / "w.npz")
    assert result.returncode == 0 and result.stderr == ""
    assert re.search(r"stopped in epoch \d+: the loss is (nan|inf); the weights are those of ", result.stdout)
    assert "the same" not in result.stdout
    assert all(np.isfinite(w).all() for w in fb.load(tmp_path / "w.npz").values())


def write_idx(path, array):
    path.write_bytes(struct.pack(f">4B{array.ndim}i", 0, 0, {"uint8": 8, "int8": 9}[array.dtype.name], array.ndim,
                                 *array.shape) + array.tobytes())


@pytest.mark.parametrize("model", ["mlp", "lenet"])
@pytest.mark.parametrize("train, test, label, says", [
    ((9, 8, 8), (0, 8, 8), 1, "0 images of 64 pixels"), ((0, 8, 8), (9, 8, 8), 1, "0 images of 64 pixels"),
    ((9, 0, 8), (9, 0, 8), 1, "9 images of 0 pixels"), ((9, 8, 8), (9, 9, 9), 1, "9 images of 64 pixels and 9 images"),
    ((9, 8, 8), (9, 8, 8), -1, "a label is below 0")])
def test_images_that_can_not_be_learned(tmp_path, model, train, test, label, says):
    for name, shape in (("train", train), ("t10k", test)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", np.zeros(shape, np.uint8))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.full(shape[0], label, np.int8))
    result = fastbp("train", "--model", model, "--data", tmp_path)
    assert result.returncode == 2 and result.stdout == "", "before the first epoch"
    assert says in result.stderr and str(tmp_path) in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("options, says", [
    (["--save", "."], "., a folder"), (["--plot", "."], "., a folder"),
    (["--model", "gru", "--save", "w.safetensors"], "characters"), (["--hidden", 10**14], "no memory"),
    (["--hidden", 10**30], "too large")])
def test_what_can_not_be_done_is_said_before_the_first_epoch(options, says):
    result = fastbp("train", "--epochs", 1, *options)
    assert result.returncode == 2 and result.stdout == ""
    assert says in result.stderr and "Traceback" not in result.stderr


def test_lenet_learns_the_digits(tmp_path):
    result = fastbp("train", "--model", "lenet", "--epochs", 4, "--save", tmp_path / "w.npz", "--seed", 1)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "LeNet of 3x3 kernels on 8 x 8, Adam on cross-entropy, rate 0.003 falling linearly,"
    rows = [line.split() for line in lines[3:7]]
    assert [int(r[0]) for r in rows] == [1, 2, 3, 4] and max(map(len, lines[1:7])) <= 80
    assert float(rows[-1][4].rstrip("%")) < 12 and float(rows[-1][2].rstrip("%")) < 20
    assert lines[7] == f"weights saved to {tmp_path / 'w.npz'}"
    assert fb.load(tmp_path / "w.npz")["features.0.weight"].shape == (6, 1, 3, 3)


def test_lenet_on_a_folder(tmp_path):
    write_mnist(tmp_path, "train", 400)
    result = fastbp("train", "--model", "lenet", "--data", tmp_path, "--epochs", 2, "--log", tmp_path / "log.csv")
    assert result.returncode == 0 and result.stdout.startswith("LeNet-5 on 28 x 28, "), result.stderr
    assert (tmp_path / "log.csv").read_text().startswith("epoch,loss,error,test_loss,test_error,seconds,lr\n1,")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(
        struct.pack(">4B3i", 0, 0, 8, 3, 400, 20, 10) + bytes(80_000)))
    result = fastbp("train", "--model", "lenet", "--data", tmp_path)
    assert result.returncode == 2 and "square images" in result.stderr and "Traceback" not in result.stderr


FASHION = "/usr/share/datasets/fashion-mnist"    # where Debian's dataset-fashion-mnist puts it


@pytest.mark.skipif(not os.path.isdir(FASHION), reason=f"there is no {FASHION}")
def test_lenet_has_88_percent_of_fashion_mnist_right_after_5_epochs():
    result = fastbp("train", "--model", "lenet", "--data", FASHION)
    assert result.returncode == 0, result.stderr
    assert "60,000 images to train on, 10,000 to test" in result.stdout
    epoch, *_, wrong, _ = result.stdout.splitlines()[-1].split()
    assert epoch == "5" and float(wrong.rstrip("%")) <= 12


def test_gru_learns_a_text_and_writes_one(tmp_path):
    path = tmp_path / "abc.txt"
    path.write_text("\ufeff" + "abc.\n" * 800, encoding="utf-8")    # the mark is no character of the text
    options = ["--model", "gru", "--data", path, "--epochs", 6, "--hidden", 24, "--lr", 0.02, "--sample", 60]
    result = fastbp("train", *options, "--save", tmp_path / "w.npz")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("5 characters, GRU of 24 units, Adam, rate 0.02, batches of 16 x 64;")
    rows = [line.split() for line in lines[3:9]]
    assert [int(r[0]) for r in rows] == [*range(1, 7)] and float(rows[-1][2]) < 0.3 < float(rows[0][1])
    sample = result.stdout.partition("w.npz\n\n")[2]
    assert len(sample) == 61 and ("abc.\n" * 12).startswith(sample[25:50][sample[25:50].index("a"):])
    saved = fb.load(tmp_path / "w.npz")
    assert saved["characters"] == "\n.abc" and saved["model"]["embed.weight"].shape == (5, 12)


def test_the_sample_of_the_shipped_text_follows_the_seed_and_the_temperature():
    def lines(*options):
        result = fastbp("train", "--model", "gru", "--epochs", 1, "--hidden", 16, "--sample", 80, *options)
        assert result.returncode == 0, result.stderr
        table = result.stdout.splitlines()
        return [*table[:3], table[3].split()[:-1], *table[4:]]    # without the characters a second
    first = lines("--seed", 3)
    assert first == lines("--seed", 3) != lines("--seed", 4)
    assert first[0].startswith("59 characters, GRU of 16 units") and len("\n".join(first[5:])) == 80
    coldest = lines("--seed", 3, "--temperature", 0)
    assert first[:4] == coldest[:4] and first[5:] != coldest[5:] and lines("--sample", 0)[4:] == []


def test_texts_that_can_not_be_learned(tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "wide.txt").write_bytes(("long enough " * 200).encode("utf-16-le"))    # as UTF-8: letters and zeros
    for name, says in (("short.txt", "too short"), ("binary.txt", "UTF-8"), ("wide.txt", "UTF-8"),
                       ("none.txt", "none.txt"), ("", "irectory")):
        result = fastbp("train", "--model", "gru", "--data", tmp_path / name)
        assert result.returncode == 2 and result.stdout == ""
        assert says in result.stderr and not re.search("Traceback|where:", result.stderr)


def test_a_reader_who_has_seen_enough_is_no_error():
    shell = f"{sys.executable} -m fastbp fit | head -1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {shell}"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "" and len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("args, says", [
    (["train", "--epochs", "0"], "--epochs"), (["train", "--epochs", "many"], "'many' is no number"),
    (["train", "--lr", "nan"], "--lr"), (["train", "--lr", "-1"], "--lr"), (["train", "--lr", "inf"], "--lr"),
    (["train", "--batch-size", "-3"], "--batch-size"), (["train", "--seed", "-1"], "--seed"),
    (["train", "--rate", "1"], "--rate"), (["dance"], "dance"), ([], "command"),
    (["train", "--data", "no/such/folder"], "no/such/folder"), (["train", "--model", "vgg"], "vgg"),
    (["train", "--model", "lenet", "--hidden", "9"], "--hidden does not go with --model lenet"),
    (["train", "--sample", "9"], "--sample does not go with --model mlp"),
    (["train", "--model", "gru", "--temperature", "-1"], "--temperature"),
])
def test_a_wrong_argument_gets_one_line_and_exit_code_2(args, says):
    result = fastbp(*args)
    assert result.returncode == 2 and result.stdout == ""
    assert says in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.startswith("fastbp")


def test_damaged_data_gets_no_traceback(tmp_path):
    result = fastbp("train", "--data", tmp_path)
    assert result.returncode == 2 and str(tmp_path) in result.stderr and "Traceback" not in result.stderr
    write_mnist(tmp_path, "train", 20)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    result = fastbp("train", "--data", tmp_path)
    assert result.returncode == 2 and "train-images" in result.stderr and "Traceback" not in result.stderr
    kept = tmp_path / "kept.npz"
    fb.save(kept, {"x": 1})
    late = fastbp("train", "--epochs", 1, "--save", tmp_path / "no" / "folder.npz")
    assert late.returncode == 2 and late.stdout == "" and "folder.npz" in late.stderr
    assert fb.load(kept) == {"x": 1}


def test_info_and_help():
    info = fastbp("info").stdout
    from fastbp_ext import cpu
    assert fb.__version__ in info and f"kernels:   {cpu.ISA}" in info
    assert subprocess.run([sys.executable, "-m", "fastbp", "info"], capture_output=True, text=True,
                          env={**os.environ, "FASTBP_ISA": "baseline"}).stdout.count("kernels:   baseline") == 1
    for args in (["--help"], ["train", "--help"], ["info", "--help"]):
        result = fastbp(*args)
        assert result.returncode == 0 and "usage: fastbp" in result.stdout
    assert fastbp("--version").stdout.strip() == f"fastbp {fb.__version__}"


def test_the_shipped_digits_are_the_ones_that_train_uses():
    X, y = data.load_digits()
    assert X.shape == (1797, 64) and y.shape == (1797,)
