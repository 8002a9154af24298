"""The training loop: steps, evaluations, checkpoints, alarms and their remedies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trilemma import noise, shares
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import running_statistics, running_statistics_kept
from trilemma.classifier.memory_format import (
    MIN_CHANNELS,
    narrow_convolution,
    preferred_memory_format,
    set_memory_format,
)
from trilemma.classifier.winograd import WinogradConvolutions
from trilemma.config.config import Config
from trilemma.config.recipe import with_options
from trilemma.data.batch import Batch
from trilemma.data.image_set import Splits
from trilemma.errors import CheckpointError
from trilemma.files import CLASSIFIER
from trilemma.methods.base import ForwardResult, Points, Step, check_step
from trilemma.methods.creation import create_from_config
from trilemma.methods.inner import fresh_seeds
from trilemma.monitors.monitor import Alarm, Rollback, ScaleRate, SetOption
from trilemma.monitors.readings import Readings, read_gradients, read_step
from trilemma.monitors.remedies import remedies
from trilemma.training import build
from trilemma.training.checkpoint import SoundState
from trilemma.training.finish import finished_classifier, is_finite
from trilemma.training.interrupt import StopRequest
from trilemma.training.record import Record
from trilemma.training.rollback import fail, roll_back
from trilemma.training.schedule import rate
from trilemma.training.selection import (
    HeldOut,
    at_chance,
    criterion,
    held_out_accuracies,
    passed_over,
    score,
)
from trilemma.training.start import load_initial_weights, provenance
from trilemma.training.state import TrainingState

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# If the loss of a method has no forward pass of clean images, one is run every this many steps, for monitoring.
CLEAN_EVERY = 10


class Loop:
    """One training run, in one of its processes.

    Args:
        config: configuration of the run.
        record: writes the run folder.
        data: the splits; ``test`` is never used.
        fabric: device and precision.
        stop: set by a signal.
        start: classifier with the initial weights; random initialisation by default. Has no effect on a resumed run.
    """

    def __init__(
        self,
        config: Config,
        record: Record,
        data: Splits,
        fabric: Fabric,
        stop: StopRequest,
        start: Classifier | None = None,
    ) -> None:
        self.config, self.record, self.data, self.fabric, self.stop = config, record, data, fabric, stop
        # The configuration before any remedy.
        self.initial_config = config
        training = config.training
        torch.manual_seed(training.seed)
        self.clf = build.build_classifier(config, data.train, start)
        replaced = None if start is None else load_initial_weights(self.clf, start, config)
        self.share = shares.current()
        if training.sync_bn and self.share.count > 1:
            self.clf.network = build.synchronised(self.clf.network, config)
        self.clf.to(fabric.device)
        if training.channels_last:
            self._set_memory_format()
        self.convolutions = build.build_convolutions(config, self.clf.network)
        if isinstance(self.convolutions, WinogradConvolutions):
            record.convolutions = "winograd"
        if training.compile:
            self.clf.network.compile()
        self.loader = build.build_loader(
            config, data.training, fabric.device, self.share.rank, self.share.count
        )
        self.method = create_from_config(config)
        # The same in all processes: each draws the random numbers of the whole batch.
        seed = training.seed * 1000
        self.state = TrainingState(config, self.clf, self.method, data.train, self.loader, seed)
        self.readings = Readings()
        self.criterion = criterion(config, self.method)
        self.total_steps = training.epochs * self.loader.steps_per_epoch
        # The images of the last step, for loggers.
        self.points: Points | None = None
        self.clf.train()
        if start is not None:
            text = f"of {training.start}{provenance(start)}"
            record.event(self.state, "start", "weights", f"{text}; {replaced}" if replaced else text)

    def _set_memory_format(self) -> None:
        """Converts the weights to channels-last, except on a CPU where that is slower or unsafe for the network."""
        device = self.fabric.device
        memory_format = preferred_memory_format(self.clf.network, device)
        set_memory_format(self.clf, memory_format)
        if memory_format is torch.channels_last:
            self.record.memory_format = "channels-last"
        elif narrow_layer := narrow_convolution(self.clf.network):
            self.record.reporter.message(
                f"memory format: contiguous instead of channels-last, which is unsafe on a CPU for {narrow_layer} "
                f"(fewer than {MIN_CHANNELS} input channels)"
            )

    def resume(self, saved: SoundState) -> None:
        """Restores a saved state and removes the metric lines of later steps, which will be run again."""
        self.state.load_state_dict(saved.state, saved.path)
        self._apply_options()
        lost = self.record.run.lost_logs() if self.record.writes else []
        lost += self._forget_lost_best()
        self.record.drop_later_metrics(self.state)
        if saved.damaged:
            # The state that is found first by the next resume.
            self.record.checkpoint(self.state)
        # A killed process may have written the state without its copy for rollbacks, or left copies of undone steps.
        self.record.store_copy(self.state)
        text = f"from the checkpoint of step {self.state.step}"
        if saved.damaged:
            self.record.warn(f"{saved.damaged[0]}; going back to {saved.path.name}")
            text += ", the newest sound one"
        if changes := ", ".join(self.record.run.environment_changes()):
            self.record.warn(
                f"{self.record.run.path}: resumed with {changes}: the bits may differ from an uninterrupted run's"
            )
            text += f", with {changes}"
        text += "".join(f"; {log}" for log in lost)
        # First: the logs of a run that goes on are longer than recorded.
        self.record.status(self.state, "running")
        self.record.event(self.state, "restart", "resume", text)

    def _forget_lost_best(self) -> list[str]:
        """Forgets the score of the best checkpoint if its classifier is lost, so that a later one is selected.

        Returns:
            What is lost, as clauses.
        """
        if not self.state.best:
            return []
        try:
            CLASSIFIER.read(self.record.run.best_classifier)
        except CheckpointError as error:
            self.state.best, self.state.best_step = [], None
            self.record.warn(f"{error}; the best classifier is selected among later ones")
            return ["the best classifier was lost"]
        return []

    def restart(self) -> None:
        """Removes all metric lines and stored states: the run is trained again from its initial weights."""
        self.record.drop_all_metrics()
        self.record.checkpoint(self.state)
        self.record.status(self.state, "running")
        self.record.event(self.state, "restart", "from-step-0", "no sound training state was left")

    def train(self) -> str:
        """Trains to the end of the run.

        Returns:
            ``finished``, or ``stopped`` if the time limit was reached or a remedy ended the run early.

        Raises:
            KeyboardInterrupt: a signal was received; the state is saved.
            TrainingFailedError: an alarm after which no remedy is left.
        """
        training, state = self.config.training, self.state
        self.clock = time.monotonic()
        self.record.status(state, "running")
        if not self.record.run.state_file.is_file():
            self.record.checkpoint(state)
        batches = self._batches()
        # True at once if the run was stopped by the time limit and is resumed with the same limit.
        out_of_time = state.step > 0 and self._out_of_time()
        while True:
            while not (out_of_time or state.ended or state.step >= self.total_steps):
                self._one_step(next(batches))
                epochs, step_in_epoch = divmod(state.step, self.loader.steps_per_epoch)
                epoch_done = step_in_epoch == 0
                if not (epoch_done or state.step % training.log_every == 0 or self._must_stop_now()):
                    continue
                interrupted, out_of_time, checkpoint_due = self._any_process(
                    self.stop.name is not None, self._out_of_time(), self._checkpoint_is_due()
                )
                evaluate = epoch_done and epochs % training.evaluate_every == 0
                rolled_back = self._log() or (evaluate and self._evaluate())
                if rolled_back:
                    batches = self._batches()
                    continue
                if interrupted:
                    self._interrupt(self.stop.name or "another process was stopped")
                if checkpoint_due or (epoch_done and state.watch.horizon):
                    self._checkpoint()
            if state.evaluated_at == state.step or not self._evaluate():
                return self._finish()
            # The last evaluation caused a rollback.
            batches = self._batches()

    def _must_stop_now(self) -> bool:
        """Returns whether to stop between two logging steps; several processes stop at a logging step instead."""
        return self.share.count == 1 and (self.stop.name is not None or self._out_of_time())

    def _any_process(self, *flags: bool) -> tuple[bool, ...]:
        """Returns for each flag whether it is true in any process, so that all processes take the same branch."""
        return self.share.any(*flags, device=self.fabric.device)

    def _batches(self) -> Iterator[Batch]:
        """Yields batches without end, starting at the current step."""
        while True:
            epoch, first = divmod(self.state.step, self.loader.steps_per_epoch)
            yield from self.loader.epoch(epoch, first)

    def _one_step(self, batch: Batch) -> None:
        """Takes one training step and stores its readings."""
        training, state = self.config.training, self.state
        factor = rate(self.config.schedule, state.step, self.total_steps, self.loader.steps_per_epoch)
        for group in state.optimiser.param_groups:
            group["lr"] = training.lr * state.rate_factor * factor * group.get("factor", 1.0)
        if training.input_noise:
            batch = self._with_noise(batch)
        if state.step <= (self.config.attack.warmup_steps or 0):
            self.method = create_from_config(self.config, state.step)
        epoch = state.step // self.loader.steps_per_epoch + 1
        update = build.build_update(self.config.update, self.clf, epoch)
        with self.convolutions, self.fabric.autocast():
            points = self.method.points(self.clf, batch, state.method_state)
            step = update(
                lambda: check_step(
                    self.config.method.name, self.method.terms(self.clf, points, state.method_state)
                ),
                state.optimiser,
                self._average_gradients,
            )
        self._average_running_statistics()
        self.method.after_backward(points, state.method_state, step)
        if state.ema is not None:
            state.ema.update(self.clf)
        self.readings.add(self._read(step, points))
        self.points = points
        state.step += 1

    def _with_noise(self, batch: Batch) -> Batch:
        """Returns the batch with Gaussian noise on its images, as in JEM; values may leave [0, 1]."""
        seeds = fresh_seeds(self.state.method_state, batch.images)
        noisy = batch.images + self.config.training.input_noise * noise.normal(
            seeds, 0, batch.images.shape[1:]
        )
        return replace(batch, images=noisy)

    def _average_gradients(self) -> None:
        """Averages the gradients over the processes, after the backward pass.

        Done here and not by a module wrapper, because attacks and chains call ``autograd.grad`` on the plain network.
        """
        weights = (*self.clf.parameters(), *self.state.method_state.parameters())
        self._average([weight.grad for weight in weights if weight.grad is not None])

    def _average_running_statistics(self) -> None:
        """Averages BatchNorm's running statistics over the processes, each of which has seen a part of the batch.

        All processes then have the same network in eval mode, the one that a checkpoint holds.
        """
        modules = (self.clf, *self.state.method_state.modules.values())
        self._average([buffer for module in modules for buffer in running_statistics(module)])

    def _average(self, tensors: list[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, in one exchange."""
        if self.share.count == 1 or not tensors:
            return
        mean = self.share.mean(torch.cat([values.flatten() for values in tensors]))
        for values, part in zip(tensors, mean.split([values.numel() for values in tensors]), strict=True):
            values.copy_(part.view_as(values))

    def _mean_accuracy(self, accuracy: float | None) -> float | None:
        """Returns the mean of an accuracy over the processes, so that they all apply the same remedies."""
        if accuracy is None or self.share.count == 1:
            return accuracy
        return self.share.mean(torch.tensor(accuracy, device=self.fabric.device)).item()

    def _read(self, step: Step, points: Points) -> dict[str, Tensor]:
        """Returns the scalars of a step for logs and monitors.

        If the loss has no forward pass of clean images, one is run every 10th step.
        """
        if step.clean is None and step.adversarial is not None and self.state.step % CLEAN_EVERY == 0:
            loss_context = self.method.loss_context(self.clf)
            with torch.no_grad(), running_statistics_kept(self.clf), loss_context, self.fabric.autocast():
                step = replace(step, clean=ForwardResult(points.clean, self.clf.logits(points.clean)))
        return {
            **read_step(step, points.labels),
            **(read_gradients(points) if self.config.monitors.overfitting else {}),
            **{f"terms/{name}": value for name, value in step.metrics.items()},
        }

    def _log(self) -> bool:
        """Passes the collected readings to the monitors and writes a metric line, unless a rollback happens.

        Returns:
            Whether the run was rolled back.
        """
        readings = self.readings.drain(self.share.mean)
        if not readings:
            return False
        state = self.state
        first = state.step - len(readings) + 1
        for step, reading in enumerate(readings, first):
            for alarm in state.watch.read(reading, step):
                if self._handle_alarm(alarm):
                    return True
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        state.minutes += seconds / 60
        self.record.steps(state, readings, seconds, self.total_steps)
        return False

    def _handle_alarm(self, alarm: Alarm) -> bool:
        """Records an alarm and applies its remedies.

        Returns:
            Whether the run was rolled back.

        Raises:
            TrainingFailedError: no remedy is left.
        """
        state = self.state
        self.record.event(state, "alarm", alarm.name, alarm.message, alarm.step)
        due_remedies = remedies(alarm, self.config, state.sounded.get(alarm.name, 0), state.rollbacks)
        state.sounded[alarm.name] = state.sounded.get(alarm.name, 0) + 1
        rolled_back, accuracy = False, state.watch.gap.last
        for remedy in due_remedies:
            if isinstance(remedy, Rollback):
                state.minutes += (time.monotonic() - self.clock) / 60
                # The first process must have written the stored states before any process reads them.
                self.share.wait(self.fabric.device)
                roll_back(state, self.record, alarm)
                # All processes must have read the checkpoint before the first one overwrites it.
                self.share.wait(self.fabric.device)
                self.clock = time.monotonic()
                rolled_back = True
            elif isinstance(remedy, ScaleRate):
                state.rate_factor *= remedy.factor
                text = f"learning rate x {remedy.factor:g}, x {state.rate_factor:.3g} in all"
                self.record.event(state, "remedy", "scale-rate", text)
            elif isinstance(remedy, SetOption):
                state.options[remedy.key] = remedy.value
                self.record.event(state, "remedy", remedy.name, f"{remedy.key} = {remedy.value}")
            elif remedy.failed:
                fail(state, self.record, alarm)
            # A run at its end does not end early.
            elif state.step < self.total_steps:
                state.ended = True
                text = f"{alarm.name}: ended early at step {state.step}, the best checkpoint is kept"
                self.record.event(state, "stop", "early-stop", text)
        if due_remedies:
            self._apply_options()
            state.watch.give_time(state.step, rolled_back, accuracy)
            # Saved at once, so that a resumed run has the changes of the remedies.
            self.record.checkpoint(state)
        if rolled_back:
            # Last: a process that is killed before resumes from the restored state, and removes them then.
            self.record.drop_later_metrics(state, undone=True)
        return rolled_back

    def _apply_options(self) -> None:
        """Creates the method again, with the options that remedies have set; the method's state is not reset."""
        self.config = with_options(self.initial_config, self.state.options, str(self.record.run.path))
        self.method = create_from_config(self.config)
        self.record.config = self.config
        self.state.watch.update_config(self.config)

    def _checkpoint(self) -> None:
        """Writes a regular checkpoint."""
        self.state.restored = None
        self.record.checkpoint(self.state)
        self.record.status(self.state, "running")

    def _evaluate(self) -> bool:
        """Evaluates the finished classifier on held-out images, and saves it if it is the best so far.

        Returns:
            Whether the run was rolled back.

        Raises:
            TrainingFailedError: an alarm after which no remedy is left.
        """
        state, training = self.state, self.config.training
        finished = finished_classifier(self.clf, state.ema, self.data.train, training.reestimate_bn)
        (not_finite,) = self._any_process(not is_finite(finished))
        if not_finite:
            alarm = Alarm("divergence", "the weights are not finite", state.step)
            return self._handle_alarm(alarm) or fail(state, self.record, alarm)
        state.evaluated_at = state.step
        single_step = self.config.method.single_step and self.config.monitors.overfitting
        accuracies = held_out_accuracies(
            finished, self.data.held_out, training.held_out_images, single_step=single_step
        )
        given = score(accuracies, self.criterion)
        # Of the accuracies of the first process: on accelerators, those of the others may differ by rounding.
        better = self.criterion == "last" or given > state.best
        (selected,) = self._any_process(better and self.share.rank == 0)
        fgsm, pgd10 = self._monitored_accuracies(accuracies)
        if self.criterion != "last" and passed_over(given, state.best):
            self._report_selection(given, state.best)
        if selected:
            state.best, state.best_step = given, state.step
            # Before the line that says so: without that file, the line would make the run unreadable.
            self.record.classifier(finished, self.data.train, state, "best", self.criterion)
        self.record.held_out(state, accuracies, fgsm, pgd10, selected)
        if self.points is not None:
            self.record.images(state, self.points)
        for alarm in state.watch.read_evaluation(
            fgsm, pgd10, state.step, accuracies.images, accuracies.chance
        ):
            if self._handle_alarm(alarm):
                return True
        self._checkpoint()
        return False

    def _monitored_accuracies(self, finished: HeldOut) -> tuple[float | None, float | None]:
        """Returns held-out FGSM and PGD-10 accuracy of the training weights, means over the processes.

        The monitors read these weights and not their average, which follows a collapse only after many steps: training
        continues from these weights, and a rollback has to restore them while they are healthy.

        Args:
            finished: the accuracies of the finished classifier, which are also those of the training weights if the
                run has no average.
        """
        training, accuracies = self.config.training, finished
        if not self.config.monitors.overfitting or finished.pgd10 is None:
            return None, None
        if self.state.ema is not None:
            raw = finished_classifier(self.clf, None, self.data.train, training.reestimate_bn)
            accuracies = held_out_accuracies(
                raw, self.data.held_out, training.held_out_images, single_step=finished.fgsm is not None
            )
        return self._mean_accuracy(accuracies.fgsm), self._mean_accuracy(accuracies.pgd10)

    def _report_selection(self, given: list[float], best: list[float]) -> None:
        """Records that chance decided between this checkpoint and the best one, against their accuracies."""
        name = "clean" if self.criterion == "clean" else "PGD-10"
        this, best_one = (
            f"this checkpoint ({name} {given[1]:.1%})",
            f"the best one so far ({name} {best[1]:.1%})",
        )
        preferred, other = (this, best_one) if given[0] else (best_one, this)
        text = f"{preferred} is preferred over {other}, whose clean accuracy is not clearly above chance"
        self.record.event(self.state, "selection", "above-chance", text)

    def _out_of_time(self) -> bool:
        """Returns whether ``training.max_minutes`` is reached."""
        limit = self.config.training.max_minutes
        return limit is not None and self.state.minutes + (time.monotonic() - self.clock) / 60 >= limit

    def _checkpoint_is_due(self) -> bool:
        """Returns whether the last checkpoint is older than ``training.checkpoint_minutes``."""
        return time.monotonic() - self.record.saved_at > 60 * self.config.training.checkpoint_minutes

    def _interrupt(self, signal: str) -> None:
        """Saves the state and raises.

        Args:
            signal: name of the signal.

        Raises:
            KeyboardInterrupt: always.
        """
        self._checkpoint()
        self.record.event(self.state, "stop", "interrupted", f"{signal}: state saved")
        self.record.status(self.state, "interrupted")
        # The first process writes the state; the others wait for it.
        self.share.wait(self.fabric.device)
        raise KeyboardInterrupt(f"state saved at step {self.state.step}; continue with --resume")

    def _finish(self) -> str:
        """Saves the last classifier and the status; returns ``finished`` or ``stopped``."""
        state, training = self.state, self.config.training
        last = finished_classifier(self.clf, state.ema, self.data.train, training.reestimate_bn)
        self.record.classifier(last, self.data.train, state, "last", self.criterion)
        # Only the first process knows that its line is written.
        if not state.best[0] and self.record.writes:
            rows = [row for row in self.record.run.metrics() if row.get("selected")]
            # The lines of a damaged log are lost.
            if rows:
                self.record.event(state, "warning", "at-chance", at_chance(rows[-1]))
        status = "finished" if state.step >= self.total_steps else "stopped"
        if status == "stopped" and not state.ended:
            text = f"the limit of {training.max_minutes:g} minutes was reached"
            self.record.event(state, "stop", "max-minutes", text)
            self._checkpoint()
        self.record.status(state, status)
        self.share.wait(self.fabric.device)
        return status
