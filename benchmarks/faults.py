"""A fault suite: damaged and hostile inputs, full disks, kills. Is anything wrong without a word?

    OMP_NUM_THREADS=1 python benchmarks/faults.py
    OMP_NUM_THREADS=1 python benchmarks/faults.py --parts files headers --short

A case is an input, a command or a function, and an oracle that knows the right outcome. Each case runs in a process
of its own. The verdicts are *right*, *one clear line* (refused with one line that says what, where and what to do),
*untidy* (another form of refusal, control characters in the output, something left behind), *traceback*, *over limit*
(memory or time) and *silently wrong* (another result than that of the sound input, and no word about it). The first
two are good; the exit code is 1 if there is any other. With ``--mutants`` one check after the other is removed from
the library, and the exit code is 0 if the suite reports each removal.

Only the packaged digits and recipes are used. With the same ``--work`` an interrupted suite goes on where it was.
The counts and the failing cases are written to ``benchmarks/results/faults.json`` and ``faults.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.fault_suite.suite import PARTS, RESULTS_NAME, Suite

RESULTS = Path(__file__).parent / "results" / RESULTS_NAME


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--short", action="store_true", help="a few cases of every part, in seconds")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th case of a part")
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument(
        "--mutants", action="store_true", help="remove a check of the library, and expect failures"
    )
    parser.add_argument("--label", default="now", help="name of the column of the page")
    parser.add_argument("--again", action="store_true", help="forget the outcomes of an earlier suite")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "trilemma-faults"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file of the counts")
    parser.add_argument("--no-results", action="store_true", help="print the counts only")
    arguments = parser.parse_args()
    suite = Suite(arguments.work, arguments.label, arguments.short, arguments.only, arguments.every)
    if arguments.again:
        suite.forget(arguments.parts)
    good = suite.run_mutants() if arguments.mutants else suite.run(arguments.parts)
    if not (arguments.no_results or arguments.only or arguments.short):
        suite.write(arguments.results)
    sys.exit(not good)


if __name__ == "__main__":
    main()
