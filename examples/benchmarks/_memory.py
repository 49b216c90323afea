"""Memory of this process, as Linux counts it, and the seconds that a call takes."""

import time
from pathlib import Path


def memory(field):
    """Return a line of /proc/self/status in megabytes: `VmRSS` or `VmHWM`, the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {field}; this script needs Linux.")


def measure(function):
    """Call a function once; return seconds and the peak of memory above the present.

    Returns
    -------
    measured : dict
        `processor` and `wall` seconds, and `peak` in megabytes.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = memory("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return {
        "processor": time.process_time() - processor,
        "wall": time.perf_counter() - wall,
        "peak": memory("VmHWM") - before,
    }
