"""Dataset versions for the demo: scikit-learn's handwritten digits (Alpaydin and Kaynak, UCI, 1998), 1797 images of 8x8 grey values 0..16."""

from __future__ import annotations

from pathlib import Path

from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.results import DatasetVersion

SMALL, ALL = 1000, 1797


def publish_digits(inbox: Path, name: str, *, num_rows: int, seed: int, broken: bool = False) -> DatasetVersion:
    """Publish `num_rows` of the digits, drawn and ordered by `seed`, as version `name`.

    :param broken: spoil some rows the way real deliveries are: labels that do not exist, missing pixels, a wrong scale.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = np.random.default_rng(seed)
    rows = generator.permutation(ALL)[:num_rows]
    pixels, labels = digits.data[rows].astype(object), digits.target[rows].astype(object)
    if broken:
        labels[:7] = 12
        pixels[7:20, 28] = None
        pixels[20:60] = pixels[20:60] * 16
    header = ",".join([*(f"pixel_{index}" for index in range(pixels.shape[1])), "label"])
    lines = [",".join("" if value is None else f"{value:g}" for value in (*row, label)) for row, label in zip(pixels, labels, strict=True)]
    text = "\n".join([header, *lines, ""])
    return publish_version({"digits.csv": text.encode()}, inbox, name=name, dataset="digits")
