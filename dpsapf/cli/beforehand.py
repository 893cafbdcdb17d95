"""What can be known before the first job: `CHECKS` look at config, registries and this machine, and at nothing else.

A dry run makes all of them, and tells every mistake at once. Runs that nobody asks for are left out. What only a dataset's
images, a download or another node can tell is left to the stages.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpsapf.cli.nodes import has_gpu
from dpsapf.cli.rules import plan_files
from dpsapf.experiment.fields import READS, paths
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import AXES, method
from dpsapf.experiment.registries import DatasetEntry, ModelEntry, ProtocolEntry, load_registry
from dpsapf.experiment.runs import RunSpec, check_noise
from dpsapf.experiment.settings import Config, check_evolving
from dpsapf.experiment.stages import PlanPrivacy
from dpsapf.support.checked import replace
from dpsapf.support.download import by_hand
from dpsapf.support.errors import UserError, UserErrors

JUDGED = ("fidelity.json", "utility.json", "metrics.json")  # a run's files that come of evaluation


@dataclass(frozen=True)
class Start:
    """What is about to be started.

    Attributes:
        config: the whole experiment.
        layout: where its results lie, or will.
        local: whether jobs run on this machine.
        runs: those that are asked for.
        judged: whether their images are to be evaluated.
        datasets: entries that its runs use, or whose scores choose for them.
        models: likewise; none for images of other groups.
        protocol: the entry.
    """

    config: Config
    layout: Layout
    local: bool
    runs: list[RunSpec]
    judged: bool
    datasets: dict[str, DatasetEntry]
    models: dict[str, ModelEntry]
    protocol: ProtocolEntry

    @classmethod
    def of(cls, config: Config, layout: Layout, words: Sequence[str] = (), *, local: bool) -> "Start":
        """Look up what the runs use that a command line asks for, see `asked`."""
        runs, judged = asked(config, layout, words)
        own = [run for run in runs if run.id not in config.made_elsewhere]
        datasets, models = load_registry(config.datasets_file, DatasetEntry), load_registry(config.public_models_file, ModelEntry)
        return cls(
            config,
            layout,
            local,
            runs,
            judged,
            {name: datasets[name] for run in runs for name in filter(None, (run.dataset, run.scored_dataset))},
            {run.public_model: models[run.public_model] for run in own},
            load_registry(config.protocols_file, ProtocolEntry)[config.evaluation.protocol],
        )

    @property
    def own(self) -> list[RunSpec]:
        """The runs whose images this suite makes."""
        return [run for run in self.runs if run.id not in self.config.made_elsewhere]

    @property
    def unprepared(self) -> dict[str, DatasetEntry]:
        """Datasets whose images have still to be read."""
        made = {name for name in self.datasets if Path(self.layout.dataset(name, "dataset.json")).exists()}
        return {name: item for name, item in self.datasets.items() if name not in made}

    @property
    def unfinished(self) -> list[RunSpec]:
        """Runs of this suite that torch has still work for."""
        last = "metrics.json" if self.judged else "samples.npz"
        return [run for run in self.own if not Path(self.layout.run(run.id, last)).exists()]


def asked(config: Config, layout: Layout, words: Sequence[str]) -> tuple[list[RunSpec], bool]:
    """Find the runs of which a command line names files, and whether evaluation is among them; all runs if it names none.

    Args:
        config: whose runs they are.
        layout: where their files lie.
        words: of the command line.
    """
    named = {run.id: [word for word in words if word.startswith(layout.run(run.id, ""))] for run in config.runs}
    files = [Path(word).name for found in named.values() for word in found]
    if not files:
        return list(config.runs), True
    return [run for run in config.runs if named[run.id]], any(name in JUDGED for name in files)


Found = Iterator[UserError]


def check_beforehand(config: Config, layout: Layout, words: Sequence[str] = (), *, local: bool) -> None:
    """Make every check of `CHECKS`.

    Args:
        config: what is about to be started.
        layout: where its results lie, or will.
        words: of the command line, see `asked`.
        local: whether jobs run on this machine.

    Raises:
        UserErrors: a line for every mistake.
    """
    start = Start.of(config, layout, words, local=local)
    found = {str(error): error for check in CHECKS for error in check(start)}
    if found:
        raise UserErrors(list(found.values()))


def plan_options(start: Start, run: RunSpec) -> PlanPrivacy:
    """Return what rule ``plan_privacy`` gives its stage."""
    config, layout = start.config, start.layout
    files = {name: Path(path) for name, path in plan_files(layout, run, config.privacy.noise).items()}
    if config.saliency.clipping_norm != "auto" and not files.get("gradients", Path()).is_file():
        files.pop("gradients", None)  # not made yet, and a plan is possible or not whatever it says
    return PlanPrivacy(
        **{name: getattr(run, name) for name in ("public_model", "method", "seed", *AXES)},
        **dict(config.privacy),
        **files,
        saliency=config.saliency,
        evolution=config.evolution,
        out=Path(layout.run(run.id, "plan.json")),
    )


def _unlike(runs: list[RunSpec]) -> list[RunSpec]:
    """Return one of all runs whose plans differ in their seeds, or in what enters no accounting."""
    same = {"seed": 0, "learning_rate": None, "lora_rank": None, "optimizer": None}
    return list({replace(run, **same).id: run for run in runs}.values())


def _told(check: Callable[..., object], *values: object, where: str = "") -> Found:
    """Call a check of the suite; give the mistakes that it raises, each with the place of what it looked at."""
    try:
        check(*values)
    except UserErrors as error:
        yield from (UserError(f"{where}{each.key}", each.value, each.remedy) for each in error.errors)
    except UserError as error:
        yield UserError(f"{where}{error.key}", error.value, error.remedy)


def entries_fit_their_loaders(start: Start) -> Found:
    """A dataset's loader is known, reads the entry's keys, and there is a prompt for each of two or more classes."""
    from dpsapf.datasets.loaders import loader
    from dpsapf.datasets.prepare import check_classes

    for name, item in start.datasets.items():
        yield from _told(loader, item, where=f"{start.config.datasets_file}: {name}: ")
        yield from _told(check_classes, item, where=f"{start.config.datasets_file}: {name}: ")


def sources_are_there(start: Start) -> Found:
    """The images that will be read are there, or can be downloaded; so are the tables of their labels and users."""
    from dpsapf.datasets.loaders import LOADERS

    for name, item in start.unprepared.items():
        where, known = f"{start.config.datasets_file}: {name}", LOADERS.get(item.loader)
        if known is None or not known.files or (item.downloads and Path(item.source).exists()):
            continue
        if not item.downloads and not Path(item.source).exists():
            yield UserError(f"{where}: source", item.source, "does not exist: put the images there")
        for file in item.downloads:
            if file.target.exists() or Path(file.file).exists():
                continue
            if not file.urls:
                yield UserError(f"{where}: {file.file}", "not there", f"must be got by hand: {by_hand(file)}")
            elif file.token is not None and file.token not in os.environ:
                yield UserError(f"{where}: token", file.token, f"{file.file} needs an access token in this variable: set it")
        for key in ("labels", "users") if item.loader == "image-folder" else ():
            path = getattr(item, key)
            if path is not None and not Path(path).exists():
                yield UserError(f"{where}: {key}", path, "does not exist: put the table there, or leave the key out")


def images_of_others_are_there(start: Start) -> Found:
    """Images that another group made are there."""
    wanted = {run.id for run in start.runs}
    for run, _, images in (made for name, made in start.config.made_elsewhere.items() if name in wanted):
        taken_in = Path(start.layout.run(run.id, "samples.npz")).exists()
        if not taken_in and not Path(images.images).exists():
            yield UserError(f"external.{run.external}: images", images.images, "does not exist: put the images there")


def figures_can_show_the_others(start: Start) -> Found:
    """Figures have a look for each method of another group."""
    if len(start.config.external) > 1:
        from paper_figures.style import EXTERNAL

        if len(start.config.external) > len(EXTERNAL):
            remedy = f"figures tell {len(EXTERNAL)} methods of other groups apart: split the config"
            yield UserError("external", len(start.config.external), remedy)


def models_are_pinned_or_there(start: Start) -> Found:
    """A public model that is not prepared yet is a folder that its family knows, or pinned to a commit of the hub."""
    from dpsapf.public_models.prepare import check_source

    for name, model in start.models.items():
        if not Path(start.layout.model(name, "model.json")).exists():
            yield from _told(check_source, name, model, where=f"{start.config.public_models_file}: ")


def every_class_gets_an_image(start: Start) -> Found:
    """There is a synthetic image of each class at least, and images can evolve as the settings say."""
    sampling = start.config.sampling
    for run in start.own:
        classes = len(start.datasets[run.dataset].classes)
        if method(run.method).evolves:
            yield from _told(check_evolving, start.config.evolution, sampling, run.dataset, classes, where="evolution: ")
        elif sampling.count < classes:
            yield UserError("sampling.count", sampling.count, f"{run.dataset} has {classes} classes: draw an image of each")


def the_protocol_can_judge(start: Start) -> Found:
    """The protocol's network is known, it has classifiers for images of each size, and enough images, held out and synthetic."""
    from dpsapf.datasets.held_out import check_held_out
    from dpsapf.evaluation.weights import check_network

    if not start.judged:
        return
    config, where = start.config, f"{start.config.protocols_file}: {start.config.evaluation.protocol}: "
    yield from _told(check_network, start.protocol, where=where)
    least = start.protocol.fewest_synthetic
    if config.sampling.count < least:
        yield UserError("sampling.count", config.sampling.count, f"{config.evaluation.protocol} needs at least {least}")
    for name in {run.dataset: None for run in start.runs}:
        item = start.datasets[name]
        yield from _told(start.protocol.recipe, item.resolution, where=where)
        place = f"{config.datasets_file}: {name}"
        yield from _told(check_held_out, place, item, config.evaluation.protocol)


