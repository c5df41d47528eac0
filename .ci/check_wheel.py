"""A wheel holds the package alone: no source, no build or test file, stripped, under 1.45 MB."""
import re
import sys
import tempfile
import zipfile
from pathlib import Path

path = Path(sys.argv[1])
size = path.stat().st_size
with zipfile.ZipFile(path) as wheel:
    names = wheel.namelist()
    stray = [n for n in names if not re.fullmatch(
        r"fastbp(_ext)?/.*\.(py|pyi|so|gz|txt|typed)|fastbp-[^/]*\.dist-info/.*", n)]
    with tempfile.TemporaryDirectory() as folder:
        modules = [wheel.extract(n, folder) for n in names if n.endswith(".so")]
        unstripped = [m for m in modules if b".symtab" in Path(m).read_bytes()]
print(f"{path.name}: {size:,} bytes, {len(modules)} compiled modules, {len(names)} files")
assert not stray, stray
assert modules and not unstripped, unstripped
assert size < 1_450_000, size
