"""The suite runs on the installed package; the tests' own modules are found beside it."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
