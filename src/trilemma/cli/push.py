"""``trilemma push``: a run or classifier to the Hugging Face hub, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import Json, argument, option, print_json
from trilemma.cli.exits import only_copies
from trilemma.cli.model import with_classifier
from trilemma.printing import print_lines

Repository = Annotated[str, argument("OWNER/NAME", "repository on the hub; created if it does not exist")]
License = Annotated[
    str | None,
    option("--license ID", "licence on the card, such as mit or apache-2.0  [default: none stated]"),
]
Private = Annotated[bool, option("--private", "make a new repository private")]
Results = Annotated[
    Path | None, option("--results DIR", "run or folder of result rows for the card  [default: the run]")
]
OutDir = Annotated[Path | None, option("--out DIR", "write the files to a new folder; upload nothing")]


@with_classifier
@only_copies()
def push(
    classifier: ClassifierSource,
    repository: Repository,
    license: License = None,
    private: Private = False,
    results: Results = None,
    out: OutDir = None,
    as_json: Json = False,
) -> None:
    """Uploads a run or classifier to the Hugging Face hub.

    The repository gets the classifier, which every command reads as hub:OWNER/NAME, and a model card with the results,
    the lint findings and how to load it; of a run also its configuration, metrics and result rows. Paths of this
    machine are left out. Requires the extra 'hub' and a login (`hf auth login`), not with --out.

    \b
    Examples:
      trilemma push runs/digits-pgd-at OWNER/digits-pgd-at --license mit
      trilemma push runs/digits-pgd-at OWNER/digits-pgd-at --out to-upload
    """
    classifier.check()
    from trilemma.pages.hub import push as push_classifier

    source = classifier.open() if classifier.run is None else classifier.run.path
    target = push_classifier(
        source,
        repository,
        license=license,
        private=private,
        checkpoint=classifier.checkpoint,
        results=results,
        out=out,
    )
    if as_json:
        print_json({"repository": repository, "target": target})
    else:
        print_lines(target)
