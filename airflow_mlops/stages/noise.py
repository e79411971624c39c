"""What TensorFlow writes at every start is taken out of a task's log, so that a reader sees at once what went wrong.

Its native code writes before any setting of Python's takes effect, so the lines are taken out where they are read. Warnings and errors stay; the
one error that every machine without a GPU gets becomes the sentence that it means.
"""

from __future__ import annotations

import re

NO_DRIVER = "There is no NVIDIA driver here: TensorFlow computes on the CPU."

# The prefix of absl's logging: severity, month and day, time, thread, file and line. What it says before it is initialized is not cut off by
# TF_CPP_MIN_LOG_LEVEL.
_INFORMATION = re.compile(r"I\d{4} \d\d:\d\d:[\d.]+\s+\d+ [\w./-]+:\d+\] ")
_HEADER = "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"
# 303 is CUDA_ERROR_SHARED_OBJECT_INIT_FAILED: the driver's library is not there. Every other code is about a GPU that should work.
_NO_DRIVER = re.compile(r"E\d{4} \d\d:\d\d:.*\bfailed call to cuInit: .*\(303\)\s*$")
# A node of TensorFlow's optimizer that its own registry does not know: harmless.
_OWN_GRAPH = re.compile(r"E\d{4} \d\d:\d\d:.*\bNodeDef mentions attribute use_unbounded_threadpool ")


def readable(line: str) -> str | None:
    """Return a line of a stage as a person should read it, None where it says nothing."""
    if line.rstrip() == _HEADER or _INFORMATION.match(line) or _OWN_GRAPH.match(line):
        return None
    return NO_DRIVER if _NO_DRIVER.match(line) else line
