"""What the launcher's commands read: one dataclass for each, filled from flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from grpojax.checks import require
from tools.tpu.slices import slice_of
from tools.tpu.texts import (
    require_carried,
    require_name,
    require_place,
    require_variables,
    require_version,
    require_workdir,
)

OnOff = tyro.conf.FlagCreatePairsOff[bool]
Name = tyro.conf.Positional[str]
Price = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """Says what a slice's name means, and the `grpojax plan` that fits a config to it."""

    slice: Name  # as in v5litepod-16, v5p-16, v6e-8, tpu7x-16
    config: str = "CONFIG.py"  # for the command that is printed
    runtime_version: str = ""  # image of the workers; by default that of the generation
    price_per_chip_hour: Price = None  # in any currency

    def __post_init__(self):
        slice_of(self.slice)
        require_version(self.runtime_version)
        require_carried("config", self.config)
        require_price(self.price_per_chip_hour)


@dataclass(frozen=True, kw_only=True)
class OnRecord:
    """A slice that `create` made."""

    name: Name  # of the slice
    state: Path = Path("~/.local/state/grpojax/tpu")  # folder of the records

    def __post_init__(self):
        require_name(self.name)


@dataclass(frozen=True, kw_only=True)
class OneSlice(OnRecord):
    """The same, for what calls `gcloud`."""

    dry_run: OnOff = False  # print every command that would be run; run and record nothing


@dataclass(frozen=True, kw_only=True)
class CreateArguments(OneSlice):
    """Asks for a slice and waits until it is there."""

    slice: str  # as in v5litepod-16, v5p-16, v6e-8, tpu7x-16
    project: str  # project id
    zone: str  # as in us-west4-a
    spot: OnOff = False  # cheaper, and may be taken away at any time
    queued: OnOff = True  # wait in the queue of Cloud TPU; off: now or never. Not of tpu7x
    runtime_version: str = ""  # image of the workers; by default that of the generation
    queue_hours: float = 24.0  # after which the request is taken back

    def __post_init__(self):
        super().__post_init__()
        slice_of(self.slice)
        require_place(self.project, self.zone)
        require_version(self.runtime_version)
        require(self.queue_hours > 0, f"queue_hours must be above 0, got {self.queue_hours}")


@dataclass(frozen=True, kw_only=True)
class SetupArguments(OneSlice):
    """Installs a commit on every worker."""

    commit: str = "HEAD"  # of the repository in the current folder
    allow_dirty: OnOff = False  # files that differ from the commit stay here

    def __post_init__(self):
        super().__post_init__()
        require_carried("commit", self.commit)


@dataclass(frozen=True, kw_only=True)
class RunArguments(OneSlice):
    """Starts `grpojax train CONFIG` on every worker; what stands after -- are its further flags."""

    config: Name  # path of a config in the commit
    workdir: str  # run directory: gs://BUCKET/PATH, or a path on the one worker
    env: tuple[str, ...] = ()  # NAME=VALUE of the training
    secrets: tuple[str, ...] = ()  # names of variables of this shell that the training gets too

    def __post_init__(self):
        super().__post_init__()
        require_workdir(self.workdir)
        require_variables(self.env, self.secrets)


@dataclass(frozen=True, kw_only=True)
class StatusArguments(OneSlice):
    """How a slice and its training stand."""


@dataclass(frozen=True, kw_only=True)
class LogsArguments(OneSlice):
    """Prints the log of the newest attempt."""

    worker: int = 0  # whose
    follow: OnOff = False  # go on until the attempt ends

    def __post_init__(self):
        super().__post_init__()
        require(self.worker >= 0, f"worker must be 0 or more, got {self.worker}")


@dataclass(frozen=True, kw_only=True)
class BabysitArguments(OneSlice):
    """Keeps the run going, over preemptions and crashes, until it is done; deletes the slice."""

    max_cost: Price = None  # of all slices of this name, in the currency of the price
    price_per_chip_hour: Price = None
    max_hours: Price = None  # since this run was first watched
    queue_hours: float = 24.0  # without a slice
    keep: OnOff = False  # do not delete the slice at the end


@dataclass(frozen=True, kw_only=True)
class StopArguments(OneSlice):
    """Ends the training with a checkpoint; the slice stays."""


@dataclass(frozen=True, kw_only=True)
class DeleteArguments(OneSlice):
    """Deletes the slice and waits until nothing is left of it."""


@dataclass(frozen=True, kw_only=True)
class CostArguments(OnRecord):
    """Chip-hours of a slice so far, and what they cost."""

    price_per_chip_hour: Price = None

    def __post_init__(self):
        super().__post_init__()
        require_price(self.price_per_chip_hour)


@dataclass(frozen=True, kw_only=True)
class LsArguments:
    """Lists the slices on record, and with a project and a zone what is there."""

    project: str = ""
    zone: str = ""
    state: Path = Path("~/.local/state/grpojax/tpu")  # folder of the records
    dry_run: OnOff = False  # print every command that would be run; run nothing

    def __post_init__(self):
        if self.project or self.zone:
            require_place(self.project, self.zone)


def require_price(price: float | None) -> None:
    """Raises ValueError unless `price` is None or above 0."""
    require(price is None or price > 0, f"price_per_chip_hour must be above 0, got {price}")
