"""The tutorial: every command and every line of Python gives what it says; its numbers come from them."""
import doctest
import re
import shlex
from pathlib import Path

import pytest

import fastbp as fb
from fastbp import cli

PAGE = Path(fb.__file__).parent / "tutorial.md"
TEXT = PAGE.read_text() if PAGE.exists() else ""
pytestmark = pytest.mark.skipif(not TEXT, reason="no source tree")

COMMANDS = [(m[1], m[2]) for block in re.findall(r"```console\n(.*?)```", TEXT, re.S)
            for m in re.finditer(r"^\$ fastbp (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)]
CHAPTERS = re.findall(r"^## (.*)$", TEXT, re.M)


def parts(text):
    """The words of an output, and its numbers, which may differ in the last digit from machine to machine."""
    text = re.sub("[\u2588-\u258f#]+", "", text)    # bars
    number = r"(?<![\w.])-?\d+\.?\d*(?:e[-+]?\d+)?(?![\w.])"
    return re.sub(number, "0", text).split(), [float(n) for n in re.findall(number, text)]


def test_the_page_has_the_chapters_of_the_text():
    for word in ("Simple expressions", "Compound", "sigmoid neuron", "Staged", "Forks", "Patterns", "Matrices",
                 "S - I_y", "L-layer", "Vanishing", "Fitting"):
        assert any(word in chapter for chapter in CHAPTERS), word
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command, expected", COMMANDS, ids=[c for c, _ in COMMANDS])
def test_a_command_prints_what_the_page_shows(command, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(command)) == 0
    (words, numbers), (shown, promised) = parts(capsys.readouterr().out), parts(expected)
    assert words == shown
    assert numbers == pytest.approx(promised, rel=0.02, abs=1e-12)


def test_the_python_runs_as_one_session():
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
    found = doctest.DocTestParser().get_doctest(code, {}, "tutorial", str(PAGE), 0)
    assert len(found.examples) >= 40
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    report = []
    runner.run(found, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_numbers_of_the_prose_stand_in_the_output_of_its_chapter():
    for chapter in re.split(r"^## ", TEXT, flags=re.M)[1:]:
        prose = re.sub(r"```.*?```|`[^`]*`", "", chapter, flags=re.S)
        shown = "".join(re.findall(r"```.*?```", chapter, re.S))
        for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", prose):
            assert number in shown, (chapter.splitlines()[0], number)
