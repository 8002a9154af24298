"""Writes the files of a run during training: metric lines, events, status, checkpoints and classifiers."""

from __future__ import annotations

import copy
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from trilemma.classifier.classifier import Classifier
from trilemma.config.config import Config
from trilemma.data.image_set import ImageSet
from trilemma.data.statistics import ClassPCA
from trilemma.errors import describe
from trilemma.files import replacing
from trilemma.methods.base import Points
from trilemma.monitors.readings import Reading, mean_reading
from trilemma.printing import print_message
from trilemma.runs.run_directory import RunDirectory
from trilemma.samplers.replay_buffer import CHAINS_FILE, save_chains
from trilemma.storing import discard
from trilemma.training.checkpoint import save_state
from trilemma.training.loggers import IMAGES, Log
from trilemma.training.progress import Reporter
from trilemma.training.selection import HeldOut
from trilemma.training.state import TrainingState
from trilemma.training.statistics import attach, fit_pca
from trilemma.training.tensorboard import tensorboard

# Largest number of stored states: the newest ones, and for alarms other than divergence those of four ends of epochs
# within the horizon, one before it, and two evaluations.
NEWEST_STATES, OLDER_STATES = 2, 7


class Record:
    """Writes one run folder; only the first process of a run writes.

    Args:
        run: the run folder.
        config: configuration of the run.
        reporter: shows every metric line and event.
        recipe: name of the recipe, for reports.
        writes: whether this is the process that writes.
        logs: called with a copy of every record that is written, and with images; only by the process that writes.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        reporter: Reporter,
        recipe: str,
        writes: bool,
        logs: Sequence[Log] = (),
    ) -> None:
        self.run, self.config, self.reporter, self.recipe, self.writes = run, config, reporter, recipe, writes
        self.memory_format, self.convolutions = "contiguous", "direct"
        self.saved_at = time.monotonic()
        self._pca: ClassPCA | None = None
        events = tensorboard(run.path / "tensorboard") if writes else None
        self._logs = [*([events] if events else []), *logs] if writes else []
        # Loggers that have failed, by position.
        self._failed: set[int] = set()

    def steps(self, state: TrainingState, readings: list[Reading], seconds: float, total_steps: int) -> None:
        """Writes one metric line with the means of ``readings``, one reading per step, which took ``seconds``."""
        mean = mean_reading(readings)
        line: dict[str, Any] = {
            "kind": "step",
            "step": state.step,
            "epoch": state.epoch,
            "minutes": state.minutes,
        }
        group = state.optimiser.param_groups[0]
        line["lr"] = group["lr"] / group.get("factor", 1.0)
        line["images_per_second"] = len(readings) * self.config.training.batch_size / seconds
        line |= {name: value for name, value in mean.items() if not name.startswith("terms/")}
        line["terms"] = {
            name.removeprefix("terms/"): v for name, v in mean.items() if name.startswith("terms/")
        }
        self._write_metrics(line)
        seconds_left = (total_steps - state.step) * seconds / len(readings)
        if (limit := self.config.training.max_minutes) is not None:
            seconds_left = max(0.0, min(seconds_left, 60 * (limit - state.minutes)))
        self.reporter.metrics(line, state.step / total_steps, seconds_left)

    def held_out(
        self,
        state: TrainingState,
        accuracies: HeldOut,
        raw_fgsm: float | None,
        raw_pgd10: float | None,
        selected: bool,
    ) -> None:
        """Writes one metric line for an evaluation on held-out images.

        Args:
            state: the training state.
            accuracies: of the finished classifier.
            raw_fgsm, raw_pgd10: accuracies of the training weights, as the monitors read them.
            selected: whether the finished classifier is the best so far.
        """
        self._write_metrics(
            {
                "kind": "epoch", "step": state.step, "epoch": state.epoch, "minutes": state.minutes,
                "held_out_clean": accuracies.clean, "held_out_pgd10": accuracies.pgd10,
                "held_out_fgsm": accuracies.fgsm, "held_out_chance": accuracies.chance,
                "held_out_answers": accuracies.answers, "held_out_images": accuracies.images,
                "held_out_raw_fgsm": raw_fgsm, "held_out_raw_pgd10": raw_pgd10, "selected": selected,
            }
        )  # fmt: skip

    def images(self, state: TrainingState, points: Points) -> None:
        """Passes the first images of a batch to the loggers; nothing is written to the run folder."""
        if not self._logs:
            return
        sets = {"clean": points.clean, "adversarial": points.adversarial, "generated": points.generated}
        first = {name: images[:IMAGES].detach() for name, images in sets.items() if images is not None}
        shown = {name: images.float().clamp(0.0, 1.0).cpu() for name, images in first.items()}
        self._log({"kind": "images", "step": state.step, "epoch": state.epoch, **shown})

    def _write_metrics(self, line: dict[str, Any]) -> None:
        if self.writes:
            self.run.add_metrics(line)
            self._log(line)

    def _log(self, record: dict[str, Any]) -> None:
        """Calls the loggers. An exception of a logger does not end the run: its first one becomes an event."""
        for position, log in enumerate(self._logs):
            try:
                log(copy.deepcopy(record), record["step"])
            # A logger is the user's code, and may raise anything.
            except Exception as error:
                if position in self._failed:
                    continue
                self._failed.add(position)
                message = (
                    f"a logger raised {describe(error)}; training goes on, and later failures are not shown"
                )
                kept = {key: record[key] for key in ("step", "epoch")}
                self.run.add_event({**kept, "kind": "warning", "name": "log", "message": message})
                print_message(f"warning: log: {message}")

    def drop_later_metrics(self, state: TrainingState, undone: bool = False) -> None:
        """Removes the metric lines of steps after the current one, which will be run again.

        Args:
            state: the training state.
            undone: whether a rollback has undone those steps, so that the run may never come to its best checkpoint
                again (:meth:`trilemma.runs.run_directory.RunDirectory.drop_metrics_after`).
        """
        keep_best = undone or (state.best_step or 0) > state.step
        if self.writes:
            self.run.drop_metrics_after(state.step, state.evaluated_at, keep_best)

    def drop_all_metrics(self) -> None:
        """Removes all metric lines: those of a run whose training state is lost."""
        if self.writes:
            self.run.write_metrics(())

    def warn(self, message: str) -> None:
        """Prints a warning on standard error, also if no progress is shown."""
        if self.writes:
            print_message(f"warning: {message}")

    def event(
        self, state: TrainingState, kind: str, name: str, message: str, step: int | None = None
    ) -> None:
        """Writes and shows an event.

        Args:
            state: the training state.
            kind: ``start``, ``alarm``, ``remedy``, ``restart``, ``selection``, ``warning`` or ``stop``.
            name: name of the alarm, remedy or cause.
            message: one line.
            step: step of the event; the current step by default.
        """
        step = state.step if step is None else step
        if self.writes:
            epoch = round(step / state.steps_per_epoch, 4)
            line = {
                "step": step,
                "epoch": epoch,
                "minutes": state.minutes,
                "kind": kind,
                "name": name,
                "message": message,
            }
            self.run.add_event(line)
            self._log(line)
        self.reporter.message(f"{kind}: {name}: {message}")

    def classifier(
        self, finished: Classifier, train: ImageSet, state: TrainingState, checkpoint: str, select: str
    ) -> None:
        """Saves a finished classifier with statistics of its training images, metadata, and the chains beside it.

        Args:
            finished: the classifier; its ``statistics`` and ``about`` are set.
            train: training images.
            state: the training state.
            checkpoint: ``best`` or ``last``.
            select: criterion of selection.
        """
        buffer = state.method_state.buffer
        # All processes have a part of the chains.
        chains = None if buffer is None else buffer.state_dict()
        if not self.writes:
            return
        self._pca = self._pca or fit_pca(train)
        attach(finished, train, self._pca)
        finished.about = {
            "recipe": self.recipe, "data": train.name, "method": self.config.method.name,
            "checkpoint": checkpoint, "step": state.step, "epoch": state.epoch, "select": select,
        }  # fmt: skip
        if self.config.method.uses_attack and self.config.method.inner_attack:
            finished.about["attack_steps"] = self.config.attack.steps
        if self.config.method.uses_sampler:
            finished.about["chain"] = self.config.sampler.model_dump(
                include={"name", "energy", "step_size", "noise_std", "clamp"}, exclude_none=True
            )
        path = self.run.best_classifier if checkpoint == "best" else self.run.last_classifier
        finished.save(path)
        if chains is not None:
            weights = finished.weights_digest()
            save_chains(path.with_name(CHAINS_FILE), chains, train.class_names, weights)

    def checkpoint(self, state: TrainingState) -> None:
        """Saves the training state, called by all processes; some earlier states are stored too, for rollbacks."""
        self.saved_at = time.monotonic()
        # All processes have a part of it.
        content = state.state_dict()
        if not self.writes:
            return
        save_state(self.run.state_file, content)
        self.store_copy(state)

    def store_copy(self, state: TrainingState) -> None:
        """Stores the saved state as an earlier one, for rollbacks, and deletes those that no rollback needs."""
        if not self.writes:
            return
        with replacing(self.run.earlier_state(state.step)) as temporary:
            try:
                # A hard link is safe: the state file is always replaced, never modified.
                temporary.hardlink_to(self.run.state_file)
            except OSError:
                # Some network and removable disks have no hard links.
                shutil.copyfile(self.run.state_file, temporary)
        self._delete_old_states(state)

    def _delete_old_states(self, state: TrainingState) -> None:
        """Deletes the stored states that no rollback needs.

        A divergence needs the newest two. A ladder with ``rollback`` for another alarm also needs those at the ends of
        epochs within the monitors' horizon, the newest one before the horizon, and, whatever their age, those of the
        evaluations that may be the onset of an alarm. States after the current step are deleted: a rollback has undone
        their steps.
        """
        files = self.run.earlier_states()
        steps = sorted(step for step in files if step <= state.step)
        needed = set(steps[-NEWEST_STATES:])
        if horizon := state.watch.horizon:
            start = state.step - horizon
            needed |= {step for step in steps if step > start and step % state.steps_per_epoch == 0}
            needed |= {*[step for step in steps if step <= start][-1:], *state.watch.onsets}
        for step in files.keys() - needed:
            discard(files[step])

    def status(self, state: TrainingState, status: str) -> None:
        """Writes the status and the cost so far.

        Args:
            state: the training state.
            status: ``running``, ``interrupted``, ``stopped``, ``failed`` or ``finished``.
        """
        if self.writes:
            self.run.write_status(
                status=status,
                step=state.step,
                epochs=state.epoch,
                selected=bool(state.best),
                minutes=state.minutes,
                seconds_per_step=60 * state.minutes / max(1, state.step),
                peak_memory_mb=_peak_memory_mb(),
                memory_format=self.memory_format,
                convolutions=self.convolutions,
                precision=self.config.training.precision,
                compile=self.config.training.compile,
            )


def _peak_memory_mb() -> float | None:
    """Returns the peak resident memory of this process in MiB; ``None`` on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
