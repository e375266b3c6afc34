"""The commit that results and workdirs record."""

import subprocess

from training import environment


def test_the_commit_is_dirty_only_if_the_code_was_changed(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        user = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        return subprocess.run(["git", *user, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(environment, "__file__", str(tmp_path / "training" / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_commit() is None
    files = [tmp_path / name for name in ("training/step.py", "docs/results.md", "benchmarks/results/rows.json")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    git("init", "--quiet")
    assert environment.git_commit() is None  # no commit yet
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    commit = git("rev-parse", "HEAD").strip()
    assert environment.git_commit() == commit and len(commit) == 40
    for file in files[1:]:  # what a study writes while it runs
        file.write_text("new")
    assert environment.git_commit() == commit
    files[0].write_text("new")
    assert environment.git_commit() == f"{commit}-dirty"
