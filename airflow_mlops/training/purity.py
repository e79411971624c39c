"""A served model is a function of the row alone: randomness and memory in its graph are refused, naming the layer.

Otherwise the served model would not be the measured one. The graph is searched for random operations that reach the answer, and for those that
change what the next request meets; where there are any, the model is traced again with every layer's place in the graph.
Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from airflow_mlops.exceptions import TrainingError
from airflow_mlops.training.dataflow import Dataflow, Step

# By name, for a family has dozens of members. Tests go through every operation of TensorFlow that has a state.
CHANCE = re.compile(
    r"^(Stateless|Stateful)?(Random(?!Get|GammaGrad|Dataset)[A-Z]\w*|Multinomial|(Parameterized)?TruncatedNormal(V2)?|SampleDistortedBoundingBox(V2)?"
    r"|StandardNormal(V2)?|Uniform(FullInt|Int)?|Shuffle)$"
    r"|^(NonDeterministicInts|RngReadAndSkip|AnonymousSeedGenerator|AnonymousRandomSeedGenerator|Timestamp|\w*CandidateSampler)$"
    r"|^(Experimental)?RandomDataset(V2)?$|Shuffle\w*Dataset"
)
CHANGE = re.compile(
    r"^(Assign\w*|Resource(Sparse)?Apply\w+|Resource(Scatter\w+|StridedSliceAssign|CountUpTo)|(Sparse)?Apply[A-Z]\w+|CountUpTo|StridedSliceAssign"
    r"|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)|RngSkip|LookupTable(Insert|Remove|Import)(V2)?|\w*Queue(Enqueue|Dequeue|Close)\w*"
    r"|(Ordered)?Map(Clear|Stage|Unstage|UnstageNoKey)|Stage|StageClear|Unstage|(MultiDevice)?IteratorGetNext\w*|\w*Accumulator(Apply|Set|Take)\w+"
    r"|Barrier\w+|\w+Sparse(To|From)TensorsMap|BoostedTrees(Center|Create|Deserialize|Flush|Quantile\w+(Add|Deserialize|Flush)|Update)\w*)$"
)
PYTHON = re.compile(r"^(Eager)?PyFunc(Stateless)?$")
_PLACE = re.compile(r"layer\.(\d+)\.")  # as `_placed` writes it into the names of nodes


class Finding(NamedTuple):
    """A step of the graph that may make two answers to one row differ, and the end of the sentence that says how."""

    step: Step
    problem: str


def findings(graph: Any, outputs: list[str]) -> list[Finding]:
    """Return what in a `GraphDef` keeps the tensors `outputs` from being a function of the inputs alone.

    Chance counts where it reaches an output, unless its seed is a constant, which gives the same numbers every time. A change of state counts
    wherever it runs, and Python does, for no model server has it.
    """
    flow = Dataflow(graph, outputs)
    chance = [step for step in flow.answering if CHANCE.search(step.node.op) and not _same_numbers(flow, step)]
    found = [Finding(step, "is random when the model answers, too") for step in chance]
    found += [Finding(step, "changes what the next request meets") for step in flow.running if CHANGE.search(step.node.op)]
    return found + [Finding(step, "runs Python, which is on no model server") for step in flow.running if PYTHON.search(step.node.op)]


def _same_numbers(flow: Dataflow, step: Step) -> bool:
    return step.node.op.startswith("Stateless") and flow.constant(step, slice(1, None))  # behind the shape, or what is shuffled, are key and seed


def check_graph(graph: Any, outputs: list[str], trace: Callable[[], tuple[Any, list[str]]]) -> None:
    """Raise `TrainingError`, naming the layer, if `graph` has `findings`; `trace` traces its model again."""
    found = findings(graph, outputs)
    if not found:
        return
    layers: list[keras.layers.Layer] = []
    with placed(layers):
        named = findings(*trace())
    for finding in named:
        places = [int(place) for name in finding.step.path for place in _PLACE.findall(name)]
        if places:
            chain = [layers[place] for place in places]
            wrapped = [chain[-1].layer] if isinstance(chain[-1], keras.layers.Wrapper) else []  # which is not called, only its `call`
            raise TrainingError(_refusal([*chain, *wrapped], finding))
    first = (named or found)[0]
    raise TrainingError(
        f"The model {first.problem} ({first.step.node.op}, {first.step.node.name}), so that it would not be served as it was measured. "
        "Draw random numbers and write to variables only while it learns: if training."
    )


def _refusal(chain: list[keras.layers.Layer], finding: Finding) -> str:
    layer = chain[-1]
    within = list(dict.fromkeys(repr(outer.name) for outer in chain[:-1] if outer is not layer))
    inside = f", in {' in '.join(reversed(within))}" if within else ""
    return (
        f"Layer {layer.name!r} ({type(layer).__name__}{inside}) {finding.problem} ({finding.step.node.op}): what is served would not be what was "
        f"measured. {_advice(layer, chain[-2] if within else None, finding)}"
    )


def _advice(layer: keras.layers.Layer, outer: keras.layers.Layer | None, finding: Finding) -> str:
    if PYTHON.search(finding.step.node.op):
        return "Write it by operations of keras.ops or TensorFlow."
    if getattr(layer, "stateful", False):
        return "Create it with stateful=False: requests of all clients would share its state."
    if type(layer).__name__ == "Features":
        return "Write the features function without random numbers and variables that it changes."
    if type(layer).__module__.split(".")[0] == "keras":
        where = f" in the call of {type(outer).__name__}" if outer is not None else ""
        return f"Call it{where} without training=True, or hand on the training that call() got: Keras then tells it when the model learns."
    return f"In {type(layer).__name__}.call(self, ..., training=False) draw random numbers and write to variables only if training."


@contextlib.contextmanager
def placed(layers: list[keras.layers.Layer]) -> Iterator[None]:
    """Within the block, the name of every node says in which call of which layer it was made, by its position in `layers`, which grows."""

    def call(original: Callable[..., Any], layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        layers.append(layer)
        with tf.name_scope(f"layer.{len(layers) - 1}."):
            return original(layer, *args, **kwargs)

    with around_layers(call):
        yield


@contextlib.contextmanager
def around_layers(call: Callable[..., Any]) -> Iterator[None]:
    """Within the block, every call of a layer is ``call(original, layer, ...)``."""
    original = keras.layers.Layer.__call__
    keras.layers.Layer.__call__ = lambda layer, *args, **kwargs: call(original, layer, *args, **kwargs)
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original


@contextlib.contextmanager
def still_seeds() -> Iterator[None]:
    """Within the block, drawing a seed leaves Keras' generators as they are: a graph of numbers that layers draw and drop then changes nothing."""
    original = keras.random.SeedGenerator.next
    keras.random.SeedGenerator.next = lambda generator, ordered=True: generator.state.value * 1
    try:
        yield
    finally:
        keras.random.SeedGenerator.next = original
