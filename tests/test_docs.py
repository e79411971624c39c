"""What README.md promises, done: its files are written down as they stand there and used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.data.snapshot import open_version
from airflow_mlops.data.suites import load_suite
from airflow_mlops.results import DatasetVersion, to_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ROBUSTNESS = (ROOT / "docs" / "robustness.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAIN = """
import sys
from pathlib import Path
from airflow_mlops.data.arrays import to_arrays
from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.data.readers import read_frame
from airflow_mlops.data.snapshot import open_version
from airflow_mlops.data.split import split
from airflow_mlops.training.context import TrainingContext
from airflow_mlops.training.function import resolve
from airflow_mlops.training.reproducibility import seed_everything
from airflow_mlops.training.trainer import fit

home = Path(sys.argv[1])
train = split(to_arrays(read_frame(open_version(home / "inbox" / "first")), ArrayLayout((16, 16, 1), 3, scale=1 / 255))).train
seed_everything(1)
logged = []
context = TrainingContext(train.inputs, train.labels, {"epochs": 2}, 1, 3, lambda *metric: logged.append(metric), home)
model = fit(resolve("signs_model:train", home / "dags" / "signs"), context)
print(model.output_shape, [name for name, _, _ in logged])
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory with the files of README: the DAG file and its neighbours in one folder, the publisher elsewhere."""
    home = tmp_path_factory.mktemp("user")
    team = home / "dags" / "signs"
    team.mkdir(parents=True)
    (home / "dags" / ".airflowignore").write_text((ROOT / "dags" / ".airflowignore").read_text())
    files = dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', README, flags=re.MULTILINE | re.DOTALL))
    assert set(files) == {"publish_signs.py", "signs_suite.json", "signs_model.py", "signs.py"}
    for name, text in files.items():
        (home if name.startswith("publish") else team).joinpath(name).write_text(text)
    return home


@pytest.fixture(scope="module")
def version(home: Path) -> DatasetVersion:
    digest = run(home / "publish_signs.py", home / "inbox", "first").strip()
    version = open_version(home / "inbox" / "first")
    assert (version.dataset, version.digest) == ("signs", digest)
    return version


def test_the_data_keep_what_the_suite_promises(home: Path, version: DatasetVersion) -> None:
    suite = home / "dags" / "signs" / "signs_suite.json"
    assert [one.severity for one in load_suite(suite).expectations] == ["critical"] * 4 + ["warning"]
    (home / "spec.json").write_bytes(canonical_json({"dataset": to_data(version), "suite": str(suite)}))
    run("-m", "airflow_mlops", "stage", "validate", "--spec", home / "spec.json", "--result", home / "validated" / "result.json")
    result = json.loads((home / "validated" / "result.json").read_bytes())["result"]
    assert (result["num_rows"], result["critical"], result["warnings"]) == (300, [], [])


def test_the_train_function_trains_on_the_published_data(home: Path, version: DatasetVersion) -> None:
    last = run("-c", TRAIN, home).splitlines()[-1]
    assert last == "(None, 3) ['train_accuracy', 'train_loss', 'train_accuracy', 'train_loss']"


def test_the_dag_file_makes_four_dags_and_the_model_code_is_not_parsed(home: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(home / "dags", bundle_name="dags-folder")
    assert bag.import_errors == {}
    assert set(bag.dags) == {"signs_on_dataset", "signs_nightly", "signs_release", "signs_rollback"}
    assert [Path(stat.file).name for stat in bag.dagbag_stats] == ["signs.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent.name != "docker" else "docker")
def test_every_command_exists(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, flags=re.MULTILINE)) <= targets
    known = set(re.findall(r"^    ([\w-]+) ", run("-m", "airflow_mlops", "--help"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)airflow-mlops ([a-z-]+)", text, flags=re.MULTILINE)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent.name != "docker" else "docker")
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_table_of_dags_names_the_dags() -> None:
    table = README.partition("## The DAGs")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == {
        "digits_on_dataset",
        "digits_nightly",
        "digits_release",
        "digits_rollback",
        "reconcile_models",
    }


def test_every_setting_and_connection_type_is_explained() -> None:
    from airflow_mlops.get_provider_info import get_provider_info

    text = (ROOT / "docs" / "operations.md").read_text()
    info = get_provider_info()
    names = [*info["config"]["mlops"]["options"], *(entry["connection-type"] for entry in info["connection-types"])]
    names += [field for entry in info["connection-types"] for field in entry.get("conn-fields", {})]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_image_copies_what_is_there_and_installs_only_what_is_locked() -> None:
    lines = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    sent = [line.removeprefix("!") for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    for variant in ("cpu", "cuda"):
        sources = [source.replace("${VARIANT}", variant) for source in copied]
        assert [source for source in sources if not (ROOT / source).exists()] == []
        assert [source for source in sources if not any(fnmatch(source, pattern) for pattern in sent)] == []
    runs = [line.split()[1] for line in lines if line.startswith("RUN ")]
    assert runs == ["useradd", "apt-get", *["/build/docker/install-stage.sh"] * 3]  # Git, beside what the lock names
    pips = re.findall(r"^ *pip .*", (ROOT / "docker" / "install-stage.sh").read_text().replace("pip()", ""), flags=re.MULTILINE)
    assert len(pips) == 2 and all("--require-hashes" in line or "--no-build-isolation" in line for line in pips)  # and all are --no-deps
    assert [line for line in lines if line.startswith("USER ")][-1] not in ("USER root", "USER 0")
    assert 'ENTRYPOINT ["airflow-mlops"]' in lines


def files_in(page: str) -> dict[str, str]:
    return dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', page, flags=re.MULTILINE | re.DOTALL))


def robustness_tables() -> dict[str, str]:
    """Return the tables of docs/robustness.md as the code has them."""
    from airflow_mlops.robustness.coverage import CRITERIA
    from airflow_mlops.robustness.kinds import KINDS
    from airflow_mlops.robustness.oracles import ORACLES
    from airflow_mlops.robustness.schedules import SCHEDULES

    mutators = [
        [
            f"`{kind.__name__}`",
            f"`{name}`{'' if name in kind.default else ' *'}",
            one.unit if one.unit == "whole" else f"{one.limit:g} {one.unit}",
            one.relation,
            one.preserves,
        ]
        for kind in KINDS.values()
        for name, one in kind.mutators.items()
    ]
    return {
        "mutators": table(["kind", "mutator (* only if named)", "limit", "label", "why a person expects it"], mutators),
        "criteria": table(
            ["criterion", "is", "value"], [[f"`{name}`", one.title, "share" if one.is_ratio else "count"] for name, one in CRITERIA.items()]
        ),
        "schedules": table(["schedule", "does"], [[f"`{name}`", summary(one)] for name, one in SCHEDULES.items()]),
        "oracles": table(["oracle", "speaks when"], [[f"`{name}`", summary(one)] for name, one in ORACLES.items()]),
    }


def summary(member: object) -> str:
    return (member.__doc__ or "").strip().partition("\n")[0]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *rows])


def test_the_example_of_an_attack_prints_its_figures_and_every_defect_replays(tmp_path: Path) -> None:
    (tmp_path / "attack_digits.py").write_text(files_in(ROBUSTNESS)["attack_digits.py"])
    lines = run(tmp_path / "attack_digits.py", tmp_path / "out").splitlines()
    patterns = [
        r"3000 guided mutants of (\d+) seeds: (\d+) distinct defects",
        r"coverage: nc \d+\.\d%, kmnc \d+\.\d%",
        r"the first \d+ mutants: \d+ guided, \d+ unguided",
        r"random sample: \d+\.\d\d% wrong, \d+\.\d\d% to \d+\.\d\d%",
        r"worst: \w+, \d+ of \d+",
        r"replayed (\d+) defects, \1 with the same wrong answer",
        r"\d became \d by \w+ at 0\.\d\d.*",
    ]
    assert [line for line, pattern in zip(lines, patterns, strict=True) if not re.fullmatch(pattern, line)] == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(re.findall(r"`([\w.]+\.(?:html|jsonl|npz))`", ROBUSTNESS))


def test_own_members_are_known_by_name_in_a_configuration_and_in_a_dag_file(home: Path, tmp_path: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    for name, text in files_in(ROBUSTNESS).items():
        (tmp_path / name).write_text(text)
    assert run(tmp_path / "own_campaign.py") == "Both halves of the range: noise, rotation, shade\n"
    for name in ("signs_suite.json", "signs_model.py"):
        (tmp_path / name).write_text((home / "dags" / "signs" / name).read_text())
    bag = DagBag(tmp_path / "signs.py", bundle_name="dags-folder")
    assert bag.import_errors == {}
    parts = bag.dags["signs_on_dataset"].get_task("attack").expand_input.value["spec"]
    assert [(part.shard, part.num_shards, part.campaign.extensions) for part in parts] == [(number, 3, ("own_members",)) for number in range(3)]


@pytest.mark.parametrize("name", ["mutators", "criteria", "schedules", "oracles"])
def test_a_table_of_robustness_members_is_that_of_the_code(name: str) -> None:
    found = re.search(rf"<!-- {name} -->\n((?:\|.*\n)+)", ROBUSTNESS)
    assert found
    assert found[1] == robustness_tables()[name]
