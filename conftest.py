"""Settings that must stand before any test module is imported.

SciPy reads ``SCIPY_ARRAY_API`` once, when it is first imported, and scikit-learn
skips some of its estimator checks without it. pytest loads this file before it
collects anything, in the main process and in each worker.
"""

import os
import sys

if "scipy" in sys.modules and os.environ.get("SCIPY_ARRAY_API") != "1":
    raise RuntimeError(
        "SciPy was imported before conftest.py could set SCIPY_ARRAY_API=1, probably "
        "by a pytest plugin; set SCIPY_ARRAY_API=1 in the environment."
    )
os.environ["SCIPY_ARRAY_API"] = "1"

# The tests run in several processes, whose threads would compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Pictures that doctests draw open no window.
os.environ.setdefault("MPLBACKEND", "agg")
