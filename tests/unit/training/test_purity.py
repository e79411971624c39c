"""What is served is what was measured: models as people build them pass, and whatever makes two answers to one row differ is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import op_def_registry

from airflow_mlops.exceptions import TrainFunctionError, TrainingError
from airflow_mlops.training.export import save
from airflow_mlops.training.features import save_features
from airflow_mlops.training.purity import CHANCE, CHANGE, PYTHON
from tests.unit.training.own_layers import (
    AlwaysDrops,
    BatchMean,
    Clock,
    Counter,
    ForcedStatistics,
    Fourier,
    Generator,
    InABranch,
    InALoop,
    LearnsByDefault,
    MonteCarlo,
    PlaceInTheBatch,
    Python,
    PythonChance,
    PythonClock,
    PythonCounter,
    StochasticDepth,
    Subclassed,
    TensorFlowNoise,
    Unused,
)

ROWS = np.random.default_rng(5).random((24, 16, 16, 3), dtype=np.float32)


def classifier(*middle: Any) -> keras.Model:
    return keras.Sequential([keras.Input((16, 16, 3)), *middle, layers.Flatten(), layers.Dense(3, activation="softmax")])


def saved(model: keras.Model, place: Path) -> Path:
    return save(model, ROWS, place, code_allowed=True).saved_model


def served(saved_model: Path, rows: Any) -> Any:
    signature = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    (answer,) = signature(**{name: tf.constant(rows)}).values()
    return np.asarray(answer)


def random_layers() -> dict[str, list[Any]]:
    ranged = {"value_range": (0, 1)}
    return {
        "geometry": [layers.RandomFlip(), layers.RandomTranslation(0.3, 0.3), layers.RandomRotation(0.3), layers.RandomZoom(0.3)],
        "light": [layers.RandomContrast(0.5), layers.RandomBrightness(0.5, **ranged), layers.RandomErasing(0.5)],
        # These draw numbers when they only answer, too, and drop them.
        "colours": [layers.RandomHue(0.5, **ranged), layers.RandomGrayscale(0.5), layers.RandomSaturation(0.5, **ranged), layers.MixUp()],
        "policies": [layers.RandAugment(**ranged), layers.AugMix(**ranged), layers.CutMix()],
        "nested": [
            keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.2)]),
            layers.Pipeline([layers.RandomFlip(), layers.RandomHue(0.5, **ranged)]),
        ],
        "noise": [
            layers.GaussianNoise(0.5),
            layers.GaussianDropout(0.5),
            layers.SpatialDropout2D(0.5),
            layers.AlphaDropout(0.5),
            layers.Dropout(0.5),
        ],
    }


@pytest.mark.parametrize("name", random_layers())
def test_layers_that_learn_by_chance_answer_without_it(tmp_path: Path, name: str) -> None:
    model = classifier(*random_layers()[name])
    place = saved(model, tmp_path)
    expected = model.predict(ROWS, verbose=0)
    for answers in (served(place, ROWS), served(place, ROWS), np.concatenate([served(place, ROWS[i : i + 1]) for i in range(2)])):
        np.testing.assert_allclose(answers, expected[: len(answers)], atol=1e-5)


def called(model: keras.Model) -> keras.Model:
    model(ROWS[:1])
    return model


def forced_in_the_graph() -> keras.Model:
    """Keras' `predict` leaves out what the graph of a functional model forces, and so does what is served."""
    rows = keras.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Dropout(0.5)(rows, training=True), training=True)
    return keras.Model(rows, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


def recurrent() -> keras.Model:
    rows = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 48))(rows)
    x = layers.Bidirectional(layers.LSTM(4, dropout=0.2, recurrent_dropout=0.2, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dropout(0.3))(x) + layers.MultiHeadAttention(2, 4, dropout=0.3)(x, x)
    return keras.Model(rows, layers.Dense(3, activation="softmax")(layers.GRU(3, recurrent_dropout=0.2)(x)))


def texts() -> keras.Model:
    rows = keras.Input((16, 16, 3))
    x = layers.Embedding(20, 4)(layers.Discretization(bin_boundaries=[0.2, 0.5])(layers.Flatten()(rows)))
    return keras.Model(rows, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def constant_projection() -> keras.Model:

    return classifier(Fourier())


@pytest.mark.parametrize(
    "make",
    [
        lambda: classifier(StochasticDepth()),
        lambda: called(Subclassed()),
        lambda: called(LearnsByDefault()),
        forced_in_the_graph,
        recurrent,
        texts,
        constant_projection,
        lambda: classifier(layers.BatchNormalization(), layers.SpectralNormalization(layers.Conv2D(2, 3))),
        lambda: classifier(layers.TimeDistributed(layers.Dropout(0.4))),
    ],
)
def test_a_model_that_answers_by_its_rows_alone_passes(tmp_path: Path, make: Callable[[], keras.Model]) -> None:
    model = make()
    place = saved(model, tmp_path)
    expected = np.asarray(model(ROWS, training=False))
    np.testing.assert_allclose(served(place, ROWS), expected, atol=1e-5)
    np.testing.assert_allclose(served(place, ROWS[3:4]), expected[3:4], atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny"])
def test_a_public_architecture_with_augmentation_before_it_passes(tmp_path: Path, name: str) -> None:
    size = 32
    rows = np.random.default_rng(1).random((10, size, size, 3), dtype=np.float32) * 255
    taken = keras.Input((size, size, 3))
    augmented = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.RandomContrast(0.1)])(taken)
    base = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg")
    model = keras.Model(taken, layers.Dense(4, activation="softmax")(layers.Dropout(0.2)(base(augmented))))
    place = save(model, rows, tmp_path).saved_model
    np.testing.assert_allclose(served(place, rows), model.predict(rows, verbose=0), atol=1e-4)


def stateful() -> keras.Model:
    rows = keras.Input(batch_shape=(24, 16, 16, 3))
    x = layers.LSTM(3, stateful=True, name="remembers")(layers.Reshape((16, 48))(rows))
    return keras.Model(rows, layers.Dense(3, activation="softmax")(x))


def monte_carlo() -> keras.Model:
    return called(MonteCarlo(name="uncertain"))


def nested() -> keras.Model:
    inner = keras.Sequential([keras.Input((16, 16, 3)), AlwaysDrops(name="drops"), layers.Flatten()], name="inner")
    return keras.Sequential([keras.Input((16, 16, 3)), inner, layers.Dense(3, activation="softmax")])


def in_time() -> keras.Model:
    return classifier(layers.TimeDistributed(AlwaysDrops(name="drops"), name="rows_of_pixels"))


REFUSED: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "dropout that ignores training": (lambda: classifier(AlwaysDrops(name="drops")), "Layer 'drops' .*random"),
    "Monte Carlo dropout": (monte_carlo, "Layer 'monte_carlo_dropout' .*in 'uncertain'.*random.*without training=True"),
    "in a nested model": (nested, "Layer 'drops' .*in 'inner'.*random"),
    "in a wrapper": (in_time, "Layer 'drops' .*in 'rows_of_pixels'.*random"),
    "batch statistics": (lambda: classifier(ForcedStatistics(name="forced")), "Layer 'forced_norm' .*in 'forced'.*changes"),
    "a counter": (lambda: classifier(Counter(name="counts")), "Layer 'counts' .*changes"),
    "a counter that is never read": (lambda: classifier(Unused(name="counts")), "Layer 'counts' .*changes"),
    "TensorFlow's noise": (lambda: classifier(TensorFlowNoise(name="noisy")), "Layer 'noisy' .*random"),
    "a generator": (lambda: classifier(Generator(name="noisy")), "Layer 'noisy' .*random"),
    "in a branch": (lambda: classifier(InABranch(name="branched")), "Layer 'branched' .*random"),
    "in a loop": (lambda: classifier(InALoop(name="looped")), "Layer 'looped' .*random"),
    "the clock": (lambda: classifier(Clock(name="clock")), "Layer 'clock' .*random|time"),
    "Python": (lambda: classifier(Python(name="python")), "Layer 'python' .*runs Python"),
    "a stateful recurrent layer": (stateful, "Layer 'remembers' .*changes.*stateful=False"),
    # The graph does not show these; they are measured.
    "the mean of the batch": (lambda: classifier(BatchMean(name="centred")), "Layer 'centred' .*other rows"),
    "one seed, another place": (lambda: classifier(PlaceInTheBatch(name="placed")), "Layer 'placed' .*other rows"),
    "Python's chance": (lambda: classifier(PythonChance(name="lucky")), "Layer 'lucky' .*differently every time it is called"),
    "Python's clock": (lambda: classifier(PythonClock(name="late")), "Layer 'late' .*differently every time it is called"),
    "Python's counter": (lambda: classifier(PythonCounter(name="counting")), "Layer 'counting' .*differently every time it is called"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_chance_and_state_are_refused_by_the_layer_s_name(tmp_path: Path, make: Callable[[], keras.Model], words: str) -> None:
    with pytest.raises(TrainingError, match=f"(?s){words}"):
        saved(make(), tmp_path)
    assert not (tmp_path / "golden.json").exists()


def test_what_a_functional_model_forces_and_keras_leaves_out_is_said(tmp_path: Path) -> None:
    rows = keras.Input((16, 16, 3))
    x = layers.Dropout(0.5, name="monte_carlo")(rows, training=True)
    model = keras.Model(rows, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))
    (note,) = save(model, ROWS, tmp_path / "forced").notes
    assert "'monte_carlo' is called with training=True" in note
    assert save(classifier(layers.Dropout(0.5)), ROWS, tmp_path / "not_forced").notes == ()


def test_features_by_chance_are_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainFunctionError, match=r"features function .*random"):
        save_features(lambda rows: rows + tf.random.normal(tf.shape(rows)), (4, 4, 1), tmp_path / "features")


