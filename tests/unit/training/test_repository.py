"""Code of one commit, from real repositories."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_mlops.exceptions import RepositoryUnavailable, SpecError
from airflow_mlops.local.services import free_port
from airflow_mlops.training.function import code_authors, code_version
from airflow_mlops.training.repository import checkout, without_credentials
from tests.git import AUTHOR, commit_all, git


class Repository:
    """A team's repository in a directory, with one file ``model.py``."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        return git(self.place, *arguments)

    def commit(self, text: str) -> str:
        (self.place / "model.py").write_text(text)
        return commit_all(self.place, text)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "team")


def test_the_tree_is_exactly_that_commit_and_code_version_and_authors_know_it(repository: Repository, tmp_path: Path) -> None:
    first = repository.commit("one")
    second = repository.commit("two")
    (repository.place / "model.py").write_text("not committed")
    (repository.place / "untracked.py").write_text("")
    for commit, text in ((first, "one"), (second, "two"), (first, "one")):
        tree = checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
        assert sorted(path.name for path in tree.iterdir()) == [".git", "model.py"]
        assert (tree / "model.py").read_text() == text
        assert (code_version(tree), code_authors(tree)) == (commit, (AUTHOR,))


def test_what_is_known_already_is_not_asked_for_again(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("one")
    checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    repository.place.rename(tmp_path / "gone")
    assert (checkout(str(repository.place), commit, tmp_path / "again", cache=tmp_path / "cache") / "model.py").read_text() == "one"


def test_a_commit_on_no_branch_is_found_where_the_repository_allows_it_by_its_hash(repository: Repository, tmp_path: Path) -> None:
    repository.commit("one")
    repository.git("checkout", "--quiet", "--detach")
    commit = repository.commit("of a pull request")
    repository.git("update-ref", "refs/pull/1/head", commit)
    repository.git("checkout", "--quiet", "main")
    tree = checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    assert code_version(tree) == commit


def test_changes_of_an_earlier_try_are_gone(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("one")
    tree = checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    (tree / "model.py").write_text("altered")
    (tree / "more.py").write_text("")
    tree = checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    assert not (tree / "more.py").exists()
    assert code_version(tree) == commit


@pytest.mark.parametrize("harm", ["objects", "HEAD", "config", "packs cut"])
def test_half_a_clone_that_a_killed_process_left_is_made_anew(repository: Repository, tmp_path: Path, harm: str) -> None:
    commit = repository.commit("one")
    checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    (bare,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    if harm == "packs cut":
        for path in [path for path in (bare / "objects").rglob("*") if path.is_file()]:
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:10])
    elif harm == "objects":
        shutil.rmtree(bare / harm)
    else:
        (bare / harm).unlink()
    tree = checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    assert code_version(tree) == commit


def test_several_processes_share_a_clone(repository: Repository, tmp_path: Path) -> None:
    commits = [repository.commit(str(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(lambda commit: checkout(str(repository.place), commit, tmp_path / commit, cache=tmp_path / "cache"), commits))
    assert [(tree / "model.py").read_text() for tree in trees] == ["0", "1", "2", "3"]


def test_a_git_around_the_stage_leads_nowhere_else(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a hook started the process."""
    commit = repository.commit("one")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    tree = checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    assert (code_version(tree), code_authors(tree)) == (commit, (AUTHOR,))
    assert not (tmp_path / "index").exists()


def test_no_hook_runs(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!{sys.executable}\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    (hooks / "post-checkout").chmod(0o755)
    (tmp_path / "gitconfig").write_text(f"[core]\nhooksPath = {hooks}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    commit = repository.commit("one")
    repository.git("checkout", "--quiet", "--detach")
    assert (tmp_path / "ran").exists(), "the hook does not run at all: this test proves nothing"
    (tmp_path / "ran").unlink()
    checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("commit", ["main", "v1.0", "abc123", "", "A" * 40, "--upload-pack=touch /tmp/x"])
def test_what_may_move_is_no_commit(repository: Repository, tmp_path: Path, commit: str) -> None:
    with pytest.raises(SpecError, match="expected the full hash"):
        checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["", "--upload-pack=touch"])
def test_an_option_is_no_repository(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="expected a URL or a path"):
        checkout(name, "a" * 40, tmp_path / "code", cache=tmp_path / "cache")


def test_an_unknown_commit_is_no_matter_of_another_try(repository: Repository, tmp_path: Path) -> None:
    repository.commit("one")
    with pytest.raises(SpecError, match=r"There is no commit a{40} in .*team. Push it") as caught:
        checkout(str(repository.place), "a" * 40, tmp_path / "code", cache=tmp_path / "cache")
    assert not caught.value.retryable


def test_no_repository_at_that_path_is_no_matter_of_another_try(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"Git has no access to .*nowhere"):
        checkout(str(tmp_path / "nowhere"), "a" * 40, tmp_path / "code", cache=tmp_path / "cache")


def test_a_repository_that_does_not_answer_is_worth_a_retry_and_shows_no_password(tmp_path: Path) -> None:
    url = f"http://ann:s3cret@127.0.0.1:{free_port()}/team.git"
    with pytest.raises(RepositoryUnavailable, match="did not answer") as caught:
        checkout(url, "a" * 40, tmp_path / "code", cache=tmp_path / "cache")
    assert caught.value.retryable
    assert "s3cret" not in str(caught.value)
    assert "ann" not in str(caught.value)


def test_a_machine_without_git_is_told(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository.commit("one")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "env").symlink_to(str(shutil.which("env")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SpecError, match="There is no 'git' where the stage runs"):
        checkout(str(repository.place), commit, tmp_path / "code", cache=tmp_path / "cache")


def test_credentials_are_cut_out_of_every_url() -> None:
    said = "fatal: 'https://ann:p@ss@host.example/a.git' and https://token@host.example/b.git"
    assert without_credentials(said) == "fatal: 'https://host.example/a.git' and https://host.example/b.git"
    assert without_credentials("git@host.example:team/a.git") == "git@host.example:team/a.git"
