"""Archive: a commit of the repository as the file that the workers unpack."""

import subprocess
from pathlib import Path

from grpojax.checks import require
from tools.tpu.texts import require_carried, require_config_path

NEEDED = ("pyproject.toml", "constraints.txt", "grpojax/__main__.py")


def find_commit(repository: Path, revision: str, *, allow_dirty: bool) -> str:
    """The full hash of `revision`.

    Raises:
      ValueError: no such commit, one that holds no grpojax, or files differ from their commit.
    """
    require_carried("commit", revision)
    asked = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    found = git(repository, *asked)
    require(
        found.returncode == 0,
        f"commit must name a commit of the repository {repository}, got {revision!r:.200}",
    )
    commit = found.stdout.strip()
    held = git(repository, "ls-tree", "--name-only", "--full-tree", commit, "--", *NEEDED)
    require(
        held.returncode == 0 and set(held.stdout.splitlines()) == set(NEEDED),
        f"commit {commit[:12]} must hold grpojax ({', '.join(NEEDED)}); run in a clone of it",
    )
    changed = git(repository, "status", "--porcelain").stdout.splitlines()
    require(
        allow_dirty or not changed,
        f"the tree must be clean, so that the commit is what runs; {len(changed)} files differ, as "
        f"{changed[0][3:] if changed else ''}: commit them, or --allow-dirty leaves them here",
    )
    return commit


def require_config(repository: Path, commit: str, config: str) -> None:
    """Raises ValueError unless `commit` holds the file `config`."""
    require_config_path(config)
    found = git(repository, "cat-file", "-e", f"{commit}:{config}")
    require(found.returncode == 0, f"config {config!r} must be in commit {commit[:12]}, is not")


def write_archive(repository: Path, commit: str, path: Path) -> None:
    """Writes the files of `commit`, packed, to `path`."""
    done = git(repository, "archive", "--format=tar.gz", f"--output={path}", commit)
    require(done.returncode == 0, f"git archive of {commit[:12]} failed: {done.stderr.strip()}")


def git(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """What git says in `repository`; it need not have succeeded."""
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
