"""``trilemma report``: a self-contained HTML page about one run, or about result rows without a run."""

from __future__ import annotations

from trilemma.cli.common import Json, Results, print_json
from trilemma.printing import print_lines
from trilemma.runs.read import check_results


def report(run: Results, as_json: Json = False) -> None:
    """Writes RUN/report.html and prints its path.

    The page is self-contained and shows all results in the run folder: metrics with intervals, training curves with
    alarms, energies, samples, environment. `trilemma evaluate`, `diagnose` and `generate` add results. RUN may also be
    a folder of result rows, which `trilemma evaluate FILE --out DIR` writes.

    \b
    Examples:
      trilemma report runs/digits-eb-jdat
      trilemma report results/
    """
    folder = check_results(run)
    from trilemma.pages.html import write_report

    page = write_report(folder)
    if as_json:
        print_json({"report": str(page)})
    else:
        print_lines(page)
