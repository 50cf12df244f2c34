"""The commands that train: train, tune."""

from typing import TYPE_CHECKING, Any

from ..api.network import Network
from .options import command
from .tables import paragraphs, show_artifact, shown, table

if TYPE_CHECKING:
    from ..stages.tune import Tuned
    from ..train.space import Space
    from ..train.tune import Trial


def tuned_summary(tuned: "Tuned") -> dict[str, Any]:
    """What ``--json`` shows."""
    about = {"study": tuned.study, "folder": tuned.folder, "recipe": tuned.folder / "best.toml"}
    return about | {"best": tuned.summary.best, "importances": dict(tuned.summary.importances), "trials": tuned.summary.trials}


def tuned_text(tuned: "Tuned", most: int = 20) -> str:
    """A row per trial, the best first and those given up last with the reason; then what mattered, and where the recipe lies."""
    trials = sorted(tuned.summary.trials, key=lambda t: (t.state != "complete", t.state, -(t.score or 0.0)))
    shares = sorted(tuned.summary.importances.items(), key=lambda pair: -pair[1])
    told = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares)
    return paragraphs(
        table([_row(trial, tuned.space) for trial in trials[:most]]),
        f"and {len(trials) - most} more in {tuned.folder / 'trials.csv'}" if len(trials) > most else "",
        f"share in the variance of the score: {told}" if told else "",
        f"pictures: {tuned.folder}\nbest: compress train --recipe {tuned.folder / 'best.toml'}",
    )


def _row(trial: "Trial", space: "Space") -> dict[str, str]:
    from ..stages.tune import percent

    about = {"trial": str(trial.number), "balanced acc.": percent(trial)}
    about |= {title: f"{trial.notes[name]:,}" if name in trial.notes else "" for name, title in (("params", "params"), ("macs", "MACs"))}
    about |= {name.partition(".")[2]: _cell(trial.values.get(name, "")) for name in space}
    return about | {"": trial.reason or ("" if trial.state == "complete" else trial.state)}


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


train = command(
    Network.train,
    """compress train --model k49 --data path/to/folder --epochs 12
          compress train --model k49 --data path/to/folder --folds 5
          compress train --from runs/k49/train/3f9a0c51be27 --recipe stronger.toml""",
)(show_artifact)
tune = command(
    Network.tune,
    """compress tune --model emnist --data path/to/folder --trials 40 --epochs 5 --fraction 0.25
          compress train --recipe runs/emnist/tune/folder/best.toml""",
)(shown(tuned_text, tuned_summary))
