"""``trilemma generate``: samples images from a classifier and compares them with their start images."""

from __future__ import annotations

from typing import Annotated, Any

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Data,
    Device,
    Devices,
    Json,
    Out,
    Quiet,
    Seed,
    choose_device,
    completed_by,
    decimal,
    option,
    output_folder,
    percent,
    print_json,
    print_progress,
    print_table,
    print_text,
    show_progress_bar,
)
from trilemma.cli.model import with_classifier
from trilemma.cli.samples import (
    Draws,
    ExtractorName,
    SampleOptions,
    comparison_splits,
    independent_extractor,
    print_row,
    sample_row,
)
from trilemma.config.chains import ENERGIES, PRECISIONS, PRESETS, SCHEDULES, find_sampler_preset
from trilemma.config.registry import SAMPLERS
from trilemma.config.starts import parse_start
from trilemma.errors import ConfigError
from trilemma.printing import print_lines
from trilemma.units import choice

PRESET_HELP = "published settings, see `trilemma list samplers`; other options override them"
START_HELP = (
    "see `trilemma list starts`; option: local-pca:k=200; mixture: uniform:0.5,data:0.5  [default: class-pca]"
)
SAMPLER_HELP = "see `trilemma list samplers`  [default: the sampler used in training, else momentum]"
ENERGY_HELP = (
    f"{', '.join(ENERGIES[:-1])} or {ENERGIES[-1]}  [default: the energy used in training, else joint]"
)
STEPS_HELP = "sampler steps  [default: 100]"
STOP_HELP = "stop a sample at the energy of real images of its class"
STEP_SIZE_HELP = (
    "gradient factor, or length of a normalised step  [default: as in training, else the sampler's]"
)
NOISE_HELP = "standard deviation of the noise of a step  [default: as for --step-size]"
CLAMP_HELP = "largest magnitude of each entry of the gradient  [default: as for --step-size]"
SCHEDULE_HELP = f"{', '.join(SCHEDULES)}: how the %s falls over the steps  [default: constant]"
TEMPERATURE_HELP = "divides the logits in the energy ce  [default: 1]"
PRECISION_HELP = "of the network: fp32 (default), or bf16, faster where the hardware has it"
DIVERSITY_HELP = "weight of the repulsion between samples of a class, in units of the energy  [default: 0]"


