"""Every reader inherits the same promises: rows in order, errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from airflow_mlops.data.readers import READERS, read_frame, read_npz
from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.exceptions import DatasetError, ManifestMismatch
from airflow_mlops.results import DatasetVersion


def to_npz(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{str(name): frame[name].to_numpy() for name in frame.columns})
    return buffer.getvalue()


WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    ".csv": lambda frame: frame.to_csv(index=False).encode(),
    ".parquet": lambda frame: frame.to_parquet(index=False),
    ".npz": to_npz,
}
FRAME = pd.DataFrame({"pixel_0": [0.1, 1e-17, 3.0], "label": [0, 1, 2]})


def publish(inbox: Path, **files: bytes) -> DatasetVersion:
    return publish_version({name.replace("_", "."): data for name, data in files.items()}, inbox, name="v", dataset="digits")


def test_every_reader_is_tested() -> None:
    assert WRITERS.keys() == READERS.keys()


@pytest.mark.parametrize("suffix", READERS)
def test_a_reader_gives_back_exactly_what_was_written(inbox: Path, suffix: str) -> None:
    version = publish_version({f"a{suffix}": WRITERS[suffix](FRAME)}, inbox, name="v", dataset="digits")
    pd.testing.assert_frame_equal(read_frame(version), FRAME, check_exact=True)


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_that_is_not_what_its_suffix_says_is_named(inbox: Path, suffix: str) -> None:
    version = publish_version({f"bad{suffix}": b'"\x00\xff\xfe garbage'}, inbox, name="v", dataset="digits")
    with pytest.raises(DatasetError, match=rf"bad\{suffix}"):
        read_frame(version)


@pytest.mark.parametrize("suffix", READERS)
def test_a_version_without_rows_is_refused(inbox: Path, suffix: str) -> None:
    version = publish_version({f"a{suffix}": WRITERS[suffix](FRAME[:0])}, inbox, name="v", dataset="digits")
    with pytest.raises(DatasetError, match="no rows"):
        read_frame(version)


def test_files_are_concatenated_in_sorted_order_whatever_their_format(inbox: Path) -> None:
    version = publish(inbox, b_csv=WRITERS[".csv"](FRAME[1:2]), a_npz=to_npz(FRAME[:1]), c_parquet=FRAME[["label", "pixel_0"]][2:].to_parquet())
    pd.testing.assert_frame_equal(read_frame(version), FRAME)


def test_files_with_other_columns_are_refused_instead_of_filled_with_nothing(inbox: Path) -> None:
    version = publish(inbox, a_csv=b"x,label\n1,0\n", b_csv=b"y,label\n1,0\n")
    with pytest.raises(DatasetError, match=r"b\.csv has other columns.*x, y"):
        read_frame(version)


def test_an_unknown_suffix_is_refused_instead_of_left_out(inbox: Path) -> None:
    with pytest.raises(DatasetError, match=r"b\.jsonl.*expected one of \.csv"):
        read_frame(publish(inbox, a_csv=b"x,label\n1,0\n", b_jsonl=b"{}"))


def test_a_file_altered_after_it_was_opened_is_not_read(version: DatasetVersion) -> None:
    path = Path(version.uri) / "part-0.csv"
    path.write_bytes(path.read_bytes().replace(b"5", b"6"))
    with pytest.raises(ManifestMismatch, match=r"part-0\.csv was altered"):
        read_frame(version)


def test_an_archive_with_images_becomes_one_column_per_pixel() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, pixel=np.arange(8).reshape(2, 2, 2), label=np.array([0, 1]))
    frame = read_npz(buffer.getvalue())
    assert list(frame.columns) == ["pixel_0", "pixel_1", "pixel_2", "pixel_3", "label"]
    assert frame.to_numpy().tolist() == [[0, 1, 2, 3, 0], [4, 5, 6, 7, 1]]


@pytest.mark.parametrize("array", [np.array([1, 2, 3]), np.array(1), np.array([{}, {}], dtype=object)], ids=["other length", "scalar", "pickled"])
def test_an_archive_with_unusable_arrays_is_refused(inbox: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=array, label=np.array([0, 1]))
    with pytest.raises(DatasetError, match=r"a\.npz"):
        read_frame(publish(inbox, a_npz=buffer.getvalue()))


def test_a_part_with_its_header_alone_does_not_change_what_the_columns_hold(inbox: Path) -> None:
    version = publish(inbox, a_csv=b"pixel_0,label\n", b_csv=WRITERS[".csv"](FRAME))
    pd.testing.assert_frame_equal(read_frame(version), FRAME)


def test_an_archive_of_no_images_has_no_rows(inbox: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, pixel=np.zeros((0, 2, 2)), label=np.zeros(0))
    with pytest.raises(DatasetError, match="no rows"):
        read_frame(publish(inbox, a_npz=buffer.getvalue()))


def test_a_compressed_archive_that_was_damaged_before_it_was_published_is_named(inbox: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(100))
    data = bytearray(buffer.getvalue())
    begin = data.index(b"x.npy") + len("x.npy")
    data[begin + 20 : begin + 60] = b"\xff" * 40
    with pytest.raises(DatasetError, match=r"a\.npz is no readable \.npz file"):
        read_frame(publish(inbox, a_npz=bytes(data)))


def test_arrays_in_the_other_byte_order_are_the_same_numbers(inbox: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(4, dtype=">f4").reshape(4, 1), label=np.array([0, 1, 0, 1], dtype=">i4"))
    frame = read_frame(publish(inbox, a_npz=buffer.getvalue()))
    assert [dtype.byteorder for dtype in frame.dtypes] == ["=", "="]
    assert frame["label"].isin([0]).tolist() == [True, False, True, False]


def test_columns_of_a_bare_array_are_named_by_texts(inbox: Path) -> None:
    frame = read_frame(publish(inbox, a_parquet=WRITERS[".parquet"](pd.DataFrame(np.zeros((2, 3))))))
    assert list(frame.columns) == ["0", "1", "2"]