def users_are_named(start: Start) -> Found:
    """Where users are protected, each dataset's entry says who they are."""
    if start.config.privacy.unit == "user":
        for name in {run.dataset: None for run in start.own}:
            if start.datasets[name].users is None:
                remedy = f"{name} names no users: add a CSV of them to its entry (key users), or use image"
                yield UserError("privacy.unit", "user", remedy)


def targets_can_be_told(start: Start) -> Found:
    """A target epsilon is above the accountants' resolution, a run has the axes of its method, and may have its noise."""
    from dpsapf.privacy.plan import check_axes

    for run in start.own:
        yield from _told(check_axes, run, where="studies: ")
        yield from _told(check_noise, run, start.config.privacy.noise, where="studies: ")


def earlier_ledgers_are_there(start: Start) -> Found:
    """Records of earlier releases are there, and are what they should be."""
    from dpsapf.privacy.compose import read_spent

    for path in start.config.privacy.prior:
        if not path.is_file():
            yield UserError("privacy.prior", str(path), "is no file: name the ledger.json or spend.json of the earlier release")
        else:
            yield from _told(read_spent, path, where="privacy.prior: ")


def plans_can_be_made(start: Start) -> Found:
    """Where N and the model's matrices are known already, each run's target holds what it releases, and delta is below 1/N."""
    from dpsapf.saliency.plan import check_plan

    unnamed = start.config.privacy.unit == "user"
    for run in _unlike([run for run in start.own if not (unnamed and start.datasets[run.dataset].users is None)]):
        options = plan_options(start, run)
        if all(path.is_file() for files in paths(options, READS).values() for path in files):
            yield from _told(check_plan, options, where=f"{run.dataset}, {run.method}: ")


