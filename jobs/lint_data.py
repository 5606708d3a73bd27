"""Look for what is wrong with human-labelled data, or with finished shards; exit code 1 if there is an error.

``python -m jobs.lint_data --help`` lists the formats, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.data_lint import LintDataJob, lint_data
from pipeline.failure import RunError


def lint(cfg: LintDataJob) -> str:
    """Give the report, or print it and fail for its errors."""
    report = lint_data(cfg)
    if not report.errors:
        return str(report)
    print(report)
    raise RunError(f"{report.errors} of the findings are errors; repair the data, or import them and lose those rows")


if __name__ == "__main__":
    cli.main(lint, recipes.LINTS, "Look for what is wrong with human-labelled data.", needs_ray=False)
