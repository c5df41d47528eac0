"""The stubs name what is there."""
import ast
from pathlib import Path

import pytest

import fastbp as fb
import fastbp_ext.cpu
import fastbp_ext.gate
import fastbp_ext.pool
import fastbp_ext.program
import fastbp_ext.replay
import fastbp_ext.tensor


def names(path):
    """What a stub's module and its classes define."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from ((None, alias.asname) for alias in node.names if alias.asname)
        elif isinstance(node, ast.FunctionDef):
            yield None, node.name
        elif isinstance(node, ast.Assign):
            yield None, node.targets[0].id
        elif isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_"):
            yield None, node.target.id
        elif isinstance(node, ast.ClassDef):
            for entry in [e for e in node.body if not isinstance(e, ast.Expr)]:
                yield node.name, entry.name if isinstance(entry, ast.FunctionDef) else entry.target.id


@pytest.mark.parametrize("module", [fb, fastbp_ext.tensor, fastbp_ext.gate, fastbp_ext.program,
                                    fastbp_ext.replay, fastbp_ext.cpu, fastbp_ext.pool])
def test_a_stub_names_what_its_module_has(module):
    path = Path(module.__file__)
    stub = path.parent / (path.name.split(".")[0] + ".pyi")
    found = [(owner, name) for owner, name in names(stub) if name != "__getattr__"]
    assert found
    for owner, name in found:
        assert hasattr(getattr(module, owner) if owner else module, name), (stub.name, owner, name)
    if module is fb:
        public = {n for n in vars(fb) if not n.startswith("_") and n not in fb.GATES}
        assert public - {n for _, n in found} <= {"GATES", "fastbp_ext", *submodules()}


def submodules():
    return {p.stem for p in Path(fb.__file__).parent.iterdir()}
