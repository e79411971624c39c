from __future__ import annotations

from typing import Any

import pytest

from airflow_mlops.exceptions import PublishError
from airflow_mlops.serving.signatures import described, differences, parse
from tests.bare_saved_models import graph, signature, tensor

OLD = {"serving_default": signature()}


def changed(**parts: Any) -> dict[str, Any]:
    return {"serving_default": signature(**parts)}


def test_signatures_are_read_without_tensorflow_s_own_ones() -> None:
    found = parse(graph({"serving_default": signature(), "__saved_model_init_op": signature()}), "m")
    assert list(found) == ["serving_default"]
    assert described(found["serving_default"].inputs["x"]) == "DT_FLOAT[-1, 4]"


def test_of_several_graphs_the_one_to_serve_is_read() -> None:
    # Messages that follow one another are merged.
    several = graph({"train": signature()}, tags=("train",)) + graph({"tpu": signature()}, tags=("serve", "tpu")) + graph()
    assert list(parse(several, "m")) == ["serving_default"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not a graph", "m is broken: expected a SavedModel message, found 11 other bytes"),
        (graph()[:-5], "m is broken"),
        (b"", "no graph with the tag 'serve' and no other, .* it has no graph at all"),
        (graph(tags=("train", "gpu")), "it has one with gpu, train"),
        (graph(tags=("serve", "tpu")) + graph(tags=()), "it has one with serve, tpu; one with no tag"),
        (graph({"__saved_model_init_op": signature()}), "has no signature"),
    ],
)
def test_a_graph_that_nobody_could_ask_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(PublishError, match=words):
        parse(data, "m")


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        {**OLD, "another": signature()},
        changed(outputs={"y": tensor(shape=(-1, 2)), "more": tensor()}),
        changed(inputs={"x": tensor(shape=(-1, -1))}),
        changed(inputs={"x": tensor(shape=None)}),
        changed(inputs={"x": tensor(), "new": tensor()}, defaults=["new"]),
    ],
)
def test_a_version_that_takes_and_gives_more_breaks_nobody(new: dict[str, Any]) -> None:
    assert differences(OLD, new) == []


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        ({"other": signature()}, "Signature 'serving_default' is gone."),
        (changed(inputs={"z": tensor()}, defaults=["z"]), "Input 'x' of 'serving_default' is gone."),
        (changed(inputs={"x": tensor(), "z": tensor()}), "Input 'z' of 'serving_default' is new, and no client sends it."),
        (changed(inputs={"x": tensor("DT_INT64")}), "Input 'x' of 'serving_default' took DT_FLOAT[-1, 4] and takes DT_INT64[-1, 4]."),
        (changed(inputs={"x": tensor(shape=(1, 4))}), "Input 'x' of 'serving_default' took DT_FLOAT[-1, 4] and takes DT_FLOAT[1, 4]."),
        (changed(inputs={"x": tensor(shape=(-1, 5))}), "Input 'x' of 'serving_default' took DT_FLOAT[-1, 4] and takes DT_FLOAT[-1, 5]."),
        (changed(inputs={"x": tensor(shape=(-1,))}), "Input 'x' of 'serving_default' took DT_FLOAT[-1, 4] and takes DT_FLOAT[-1]."),
        (changed(outputs={"z": tensor()}), "Output 'y' of 'serving_default' is gone."),
        (changed(outputs={"y": tensor("DT_HALF", (-1, 2))}), "Output 'y' of 'serving_default' was DT_FLOAT[-1, 2] and is DT_HALF[-1, 2]."),
        (changed(outputs={"y": tensor(shape=(-1, 3))}), "Output 'y' of 'serving_default' was DT_FLOAT[-1, 2] and is DT_FLOAT[-1, 3]."),
        (changed(outputs={"y": tensor(shape=None)}), "Output 'y' of 'serving_default' was DT_FLOAT[-1, 2] and is DT_FLOAT[...]."),
    ],
)
def test_what_would_break_a_client_is_said_in_a_sentence(new: dict[str, Any], sentence: str) -> None:
    assert differences(OLD, new) == [sentence]


def test_an_input_that_took_any_rank_may_not_become_choosy_and_a_default_may_not_vanish() -> None:
    open_rank = changed(inputs={"x": tensor(shape=None)})
    assert differences(open_rank, OLD) == ["Input 'x' of 'serving_default' took DT_FLOAT[...] and takes DT_FLOAT[-1, 4]."]
    assert differences(changed(defaults=["x"]), OLD) == ["Input 'x' of 'serving_default' has no default any more."]
