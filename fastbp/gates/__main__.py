"""python -m fastbp.gates: the table of gates in Markdown."""
from fastbp.gates import table

print(table())
