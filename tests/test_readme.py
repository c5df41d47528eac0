"""The README does what it says: its code runs, its numbers are true, its table is made from the rows."""
import re
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
from fastbp.gates import GATES, table

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="no source tree")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S)


def test_the_code_runs_and_prints_what_the_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = [b for b in blocks("python") if "import fastbp" in b]
    assert len(examples) >= 3
    for code in examples:
        exec(compile(code, "README.md", "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        promised = re.findall(r"^print\(.*\)\s+# (-?[\d.]+)", code, re.M)
        if promised:
            assert [float(p) for p in printed] == [float(p) for p in promised]
        if "step.epoch(" in code:
            losses = [float(line.split()[1]) for line in printed]
            assert len(losses) == 5 and losses[-1] < 1


def test_every_line_of_the_table_is_made_from_a_row():
    """No line may be stale; a gate may be newer than the table, which is printed anew for a release."""
    shown = re.search(r"<!-- gates -->\n(.*?)<!-- /gates -->", README.read_text(), re.S)[1].strip().splitlines()
    made = table().splitlines()
    assert len(shown) >= 68 and [line for line in shown if line not in made] == []
    assert len([line for line in made if line.startswith("| `")]) == len(GATES)


def test_the_listing_is_that_of_the_training_step():
    code = next(b for b in blocks("python") if "step.epoch(" in b)
    space = {}
    exec(code[:code.index("for epoch")] + "step(X[:32], y[:32])", space)
    shown = re.search(r"<!-- stages -->\n```\n(.*?)\n```", README.read_text(), re.S)[1]
    assert str(space["step"].stages()) == shown


def test_how_to_add_a_gate_shows_the_code_as_it_stands():
    root = README.parent
    steps = dict(re.findall(r"\d\. `([^`]+)`:.*?```\w+\n(.*?)```", README.read_text(), re.S))
    assert set(steps) == {"fastbp_ext/kernels/elementwise.pxi", "fastbp/gates/arithmetic.py", "tests/cases.py"}
    for path, code in steps.items():
        source = (root / path).read_text()
        for line in code.splitlines():
            assert line.strip() in source or line.strip().startswith("#"), (path, line)


def test_what_the_readme_names_exists():
    for name in re.findall(r"`fb\.(\w+)", README.read_text()):
        assert hasattr(fb, name), name
    for path in re.findall(r"^\| `([\w/]+\.?\w*)`", README.read_text(), re.M):
        assert path in GATES or (README.parent / path).exists(), path


def test_what_is_written_otherwise_than_in_pytorch():
    """The numbers are PyTorch's, for what stands on the left."""
    x = fb.tensor([[[1.0, 5.0], [4.0, 2.0]], [[0.0, 3.0], [7.0, 6.0]], [[2.0, 2.0], [1.0, 1.0]]])
    assert x.sum(axis=1, keepdims=True).shape == (3, 1, 2) and x.reshape(-1).shape == (12,)
    assert x.expand_dims(0).shape == (1, 3, 2, 2) and x.transpose(1, 0, 2).numpy()[0, 1].tolist() == [0, 3]
    assert x.argmax(1).numpy().tolist() == [[1, 0], [1, 1], [0, 0]] and x.max(1).numpy()[0].tolist() == [4, 5]
    assert x.std(0, ddof=1).numpy()[0, 0] == 1
    a, b = [fb.tensor([1.0, 2.0], requires_grad=True) for _ in range(2)]
    fb.minimum(a, b).sum().backward()
    assert a.grad.numpy().tolist() == b.grad.numpy().tolist() == [1, 1]
    a.grad = b.grad = None
    fb.where(a <= b, a, b).sum().backward()
    assert a.grad.numpy().tolist() == [1, 1] and b.grad.numpy().tolist() == [0, 0]
    right = fb.where(x[:, :, 0].argmax(1) == np.array([1, 1, 1]), 1.0, 0.0).mean()
    assert abs(right.item() - 2 / 3) < 1e-6
    a.copy_(a - 0.5 * a.grad)
    assert a.numpy().tolist() == [0.5, 1.5]
