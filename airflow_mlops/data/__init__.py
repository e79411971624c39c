"""Data: which dataset version is complete, what it holds, whether it is good enough, and how its rows are divided.

`snapshot`, `arrival` and `suites` are light; `readers`, `arrays`, `split` and `validation` import NumPy, pandas or Great Expectations at the
top and are for stages only.
"""
