"""Memory of this process, as Linux counts it, and the seconds that a call takes."""

import math
import time
from pathlib import Path

STATUS = Path("/proc/self/status")


def memory(field):
    """Return a line of /proc/self/status in megabytes: `VmRSS`, or `VmHWM`, the peak.

    Where the system has no such file, it is not a number.
    """
    if not STATUS.exists():
        return math.nan
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6


def measure(function):
    """Call a function once; return seconds and the peak of memory above the present.

    Returns
    -------
    measured : dict
        `processor` and `wall` seconds, and `peak` in megabytes.
    """
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")  # the peak starts from here
    before = memory("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return {
        "processor": time.process_time() - processor,
        "wall": time.perf_counter() - wall,
        "peak": memory("VmHWM") - before,
    }
