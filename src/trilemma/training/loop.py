"""The loop: points, terms, backward, update, average, watch, save. Only it carries out remedies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trilemma import noise
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import running_statistics_kept
from trilemma.classifier.memory_format import MIN_CHANNELS, narrow_convolution
from trilemma.config.config import Config
from trilemma.config.recipe import with_options
from trilemma.data.batch import Batch
from trilemma.data.image_set import Splits
from trilemma.methods.base import ForwardResult, Points, Step
from trilemma.methods.creation import create_from_config
from trilemma.monitors.monitor import Alarm, Rollback, ScaleRate, SetOption
from trilemma.monitors.readings import Readings, read_gradients, read_step
from trilemma.monitors.remedies import remedies
from trilemma.training import build
from trilemma.training.checkpoint import load_state
from trilemma.training.finish import finished_classifier, is_finite
from trilemma.training.going_back import fail, roll_back
from trilemma.training.interrupt import StopRequest
from trilemma.training.record import Record
from trilemma.training.schedule import rate
from trilemma.training.selection import criterion, held_out_accuracies
from trilemma.training.start import begin_with, described
from trilemma.training.state import TrainingState

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Methods that never forward clean images have their clean logits taken every this many steps.
CLEAN_EVERY = 10


class Loop:
    """One training run, in one process of possibly several.

    Args:
        config: the whole run.
        record: where it is written.
        data: the splits; ``test`` is never touched.
        fabric: device, precision, and gradient averaging.
        stop: set when a signal asked to end.
        start: whose weights to begin with, where no state is resumed; fresh ones by default.
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
        self.first_config = config  # before any remedy
        training = config.training
        torch.manual_seed(training.seed)
        self.clf = build.build_classifier(config, data.train)
        if start is not None:
            begin_with(self.clf, start, str(training.start))
        self.clf.to(fabric.device)
        unsafe = narrow_convolution(self.clf.network) if fabric.device.type == "cpu" else None
        if training.channels_last and unsafe is None:
            self.clf.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            record.memory_format = "channels-last"
        elif training.channels_last:
            record.reporter.message(
                f"memory format: contiguous, not channels-last, which is unsafe on a CPU for {unsafe} (fewer than "
                f"{MIN_CHANNELS} input channels)"
            )
        if training.compile:
            self.clf.network.compile()
        self.loader = build.build_loader(
            config, data.train, fabric.device, fabric.global_rank, fabric.world_size
        )
        self.method = create_from_config(config)
        seed = training.seed * 1000 + fabric.global_rank
        self.state = TrainingState(config, self.clf, self.method, data.train, self.loader, seed)
        self.readings = Readings()
        self.criterion = criterion(config, self.method)
        self.total_steps = training.epochs * self.loader.steps_per_epoch
        self.returned_to: int | None = None  # by the last rollback, with no regular checkpoint since
        self.clf.train()
        if start is not None:
            record.event(self.state, "start", "weights", f"of {training.start}{described(start)}")

    def resume(self) -> None:
        """Takes up the saved state; metric lines beyond it are cut, since those steps run again."""
        self.state.load_state_dict(load_state(self.record.run.state_file))
        self._take_options()
        self.record.cut_metrics(self.state)
        self.record.event(self.state, "restart", "resume", f"from the checkpoint of step {self.state.step}")

    def train(self) -> str:
        """Runs to the end; returns ``finished`` or, at the time limit, ``stopped``.

        Raises:
            KeyboardInterrupt: a signal asked to end; the state is saved.
            TrainingFailedError: diverged once more after every remedy.
        """
        training, state = self.config.training, self.state
        self.clock = time.monotonic()
        self.record.status(state, "running")
        if not self.record.run.state_file.is_file():
            self.record.checkpoint(state)
        batches = self._batches()
        late = state.step > 0 and self._out_of_time()  # stopped by the clock, resumed with the same limit
        while True:
            while not (late or state.ended or state.step >= self.total_steps):
                self._one_step(next(batches))
                epochs, within = divmod(state.step, self.loader.steps_per_epoch)
                if not (within == 0 or state.step % training.log_every == 0 or self._ends_now()):
                    continue
                stops, late, due = self._in_any(
                    self.stop.name is not None, self._out_of_time(), self._is_due()
                )
                evaluates = within == 0 and epochs % training.evaluate_every == 0
                if self._log() or (evaluates and self._evaluate()):
                    batches = self._batches()
                    continue
                if stops:
                    self._interrupt(self.stop.name or "another process was stopped")
                if due or (within == 0 and state.watch.horizon):
                    self._checkpoint()
            if state.evaluated_at == state.step or not self._evaluate():
                return self._finish()
            batches = self._batches()  # only the last evaluation showed that the run had to go back

    def _ends_now(self) -> bool:
        """Whether to leave between two logging steps; several processes agree at the next one instead."""
        return self.fabric.world_size == 1 and (self.stop.name is not None or self._out_of_time())

    def _in_any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true where some process has it: all must go the same way, or they wait for each other."""
        if self.fabric.world_size == 1:
            return flags
        reduced = self.fabric.all_reduce(
            torch.tensor(flags, device=self.fabric.device).int(), reduce_op="max"
        )
        assert isinstance(reduced, Tensor)
        return tuple(flag > 0 for flag in reduced.tolist())

    def _batches(self) -> Iterator[Batch]:
        """Batches from the current position on."""
        while True:
            epoch, first = divmod(self.state.step, self.loader.steps_per_epoch)
            yield from self.loader.epoch(epoch, first)

    def _one_step(self, batch: Batch) -> None:
        training, state = self.config.training, self.state
        factor = rate(self.config.schedule, state.step, self.total_steps, self.loader.steps_per_epoch)
        for group in state.optimiser.param_groups:
            group["lr"] = training.lr * state.rate_factor * factor
        if training.input_noise:
            batch = self._with_noise(batch)
        epoch = state.step // self.loader.steps_per_epoch + 1
        update = build.build_update(self.config.update, self.clf, epoch)
        with self.fabric.autocast():
            points = self.method.points(self.clf, batch, state.method_state)
            step = update(
                lambda: self.method.terms(self.clf, points, state.method_state),
                state.optimiser,
                self._average_gradients,
            )
        self.method.after_backward(points, state.method_state, step)
        if state.ema is not None:
            state.ema.update(self.clf)
        self.readings.add(self._read(step, points))
        state.step += 1

    def _with_noise(self, batch: Batch) -> Batch:
        """Gaussian noise on the training images, as JEM adds it; a value leaves [0, 1] by design."""
        seeds = noise.image_seeds(len(batch.images), self.state.method_state.generator, batch.images.device)
        noisy = batch.images + self.config.training.input_noise * noise.normal(
            seeds, 0, batch.images.shape[1:]
        )
        return replace(batch, images=noisy)

    def _average_gradients(self) -> None:
        """One mean over the processes after backward (walks need plain ``autograd.grad``, so no wrapper)."""
        if self.fabric.world_size > 1:
            weights = (*self.clf.parameters(), *self.state.method_state.parameters())
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            mean = self._mean(torch.cat([g.flatten() for g in gradients]))
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        mean = self.fabric.all_reduce(values, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean

    def _agreed(self, accuracy: float | None) -> float | None:
        """The same for all processes, whose remedies must agree."""
        return (
            None if accuracy is None else self._mean(torch.tensor(accuracy, device=self.fabric.device)).item()
        )

    def _read(self, step: Step, points: Points) -> dict[str, Tensor]:
        """The step's scalars; a method without a clean forward lends one every tenth step."""
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
        """Reads the collected scalars and writes a line, unless they make the run go back: then true."""
        readings = self.readings.drain(self._mean)
        if not readings:
            return False
        state = self.state
        first = state.step - len(readings) + 1
        for step, reading in enumerate(readings, first):
            for alarm in state.watch.read(reading, step):
                if self._alarm(alarm):
                    return True
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        state.minutes += seconds / 60
        self.record.steps(state, readings, seconds, self.total_steps)
        return False

    def _alarm(self, alarm: Alarm) -> bool:
        """Writes an alarm down and carries out what it asks for; whether the run has gone back."""
        state = self.state
        self.record.event(state, "alarm", alarm.name, alarm.message, alarm.step)
        asked = remedies(alarm, self.config, state.sounded.get(alarm.name, 0), state.rollbacks)
        state.sounded[alarm.name] = state.sounded.get(alarm.name, 0) + 1
        back = False
        for remedy in asked:
            if isinstance(remedy, Rollback):
                state.minutes += (time.monotonic() - self.clock) / 60
                self.returned_to = roll_back(state, self.record, alarm, self.returned_to)
                self.fabric.barrier()  # all have read the file before it is written anew
                self.clock = time.monotonic()
                back = True
            elif isinstance(remedy, ScaleRate):
                state.rate_factor *= remedy.factor
                text = f"learning rate x {remedy.factor:g}, x {state.rate_factor:.3g} in all"
                self.record.event(state, "remedy", "scale-rate", text)
            elif isinstance(remedy, SetOption):
                state.options[remedy.key] = remedy.value
                self.record.event(state, "remedy", remedy.name, f"{remedy.key} = {remedy.value}")
            elif remedy.failed:
                fail(state, self.record, alarm)
            else:
                state.ended = True
                text = f"{alarm.name}: ended early at step {state.step}, the best checkpoint is kept"
                self.record.event(state, "stop", "early-stop", text)
        if asked:
            self._take_options()
            if not back:
                state.watch.silence_after_remedy(state.step)
            self.record.checkpoint(state)  # a resumed run must not forget the remedy
        return back

    def _take_options(self) -> None:
        """The method anew, with the options that remedies have set; its state goes on."""
        self.config = with_options(self.first_config, self.state.options, str(self.record.run.path))
        self.method = create_from_config(self.config)
        self.record.config = self.config
        self.state.watch.update_config(self.config)

    def _checkpoint(self) -> None:
        self.returned_to = None
        self.record.checkpoint(self.state)
        self.record.status(self.state, "running")

    def _evaluate(self) -> bool:
        """Held-out accuracies of the finished classifier; writes the best so far. Whether the run has gone back."""
        state, training = self.state, self.config.training
        finished = finished_classifier(self.clf, state.ema, self.data.train, training.reestimate_bn)
        (sick,) = self._in_any(not is_finite(finished))
        if sick:
            alarm = Alarm("divergence", "the weights are not finite", state.step)
            return self._alarm(alarm) or fail(state, self.record, alarm)
        state.evaluated_at = state.step
        single_step = self.config.method.single_step and self.config.monitors.overfitting
        found = held_out_accuracies(
            finished, self.data.held_out, training.held_out_images, single_step=single_step
        )
        clean, robust = found.clean, found.pgd10
        score = [clean, robust or 0.0] if self.criterion == "clean" else [robust or 0.0, clean]
        selected = self.criterion == "last" or score > state.best
        self.record.held_out(state, found, selected)
        if selected:
            state.best = score
            self.record.classifier(finished, self.data.train, state, "best", self.criterion)
        for alarm in state.watch.read_evaluation(self._agreed(found.fgsm), self._agreed(found.pgd10), state.step):
            if self._alarm(alarm):
                return True
        self._checkpoint()
        return False

    def _out_of_time(self) -> bool:
        limit = self.config.training.max_minutes
        return limit is not None and self.state.minutes + (time.monotonic() - self.clock) / 60 >= limit

    def _is_due(self) -> bool:
        """Whether the last checkpoint is older than it may be."""
        return time.monotonic() - self.record.saved_at > 60 * self.config.training.checkpoint_minutes

    def _interrupt(self, signal: str) -> None:
        self._checkpoint()
        self.record.status(self.state, "interrupted")
        self.record.event(self.state, "stop", "interrupted", f"{signal}: state saved")
        self.fabric.barrier()  # nobody leaves before it is saved
        raise KeyboardInterrupt(f"state saved at step {self.state.step}; go on with --resume")

    def _finish(self) -> str:
        state, training = self.state, self.config.training
        last = finished_classifier(self.clf, state.ema, self.data.train, training.reestimate_bn)
        self.record.classifier(last, self.data.train, state, "last", self.criterion)
        done = "finished" if state.step >= self.total_steps else "stopped"
        if done == "stopped" and not state.ended:
            text = f"the limit of {training.max_minutes:g} minutes was reached"
            self.record.event(state, "stop", "max-minutes", text)
            self._checkpoint()
        self.record.status(state, done)
        self.fabric.barrier()
        return done
