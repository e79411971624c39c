"""Training: find the user's train function, run it reproducibly, and keep nothing that is not a sound model.

`context`, `function` and `reproducibility` are light; `trainer`, `export` and `features` import Keras and TensorFlow at the top and
are for stages only.
"""
