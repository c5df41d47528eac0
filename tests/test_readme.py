"""The README does what it says: its code runs, its numbers are true, its table is made from the rows."""
import re
from pathlib import Path

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
