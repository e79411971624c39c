"""The rules of CONTRIBUTING.md that a machine can check."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.get_provider_info import get_provider_info
from tests import check_lock

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "airflow_mlops"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
KINDS = ("operators", "sensors", "hooks", "triggers", "notifications")
MAX_MODULE, MAX_CLASS, MAX_FUNCTION, MAX_EXECUTE, MAX_PARAMETERS, MAX_NESTING, MAX_DAG_FILE = 250, 200, 40, 25, 8, 3, 30

# What may be longer, wider or deeper, and why. An entry that is no longer needed fails the tests.
EXCEPTIONS = {
    "exceptions.py": "the whole tree in one place, as a picture and as classes",
    "local/services.py environment": "a table of settings",
    "stages/train.py run": "one training from its inputs to its record; its parts share most of their names",
    "triggers/dataset.py DatasetInbox.open_stream": "looks without end, also after a look that failed; what it yields cannot move into a function",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@functools.cache
def parsed() -> list[tuple[str, ast.Module]]:
    return [(path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())) for path in MODULES]


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield f"{prefix}{node.name}", node
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, f"{prefix}{node.name}." if isinstance(node, ast.ClassDef) else prefix)


def every_function() -> Iterator[tuple[str, str, Function]]:
    for module, tree in parsed():
        for name, node in functions(tree):
            yield module, name, node


def num_lines(node: Definition) -> int:
    """Return the lines of a definition without its docstring: nobody shall save words to keep a rule."""
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    return (node.end_lineno or 0) - node.lineno + 1 - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def num_own_parameters(node: Function) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def depth(node: ast.AST) -> int:
    """Return how many branches and loops stand inside each other; an ``elif`` is no deeper than its ``if``, a nested function begins anew."""
    blocks = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.Match)
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Definition | ast.Lambda):
            elif_ = isinstance(node, ast.If) and isinstance(child, ast.If) and [child] == node.orelse
            deepest = max(deepest, depth(child) + (isinstance(child, blocks) and not elif_))
    return deepest


def too_big() -> Iterator[str]:
    for module, name, node in every_function():
        if num_lines(node) > MAX_FUNCTION or num_own_parameters(node) > MAX_PARAMETERS or depth(node) > MAX_NESTING:
            yield f"{module} {name}"
    for module, tree in parsed():
        yield from (f"{module} {node.name}" for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and num_lines(node) > MAX_CLASS)
        if len((PACKAGE / module).read_text().splitlines()) > MAX_MODULE:
            yield module


def test_nothing_is_too_long_too_wide_or_too_deep_without_a_reason() -> None:
    assert sorted(set(too_big()) - EXCEPTIONS.keys()) == []


def test_the_list_of_exceptions_has_no_entry_too_many() -> None:
    assert sorted(EXCEPTIONS.keys() - set(too_big())) == []


@pytest.mark.parametrize(
    ("code", "expected"), [("if a:\n for b in c: pass\nelif d:\n pass", 2), ("while a:\n if b: pass\n else:\n  d()\n  if c: pass", 3)]
)
def test_nesting_is_counted_in_branches_and_loops(code: str, expected: int) -> None:
    assert depth(ast.parse(code)) == expected


def test_an_operator_only_assigns_when_it_is_made() -> None:
    """Airflow makes every operator at every parse: work in ``__init__`` would be done again and again, and templates are not rendered yet."""
    seen = 0
    for module, name, node in every_function():
        if module.split("/")[0] in (*KINDS, "ui") and node.name == "__init__":
            seen += 1
            for statement in node.body:
                text = ast.unparse(statement)
                assert isinstance(statement, ast.Assign | ast.AnnAssign) or text.startswith("super().__init__("), f"{module} {name}: {text}"
    assert seen > 10


def test_execute_and_its_like_are_short() -> None:
    long = [f"{m} {name}" for m, name, node in every_function() if node.name.startswith(("execute", "poke")) and num_lines(node) > MAX_EXECUTE]
    assert long == []


def test_everything_public_says_what_it_is() -> None:
    silent = [module for module, tree in parsed() if not ast.get_docstring(tree)]
    for module, tree in parsed():
        public = [node for node in tree.body if isinstance(node, Definition) and not node.name.startswith("_")]
        silent += [f"{module} {node.name}" for node in public if not ast.get_docstring(node)]
    assert silent == []


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|(?<!except )\bNotImplementedError\b")  # what Keras raises may be caught
    files = [*MODULES, *(ROOT / "dags").glob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "Makefile"]
    assert [str(path.relative_to(ROOT)) for path in files if marks.search(path.read_text())] == []


def test_nobody_prints_but_those_who_talk_to_a_terminal() -> None:
    printing = set()
    for module, tree in parsed():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(isinstance(called, ast.Name) and called.id == "print" for called in calls):
            printing.add(module.split("/")[0])
    assert printing <= {"cli.py", "commands", "local"}


def test_the_core_reads_no_environment_variable() -> None:
    core = ("data", "training", "evaluation", "robustness", "registry", "serving", "ledger", "gates.py", "results.py", "records.py", "artifacts.py")
    readers = [m for m, tree in parsed() if m.split("/")[0] in core and re.search(r"\bos\.(environ|getenv)\b", ast.unparse(tree))]
    # MLflow's client and the libraries of a model's process have no other way to be told: these set, they do not decide by what they read.
    assert set(readers) <= {"registry/mlflow.py", "registry/mlflow_server.py", "serving/embedded/processes.py"}


def test_a_dag_file_is_one_short_call() -> None:
    files = [path for path in (ROOT / "dags").glob("*.py") if not path.name.endswith("_model.py")]
    assert files
    assert {path.name: len(path.read_text().splitlines()) for path in files if len(path.read_text().splitlines()) >= MAX_DAG_FILE} == {}


def test_the_layers_hold() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def listed(kind: str) -> set[str]:
    entries: list[Any] = get_provider_info()[kind]
    if kind == "notifications":
        return {name.rpartition(".")[0] for name in entries}
    return {module for entry in entries for module in entry["python-modules"]}


@pytest.mark.parametrize("kind", KINDS)
def test_what_airflow_is_told_equals_the_folders(kind: str) -> None:
    names = (
        "container_log",
        "errors",
        "exchange",
        "handovers",
        "kubernetes",
        "messages",
        "people",
        "preflight",
        "signing",
        "training_job",
        "workspace",
    )
    helpers = {f"airflow_mlops.hooks.{name}" for name in names} | {"airflow_mlops.operators.links", "airflow_mlops.operators.pod_log"}
    modules = {f"airflow_mlops.{kind}.{path.stem}" for path in (PACKAGE / kind).glob("*.py") if path.stem != "__init__"}
    assert listed(kind) == modules - helpers
    assert all(find_spec(module) for module in listed(kind))


def test_connection_types_are_those_of_their_hooks() -> None:
    for entry in get_provider_info()["connection-types"]:
        module, _, name = entry["hook-class-name"].rpartition(".")
        hook = getattr(importlib.import_module(module), name)
        assert (hook.conn_type, hook.hook_name) == (entry["connection-type"], entry["hook-name"])
        assert inspect.signature(hook).parameters[hook.conn_name_attr].default == hook.default_conn_name
    hooks = {entry["hook-class-name"].rpartition(".")[0] for entry in get_provider_info()["connection-types"]}
    assert hooks == listed("hooks")


def test_classes_that_airflow_is_told_of_exist() -> None:
    for name in (*get_provider_info()["notifications"], *get_provider_info()["extra-links"]):
        module, _, class_name = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), class_name))


def test_the_description_fits_airflows_schema() -> None:
    import airflow
    from jsonschema import validate  # type: ignore[import-untyped]

    schema = json.loads(Path(airflow.__file__).with_name("provider_info.schema.json").read_text())
    validate(get_provider_info(), schema)


def test_public_names_can_be_imported() -> None:
    for module, tree in parsed():
        exports = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
        for node in exports:
            home = importlib.import_module(f"airflow_mlops.{module.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}")
            assert all(hasattr(home, name) for name in ast.literal_eval(node.value)), module


LOCK, SETUP = (ROOT / "requirements.lock").read_text(), (ROOT / "setup.cfg").read_text()


@pytest.mark.parametrize("name", check_lock.LOCKS)
def test_the_locks_are_those_of_setup_cfg(name: str) -> None:
    assert check_lock.problems((ROOT / name).read_text(), SETUP, check_lock.LOCKS[name]) == []


def test_a_lock_with_airflow_is_none_of_a_stage_image() -> None:
    assert any("must hold no apache-airflow==" in problem for problem in check_lock.problems(LOCK, SETUP, "tensorflow-cpu"))


@pytest.mark.parametrize(
    ("lock", "setup_cfg", "complaint"),
    [
        (LOCK, SETUP.replace("pydantic>=2.11", "pydantic>=99"), "made for other dependencies"),
        (LOCK, SETUP.replace("pydantic>=2.11", "pydantic>=99"), "setup.cfg asks for pydantic>=99, the lock has pydantic=="),
        (LOCK, SETUP.replace("python_requires = >=3.11", "python_requires = >=3.12"), "made for Python 3.11"),
        (f"--index-url https://pypi.example/simple\n{LOCK}", SETUP, "names where to fetch from"),
        (re.sub(r" \\\n +--hash=sha256:[0-9a-f]{64}", "", LOCK, count=2), SETUP, "has no SHA-256"),
    ],
)
def test_a_lock_that_does_not_fit_is_found(lock: str, setup_cfg: str, complaint: str) -> None:
    assert any(complaint in problem for problem in check_lock.problems(lock, setup_cfg))
