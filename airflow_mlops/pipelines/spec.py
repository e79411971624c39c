"""What a team says about its model, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.gates import ApprovalPolicy, ReleasePolicy
from airflow_mlops.pipelines.runner import Local, Runner
from airflow_mlops.training.search import Search

Parameter = str | int | float | bool
OWN_FIELDS = ("dataset_version", "repeat", "seed")  # of the trigger form, beside the train function's
TRAINING_FIELDS = ("max_seconds", "checkpoint_seconds", "checkpoints", "keep_checkpoints", "reproducible", "num_threads", "held_out_fraction")
ATTACK_ELSEWHERE = {"max_mutants": "PipelineSpec.max_mutants", "seed": "the trigger form's field seed"}


@dataclass(frozen=True)
class PipelineSpec:
    """One model and how it is retrained.

    * `model`: name in the registry and on the model server; also the prefix of the DAG ids.
    * `dataset`: name in the manifests of the dataset versions; `inbox` the directory they arrive in.
    * `suite`: Great Expectations suite (JSON), relative to `code_path`.
    * `train_function`: ``module:function``, imported from `code_path`, the directory of the DAG file.
    * `layout`: how rows become arrays.
    * `approval`: who must agree before it is released.
    * `params`: what the train function gets; each becomes a field of the trigger form with this default.
    * `policy`: when a model may be offered for release.
    * `nightly`: cron expression (UTC) of the retraining from scratch.
    * `max_mutants`: budget of the robustness campaign; 4000 take seconds on a small model.
    * `attack`: further fields of the campaign's `CampaignConfig`, as JSON: ``{"kind": {"name": "images", "value_range": [-1, 1]}}``.
    * `extensions`: modules in `code_path` that add own mutators, criteria, schedules or oracles to their dicts, or register own Keras layers.
    * `unsafe_models_allowed`: model files may bring code of their own (lambda layers, own classes, operations on files): only where everybody
      who can write to the registry may run code on the workers and the model server anyway.
    * `num_shards`: tasks that share the campaign; more than one pays when it takes longer than starting TensorFlow.
    * `statements`: JSON or TOML file of what people vouch for in the ML Test Score, relative to `code_path`; empty for nothing.
    * `retrain`: the function for a training that starts from the champion, where it is another than `train_function`.
    * `repository`, `commit`: Git repository and full hash of what all three functions are imported from, instead of `code_path`.
    * `code_authors`: names or e-mail addresses of further authors of the code, whom Git does not name; they cannot approve their own work. Needed
      where the code was copied without Git: otherwise no author is known, and the question says so.
    * `features`: ``module:function`` from raw rows to what the train function learns from; it is served with the model. Empty for none.
    * `training`: those of `TRAINING_FIELDS` of the train stage's spec that are not as usual: ``{"max_seconds": 3600.0, "reproducible": False}``.
    * `formats`: what the model is offered as beside Keras and SavedModel: ``{"onnx": "required", "tflite": "optional"}``.
    * `search`: parameters of the train function to try, instead of their defaults: a `Grid` or a `RandomSearch`; the best training goes on.
    * `runner`: where the stages run: ``Local()``, or ``Pod(...)`` on Kubernetes.
    * `channel`: where messages go when a Slack connection exists.
    """

    model: str
    dataset: str
    inbox: str
    suite: str
    train_function: str
    code_path: Path
    layout: ArrayLayout
    policy: ReleasePolicy = field(default_factory=ReleasePolicy)
    approval: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    params: Mapping[str, Parameter] = field(default_factory=dict)
    nightly: str = "0 2 * * *"
    max_mutants: int = 4000
    attack: Mapping[str, Any] = field(default_factory=dict)
    extensions: Sequence[str] = ()
    unsafe_models_allowed: bool = False
    num_shards: int = 1
    statements: str = ""
    features: str = ""
    retrain: str = ""
    repository: str = ""
    commit: str = ""
    code_authors: Sequence[str] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    search: Search | None = None
    runner: Runner = field(default_factory=Local)
    channel: str = "#mlops"

    def __post_init__(self) -> None:
        if not self.model.isidentifier():
            raise SpecError(f"model is {self.model!r}; it names DAGs and directories: use letters, digits and underscores.")
        if ":" not in self.train_function:
            raise SpecError(f"train_function is {self.train_function!r}; expected 'module:function'.")
        if not (self.code_path / self.suite).is_file():
            raise SpecError(f"There is no suite {self.code_path / self.suite}; give its file name relative to code_path.")
        if self.statements and not (self.code_path / self.statements).is_file():
            raise SpecError(f"There is no file {self.code_path / self.statements} of statements; give its name relative to code_path.")
        if self.max_mutants < 1:
            raise SpecError(f"max_mutants is {self.max_mutants}; a campaign needs at least 1.")
        if self.num_shards < 1:
            raise SpecError(f"num_shards is {self.num_shards}; at least 1 task must attack the model.")
        if "kind" not in self.attack and len(self.layout.input_shape) != 3:
            raise SpecError(
                f"The robustness campaign attacks images, which have 3 dimensions, and input_shape is {tuple(self.layout.input_shape)}. Say what the "
                "inputs are, for example attack={'kind': {'name': 'rows', 'columns': [...]}}: docs/robustness.md has all kinds."
            )
        for name, place in ATTACK_ELSEWHERE.items():
            if name in self.attack:
                raise SpecError(f"attack names {name!r}, which {place} decides: set it there.")
        for name in self.training:
            if name not in TRAINING_FIELDS:
                raise unknown_name("field of the training", name, TRAINING_FIELDS)
        for name, value in self.params.items():
            if name in OWN_FIELDS:
                raise SpecError(f"params names {name!r}, which the trigger form has already for the pipeline itself: choose another name.")
            if type(value) not in get_args(Parameter):
                raise SpecError(f"params has {name} = {value!r}; a field of the trigger form holds text, a number or a bool: give one of them.")
        if bool(self.repository) != bool(self.commit):
            raise SpecError(f"repository is {self.repository!r} and commit {self.commit!r}; expected both, or neither for the code in code_path.")
        if isinstance(self.code_authors, str):
            raise SpecError(f"code_authors is the text {self.code_authors!r}; give a list of names or e-mail addresses: ['{self.code_authors}'].")
        for name in self.search.values if self.search else ():
            if name not in self.params:
                raise unknown_name("parameter of the search", name, self.params)
