"""Weights & Biases, offline only: `<out>/<recipe>/wandb/`, one W&B run for each step, its key as the id.

Nothing is sent. `mode="offline"` alone does not hold to that: a process of wandb 0.31 still looks up a host name, to
report how wandb itself does, unless the environment says otherwise before wandb starts (seen in its system calls). So
both variables are set here, over whatever the user has set; uploading is the user's own `wandb sync`. Git state, code,
console output, installed packages, machine statistics, host and user name are kept out of the files.

Costs half a second to a second for the import, and a helper process while the run lasts.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metier.core.errors import MissingExtra
from metier.track.tracker import Tracker

ENVIRONMENT = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
PRIVATE = {
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "console": "off",
    "silent": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "host": "",
    "username": "",
    "email": "",
}


class WeightsAndBiases(Tracker):
    """Writes below `folder`/wandb. Raises MissingExtra where the package is not installed.

    recipe: W&B's project. configs: what each step was asked to do, W&B's run config.
    """

    def __init__(self, folder: Path, recipe: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        os.environ.update(ENVIRONMENT)
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise MissingExtra("wandb", "track", needed_by="--track wandb") from error
        self._wandb = wandb
        self._folder, self._recipe, self._configs = folder, recipe, configs
        self.what = f"wandb sync {folder / 'wandb'}/offline-run-*  (uploads; until then all is here)"

    def begin(self, step: str, key: str) -> Mapping[str, int]:
        """A W&B run; one that goes on is a further folder with the same id, which `wandb sync` joins."""
        place = self._folder / "wandb"
        place.mkdir(parents=True, exist_ok=True)  # wandb moves to a temporary folder where it finds none
        config = dict(self._configs[step])
        self._marks = place / f"{key}.json"
        self._run = self._wandb.init(
            dir=str(self._folder),
            project=self._recipe,
            id=key,
            name=step,
            job_type=str(config.get("kind", "")),
            config=config,
            mode="offline",
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(**PRIVATE),
        )
        if not self._marks.exists():
            return {}
        last: dict[str, int] = json.loads(self._marks.read_text(encoding="utf-8"))
        return last

    def write(self, values: Mapping[str, float], *, at: int, time: float) -> None:  # noqa: ARG002 - wandb keeps its own
        """Log the values, then note how far each curve has come."""
        self._run.log(dict(values), step=at)
        aside = self._marks.with_suffix(".aside")
        aside.write_text(json.dumps(self._last), encoding="utf-8")
        aside.replace(self._marks)

    def end(self, *, failed: bool) -> None:
        """Finish the W&B run."""
        self._run.finish(exit_code=int(failed))
