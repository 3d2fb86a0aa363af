"""The first import of every job: puts the repository's root, not `jobs/`, at the front of the module path.

Invariant: a file in `jobs/` is found as `jobs.NAME` only. Python puts the folder of the script that it runs first on
its path, where `jobs/prepare.py` would stand before the standard library's `tokenize`. Only modules that Python has
loaded anyway are imported here, so nothing can be shadowed before the swap.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is not loaded yet
_root = os.path.dirname(_here)  # noqa: PTH120

sys.path[:] = list(dict.fromkeys(_root if os.path.abspath(entry) == _here else entry for entry in sys.path))  # noqa: PTH100
