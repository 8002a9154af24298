"""``trilemma report``: a self-contained HTML page about one run."""

from __future__ import annotations

from trilemma.cli.common import Json, Run, print_json
from trilemma.runs.run_directory import RunDirectory


def report(run: Run, as_json: Json = False) -> None:
    """Writes RUN/report.html and prints its path.

    The page is self-contained and shows all results in the run folder: metrics with intervals, training curves with
    alarms, energies, samples, environment. `trilemma evaluate`, `diagnose` and `generate` add results.

    \b
    Example:
      trilemma report runs/digits-eb-jdat
    """
    folder = RunDirectory.open(run)
    from trilemma.pages.html import write_report

    page = write_report(folder.path)
    if as_json:
        print_json({"report": str(page)})
    else:
        print(page)
