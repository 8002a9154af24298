"""``trilemma report``: a self-contained HTML page about one run, or about result rows without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trilemma.cli.common import Json, Results, option, print_json
from trilemma.printing import print_lines
from trilemma.runs.read import check_results
from trilemma.storing import writable_file

OutFile = Annotated[Path | None, option("--out FILE", "output file  [default: RUN/report.html]")]


def report(run: Results, out: OutFile = None, as_json: Json = False) -> None:
    """Writes a page about a run and prints its path.

    The page is RUN/report.html, or the file of --out. It is self-contained and shows all results in the run folder:
    metrics with intervals, training curves with alarms, energies, samples, environment. `trilemma evaluate`, `diagnose`
    and `generate` add results. RUN may also be a folder of result rows, which `trilemma evaluate FILE --out DIR`
    writes.

    \b
    Examples:
      trilemma report runs/digits-eb-jdat
      trilemma report results/ --out results.html
    """
    folder = check_results(run)
    file = writable_file(out or folder / "report.html")
    from trilemma.pages.html import write_report

    page = write_report(folder, file)
    if as_json:
        print_json({"report": str(page)})
    else:
        print_lines(page)
