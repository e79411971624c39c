"""Which requests are asked no more, and for how long."""

from __future__ import annotations

import grpc
import pytest

from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.embedded.suspects import Asked, Suspects

BAD = Asked("m", 2, Kind.PREDICT, b"bad")


@pytest.fixture
def suspects() -> Suspects:
    return Suspects()


def test_a_request_that_ended_a_process_once_may_be_asked_again_and_is_known(suspects: Suspects) -> None:
    assert not suspects.is_one(BAD, 0.0)
    suspects.note(BAD, 1.0)
    assert suspects.is_one(BAD, 1.0)


def test_one_that_did_so_twice_is_refused_for_a_while_and_at_the_next_death_again(suspects: Suspects) -> None:
    suspects.note(BAD, 1.0)
    suspects.note(BAD, 2.0)
    for now in (2.0, 61.9):
        with pytest.raises(Refusal, match=r"ended the process of model m version 2 2 times, and is refused for \d+ s more") as refused:
            suspects.is_one(BAD, now)
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert suspects.is_one(BAD, 62.0)
    suspects.note(BAD, 70.0)
    with pytest.raises(Refusal, match="3 times"):
        suspects.is_one(BAD, 100.0)


@pytest.mark.parametrize(
    "other", [BAD._replace(model="n"), BAD._replace(version=1), BAD._replace(kind=Kind.REST_PREDICT), BAD._replace(payload=b"bed")], ids=str
)
def test_another_model_version_interface_or_body_is_another_request(suspects: Suspects, other: Asked) -> None:
    suspects.note(BAD, 1.0)
    suspects.note(BAD, 1.0)
    assert not suspects.is_one(other, 2.0)


def test_one_that_is_answered_is_no_longer_a_suspect(suspects: Suspects) -> None:
    suspects.note(BAD, 1.0)
    suspects.note(BAD._replace(payload=b"two"), 1.0)
    suspects.clear(BAD)
    assert not suspects.is_one(BAD, 2.0)
    assert suspects.is_one(BAD._replace(payload=b"two"), 2.0)
    suspects.clear(BAD)  # a second time changes nothing


def test_the_memory_for_them_has_an_end(suspects: Suspects) -> None:
    for number in range(5000):
        suspects.note(BAD._replace(payload=b"x" * number), 1.0)
    assert sum(map(len, suspects._records.values())) <= 1000
    assert suspects.is_one(BAD._replace(payload=b"x" * 4999), 2.0)
