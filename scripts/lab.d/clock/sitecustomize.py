"""Sets the clock of the Python process that finds this on its PYTHONPATH by
$SWIFTNBD_LAB_CLOCK seconds: what it takes for the time of day, whoever in it asks.
Intervals (time.monotonic) stay as they are.

scripts/lab starts proxies with it.
"""
import os
import time

OFFSET = float(os.environ["SWIFTNBD_LAB_CLOCK"])
true_time, true_time_ns = time.time, time.time_ns

# Before any other module runs, so that `from time import time` gets these too.
time.time = lambda: true_time() + OFFSET
time.time_ns = lambda: true_time_ns() + round(OFFSET * 1e9)
