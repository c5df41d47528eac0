# Compiled with flags of its own: see INSTRUCTION_SETS in setup.py.
include "table.pxi"
