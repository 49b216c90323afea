"""Sessions that check the project: ``nox -s oldest newest docs lint``."""

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["newest", "docs", "lint"]
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
OLDEST_PYTHON = PROJECT["requires-python"].removeprefix(">=")


def lower_bounds() -> list[str]:
    """Turn each dependency's lower bound into an exact requirement."""
    return [bound.replace(">=", "==") for bound in PROJECT["dependencies"]]


@nox.session(python=OLDEST_PYTHON)
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest Python and dependencies that are declared."""
    session.install("-e", ".[test]", *lower_bounds())
    session.run("python", "-m", "pip", "list")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "2"]))


@nox.session
def newest(session: nox.Session) -> None:
    """Run the tests with the newest releases of all dependencies."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    session.run("python", "-m", "pip", "list")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "2"]))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation with warnings as errors."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "docs", "docs/_build/html")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
