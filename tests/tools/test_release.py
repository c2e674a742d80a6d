"""What is published: a release is refused while something is missing, and the workflows are sound."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools import release
from tools.chapters import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [
    path
    for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    if path.name != "config.yml"
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository that could be released."""
    files = {
        "pyproject.toml": '[project]\nversion = "1.2.3"\n',
        "CITATION.cff": "version: 1.2.3\n",
        "CHANGELOG.md": "# Changelog\n\n## 1.2.3\n",
        "_config.yml": "repository: {url: https://example.org/book}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    for arguments in (["init", "--quiet"], ["add", "."]):
        release.git(*arguments)
    release.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "all")
    return tmp_path


def commit(text: str = "more") -> None:
    release.git("add", ".")
    release.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", text)


def test_what_is_complete_can_be_released(project: Path) -> None:
    assert release.missing() == []


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("_config.yml", "repository: {url: https://example.org/set_your_account/b}\n", "1 files"),
        ("CITATION.cff", "version: 1.2.2\n", "CITATION.cff has another version"),
        ("CHANGELOG.md", "## 1.2.2\n", "no section 1.2.3"),
    ],
)
def test_what_is_missing_is_named(project: Path, file: str, text: str, message: str) -> None:
    (project / file).write_text(text)
    commit()
    (fault,) = release.missing()
    assert message in fault


def test_a_version_is_tagged_once_and_changes_are_committed_first(project: Path) -> None:
    release.git("tag", "v1.2.3")
    (project / "new.txt").write_text("new")
    assert [fault.split(":")[0] for fault in release.missing()] == [
        "v1.2.3 has been tagged",
        "there are changes that are not committed",
    ]


def test_this_book_is_not_released_while_the_placeholder_stands() -> None:
    placeholder = release.PLACEHOLDER in (ROOT / "_config.yml").read_text("utf-8")
    assert placeholder == any(release.PLACEHOLDER in fault for fault in release.missing())


def test_one_version_everywhere() -> None:
    number = release.version()
    assert f"\nversion: {number}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {number}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    for page in ("book/how-to-use.md", "README.md"):
        for found in re.findall(r"\.git@v([\d.]+)", (ROOT / page).read_text("utf-8")):
            assert found == number, page


def test_the_workflows_pass_actionlint() -> None:
    actionlint = Path(sys.executable).parent / "actionlint"
    if not actionlint.exists():
        pytest.skip("actionlint is made for Linux")
    found = subprocess.run(
        [actionlint, "-no-color", *WORKFLOWS], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_workflows_call_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    called = {
        target
        for path in WORKFLOWS
        for line in re.findall(r"\bmake ([a-z ]+)", path.read_text("utf-8"))
        for target in line.split()
    }
    assert called
    assert called <= targets


def test_the_oldest_versions_tried_are_those_that_pyproject_allows() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    oldest = dict(re.findall(r'"(\w+)>=([\d.]+)"', text))
    weekly = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text("utf-8"))
    tried = {
        e["name"]: e["packages"]
        for e in weekly["jobs"]["versions"]["strategy"]["matrix"]["include"]
    }
    pinned = dict(part.split("==") for part in tried["oldest"].split())
    for name in ("torch", "numpy", "matplotlib", "tokenizers", "safetensors", "tqdm"):
        assert pinned[name].startswith(oldest[name]), name


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_have_what_github_asks_for(form: Path) -> None:
    content = yaml.safe_load(form.read_text("utf-8"))
    assert {"name", "description", "body"} <= set(content)
    ids = [part["id"] for part in content["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    for part in content["body"]:
        assert part["type"] in ("markdown", "input", "textarea", "dropdown", "checkboxes")
        assert "value" in part["attributes"] or "label" in part["attributes"]


def test_binder_installs_what_the_package_needs() -> None:
    environment = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text("utf-8"))
    names = {str(entry).split("=")[0] for entry in environment["dependencies"]}
    assert {"pytorch-cpu", "numpy", "matplotlib", "tokenizers", "safetensors", "tqdm"} <= names
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run([bash, "-n", ROOT / ".binder" / "postBuild"], check=True)


def test_binder_takes_the_environment_and_what_comes_after_it() -> None:
    repo2docker = shutil.which("repo2docker")
    if repo2docker is None:
        pytest.skip("repo2docker is not installed; the weekly workflow builds with it")
    command = [repo2docker, "--no-build", "--debug", "."]  # only says what it would do: no docker
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    assert 'env update -p ${NB_PYTHON_PREFIX} --file ".binder/environment.yml"' in said
    assert "RUN ./.binder/postBuild" in said