@with_classifier
def generate(
    classifier: ClassifierSource,
    per_class: Annotated[int, option("--per-class N", "images per class", min=1)] = 10,
    preset: Annotated[
        str | None, option("--preset P", PRESET_HELP, autocompletion=completed_by(lambda: PRESETS))
    ] = None,
    start: Annotated[str | None, option("--start S", START_HELP)] = None,
    sampler: Annotated[str | None, option("--sampler S", SAMPLER_HELP)] = None,
    energy: Annotated[str | None, option("--energy E", ENERGY_HELP)] = None,
    steps: Annotated[int | None, option("--steps N", STEPS_HELP, min=0)] = None,
    stop: Annotated[bool | None, option("--stop/--no-stop", STOP_HELP)] = None,
    step_size: Annotated[float | None, option("--step-size S", STEP_SIZE_HELP, parser=decimal)] = None,
    noise_std: Annotated[float | None, option("--noise-std S", NOISE_HELP, parser=decimal)] = None,
    clamp: Annotated[float | None, option("--clamp C", CLAMP_HELP, parser=decimal)] = None,
    step_schedule: Annotated[str | None, option("--step-schedule S", SCHEDULE_HELP % "step size")] = None,
    noise_schedule: Annotated[str | None, option("--noise-schedule S", SCHEDULE_HELP % "noise")] = None,
    temperature: Annotated[float | None, option("--temperature T", TEMPERATURE_HELP, parser=decimal)] = None,
    diversity: Annotated[float | None, option("--diversity W", DIVERSITY_HELP, parser=decimal)] = None,
    precision: Annotated[str | None, option("--precision P", PRECISION_HELP)] = None,
    namer: Annotated[
        str | None, option("--namer RUN_OR_FILE", "independent classifier that labels the samples")
    ] = None,
    extractor: ExtractorName = None,
    draws: Draws = None,
    data: Data = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = None,
    devices: Devices = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Generates images of every class, and a labelled grid.

    Prints the same metrics for samples, their start images and real test images: the share that the classifier of
    --namer assigns to the requested class, the distance to the nearest training image, and with --extractor the
    distances between the sets. Compare samples with their starts: class-informed starts resemble their class
    before any step. With --stop, prints the steps and forward passes that stopping saved.

    \b
    Examples:
      trilemma generate runs/digits-eb-jdat --start uniform --steps 300
      trilemma generate runs/digits-eb-jdat --per-class 20 --namer runs/digits-standard
      trilemma generate runs/digits-eb-jdat --preset weat --steps 200 --stop
      trilemma generate model.safetensors --preset der --data cifar10
    """
    optional = {
        "step_size": step_size, "noise_std": noise_std, "clamp": clamp, "step_schedule": step_schedule,
        "noise_schedule": noise_schedule, "temperature": temperature, "diversity": diversity,
        "precision": precision,
    }  # fmt: skip
    settings: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
    _check_names(preset, start, sampler, energy, settings)
    classifier.check()
    run = classifier.run
    naming = None if namer is None else ClassifierSource(namer)
    if naming is not None:
        naming.check()
    if extractor is not None and run is None:
        raise ConfigError(
            f"--extractor {extractor}: {classifier} is not a run, so there are no training images to compare with; "
            "generate first, then use `trilemma evaluate --samples`"
        )
    if draws is not None and extractor is None:
        raise ConfigError(f"--draws {draws}: requires --extractor, the network whose features are compared")
    folder = output_folder(out, run, "samples")
    # Training writes the chains beside the classifier.
    chains = None if classifier.path is None else classifier.classifier_file()
    from trilemma.evaluation.protocols.generation import sample_set
    from trilemma.evaluation.samples import generate as generate_images
    from trilemma.evaluation.samples import stopping_text

    clf = classifier.open(choose_device(device))
    naming_classifier = None if naming is None else naming.open(choose_device(device))
    feature_extractor = None if extractor is None else independent_extractor(extractor, run, device)
    print_progress(f"generating {per_class} images per class from {classifier}", quiet)
    generated = generate_images(
        clf, per_class, start, sampler, energy, steps, seed, folder, naming_classifier, comparison_splits(data, run),
        preset=preset, stop=stop, chains=chains, progress=show_progress_bar(quiet), devices=devices,
        **settings,
    )  # fmt: skip
    record, grid = generated.record, generated.grid
    row = None
    if feature_extractor is not None:
        options_of_row = SampleOptions(None, extractor, draws=draws)
        row = sample_row(run, sample_set(generated), feature_extractor, options_of_row, data, seed, quiet)
    if as_json:
        grid_text = None if grid is None else str(grid)
        print_json({**record, "grid": grid_text} | ({} if row is None else {"generation": row}))
        return
    print_table(sample_metrics(record))
    if row is not None:
        print_row(row)
    if record["stopping"] is not None:
        print_text(stopping_text(record))
    if grid is not None:
        print_lines(f"grid: {grid}", f"images: {folder / record['name']}")


def _check_names(
    preset: str | None, start: str | None, sampler: str | None, energy: str | None, settings: dict[str, Any]
) -> None:
    """Checks names without importing torch.

    Raises:
        UnknownNameError: unknown preset or sampler.
        ConfigError: unknown energy, start or schedule, or a wrong mixture of starts.
    """
    if preset is not None:
        find_sampler_preset(preset)
    if start is not None:
        parse_start(start)
    if sampler is not None:
        SAMPLERS.row(sampler)
    if energy is not None:
        choice("generate", "energy", energy, ENERGIES)
    if "precision" in settings:
        choice("generate", "precision", settings["precision"], PRECISIONS)
    for name in ("step_schedule", "noise_schedule"):
        if name in settings:
            choice("generate", name, settings[name], [*SCHEDULES])


def sample_metrics(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one table row each for start, sample and real images."""
    return [
        {
            "images": name,
            "count": metrics["count"],
            "named as their class": percent(metrics["named"]),
            "distance to nearest": metrics["distance"],
        }
        for name, metrics in record["figures"].items()
    ]