def test_golden_rows_are_the_first_ones_and_those_nearest_to_the_decision_boundary(tmp_path: Path) -> None:
    rows = np.linspace(-1.0, 1.0, 101, dtype=np.float32)[:, None]
    model = keras.Sequential([keras.Input((1,)), layers.Dense(2, activation="softmax", use_bias=False)])
    model.layers[0].set_weights([np.array([[-3.0, 3.0]])])
    golden = np.asarray(json.loads(save(model, rows, tmp_path).golden.read_bytes())["inputs"], np.float32)
    assert np.array_equal(golden[:8], rows[:8])
    np.testing.assert_allclose(np.sort(golden[8:, 0]), np.sort(rows[np.argsort(np.abs(rows[:, 0]), kind="stable")[:8], 0]), atol=1e-6)


HARMLESS = re.compile(  # stateful for TensorFlow: they hold or read something, check, print, call a function, or have no place in a served model
    r"Dataset(V[2-4])?$|Reader\w*$|Iterator(V[23])?$|Iterator(From|To|Init|GetDevice|GetModel)\w*$|Summary\w*$|Handle(Op|V2)?$|HashTable\w*$|Queue(V2)?$"
    r"|^(Initialize|MakeI|TensorArray|Stack|CudnnRNN|Collective|Nccl|TPU|Xla|\w*TPUEmbedding|Stats|Save|Restore|Read|BoostedTrees|Delete|Dummy|Anonymous"
    r"|Infeed|Outfeed|Load|Map|OrderedMap|CheckNumerics|Create|DebugId|LookupTable(Find|Size|Export)|Queue(Is|Size)|Mutex|SendTPU|RecvTPU|Experimental"
    r"|GetSession|IsBoosted|IsTPU|GetMinibatch|ResourceGather|Variable|VarHandle|VarIs|Print)"
)
REST = {
    *("AllToAll", "Assert", "Barrier", "Case", "ConditionalAccumulator", "ConfigureDistributedTPU", "ConsumeMutexLock", "ConvertToCooTensor"),
    *("CrossReplicaSum", "DatasetToSingleElement", "DatasetToTFRecord", "DeepCopy", "DestroyResourceOp", "DeviceIndex", "DisableCopyOnRead"),
    *("DistributedSave", "Empty", "FileSystemSetConfiguration", "GlobalIterId", "GuaranteeConst", "If", "ImportEvent", "MergeV2Checkpoints"),
    *("RecordInput", "Recv", "RemoteCall", "ResourceAccumulatorNumAccumulated", "ResourceConditionalAccumulator", "Send", "ShutdownDistributedTPU"),
    *("SparseConditionalAccumulator", "StagePeek", "StageSize", "StatefulPartitionedCall", "StatelessRandomGetAlg", "StoreMinibatchStatisticsInFdo"),
    *("SyncDevice", "TemporaryVariable", "ThreadPoolHandle", "While", "WorkerHeartbeat", "WriteFile", "SerializeIterator", "DeserializeIterator"),
}


def test_every_operation_of_tensorflow_that_has_a_state_is_refused_or_known_to_be_harmless() -> None:
    stateful = {name for name in dir(tf.raw_ops) if (operation := op_def_registry.get(name)) and operation.is_stateful}
    assert len(stateful) > 400
    judged = {name for name in stateful if CHANCE.search(name) or CHANGE.search(name) or PYTHON.search(name)}
    assert {name for name in stateful - judged - REST if not HARMLESS.search(name)} == set()
    assert judged & REST == set()