def this_machine_has_the_device(start: Start) -> Found:
    """Jobs that will run here find the GPU that they ask for."""
    if start.local and start.config.compute.device == "cuda" and start.unfinished and not has_gpu():
        remedy = "no GPU answers on this machine: take cpu, load its driver, or use a cluster (--profile slurm)"
        yield UserError("compute.device", "cuda", remedy)


def optimizers_are_installed(start: Start) -> Found:
    """The library of 8-bit moments is there, where a run trains with them."""
    chosen = {run.optimizer or start.config.finetune.optimizer for run in start.unfinished if method(run.method).trains}
    if "adamw-8bit" in chosen and importlib.util.find_spec("bitsandbytes") is None:
        yield UserError("optimizer", "adamw-8bit", "needs bitsandbytes: pip install -e '.[8bit]', or use adamw")


CHECKS: tuple[Callable[[Start], Found], ...] = (
    entries_fit_their_loaders,
    sources_are_there,
    images_of_others_are_there,
    figures_can_show_the_others,
    models_are_pinned_or_there,
    every_class_gets_an_image,
    the_protocol_can_judge,
    users_are_named,
    targets_can_be_told,
    earlier_ledgers_are_there,
    plans_can_be_made,
    this_machine_has_the_device,
    optimizers_are_installed,
)
