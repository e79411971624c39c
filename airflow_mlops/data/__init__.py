"""Data: which dataset version is complete, what it holds, whether it is good enough, and how its rows are divided.

`layout`, `manifest`, `snapshot`, `arrival`, `inbox` and `suites` are light; the other modules import NumPy, pandas or Great Expectations at the
top and are for stages only.
"""
