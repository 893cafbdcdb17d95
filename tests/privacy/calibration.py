"""What calibration spends of a target: `python -m tests.privacy.calibration` prints the table, at more targets with `--all`."""

import math
import sys
import time
import typing

from dpsapf.experiment.columns import CERTIFIERS
from dpsapf.experiment.records import Release
from dpsapf.privacy.accounting import calibrate, spent_epsilon
from dpsapf.support.errors import UserError


class Setting(typing.NamedTuple):
    images: int
    rate: float
    steps: int
    sigma_s: float | None = None
    least: float = 0.0  # target that the scores leave room for

    @property
    def delta(self) -> float:
        return 1 / (self.images * math.log(self.images))

    def releases(self, sigma: float) -> list[Release]:
        common = {"sensitivity": 1.0, "noise": "seed"}
        scores = [Release(name="saliency", noise_multiplier=self.sigma_s, sampling_rate=1.0, steps=1, **common)]
        training = Release(name="dp-sgd", noise_multiplier=sigma, sampling_rate=self.rate, steps=self.steps, **common)
        return [*(scores if self.sigma_s else []), training]


SETTINGS = {
    "the demo's": Setting(3500, 0.1, 30, 10.0, 1),
    "few images, large batches": Setting(1200, 350 / 1200, 30, 30.0, 1),
    "every image in every step": Setting(105, 1.0, 15),
    "the paper's": Setting(45_000, 4096 / 45_000, 1000, 5.0, 1),
    "the paper's, little noise for small targets": Setting(45_000, 4096 / 45_000, 1000, 2000.0),
    "ten images": Setting(10, 0.5, 40),
    "many images": Setting(160_000, 0.0256, 2000),
    "one step": Setting(3500, 0.1, 1),
    "one step of all": Setting(1000, 1.0, 1),
    "one step beside scores": Setting(45_000, 1.0, 1, 200.0, 0.1),
    "many steps": Setting(1_281_167, 4096 / 1_281_167, 20_000),
    "a tiny rate": Setting(1_281_167, 30 / 1_281_167, 5000),
    "one step at a tiny rate": Setting(1_281_167, 1 / 1_281_167, 1),
}
TARGETS = (0.1, 1.0, 10.0, 50.0)
MORE_TARGETS = (0.01, 0.02, 0.05, 0.1, 0.3, 0.99, 1.0, 1.01, 3.0, 10.0, 20.0, 21.0, 30.0, 50.0, 100.0, 300.0)


def composed(setting: str, target: float) -> tuple[float, dict[str, float]]:
    """Return the noise of DP-SGD at a target in a setting, and what it then spends, as a ledger has it."""
    chosen = SETTINGS[setting]
    sigma = calibrate(target, chosen.delta, chosen.releases)
    return sigma, spent_epsilon(chosen.releases(sigma), chosen.delta)


def row(setting: str, target: float) -> str:
    """Return a line of the table."""
    start = time.perf_counter()
    try:
        sigma, spent = composed(setting, target)
    except UserError as error:
        return f"| {setting} | {target:g} | {error} | | | | |"
    most, seconds = max(spent[name] for name in CERTIFIERS), time.perf_counter() - start
    return f"| {setting} | {target:g} | {sigma:.6g} | {spent['pld']:g} | {spent['prv']:g} | {most / target:.4f} | {seconds:.1f} |"


def main() -> None:
    """Print the table."""
    print("| setting | target | sigma | PLD | PRV | larger / target | s |\n| :-- | --: | --: | --: | --: | --: | --: |")
    for setting in SETTINGS:
        for target in MORE_TARGETS if "--all" in sys.argv else TARGETS:
            if target >= SETTINGS[setting].least:
                print(row(setting, target), flush=True)


if __name__ == "__main__":
    main()
