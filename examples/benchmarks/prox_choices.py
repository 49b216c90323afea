"""Whether a batch chooses its own pull to the last head well.

During fits by the rule (1, 100), at steps of the first epoch and of later ones: the
`prox` of the least generalized cross-validation (GCV), that of the least leave-one-out
error (LOO), and that of the head which is best on held-out rows. All three for the
batch that is trained on, and for as many held-out rows in its place, which the
backbone has not been fitted to; the head is then judged by the other held-out rows.

Run it with ``python examples/benchmarks/prox_choices.py``; ``--help`` lists options.
"""

import copy

import pandas as pd
import torch
from _command_line import named_splits
from _common import use_one_thread
from prox_rules import GRID, cross_validate, fit, parse_arguments
from skorch.callbacks import Callback

TRIALS = GRID[::2]


class Choices(Callback):
    """Try every `prox` from where the training stands.

    At every step of the first epoch and at every tenth one later.
    """

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Find the held-out rows."""
        self.held_out, self.found = net.get_split_datasets(X, y)[1], []

    @torch.no_grad()
    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        """Take the batch, and then held-out rows in its place."""
        first = len(net.history) == 1
        if not training or not net.step_ or not (first or net.step_ % 10 == 0):
            return
        generator = torch.Generator().manual_seed(net.step_)
        order = torch.randperm(len(self.held_out), generator=generator)
        n_rows = len(batch[1])
        others = self.held_out[order[n_rows:]]
        batches = {"trained on": batch, "held out": self.held_out[order[:n_rows]]}
        for rows, given in batches.items():
            found = {"epochs": "first" if first else "later", "rows": rows}
            self.found.append({**found, **choices(net, given, others)})


def choices(net, batch, others):
    """Return the `prox` that each criterion chooses for a batch, and the best one."""
    head = net.module_.head
    parts = []
    for inputs, targets in (batch, others):
        features = net.module_.backbone(inputs["X"]).to(head.weight.dtype)
        parts += [features, targets.to(features)]
    features, targets, other_features, other_targets = parts
    residual = targets - head(features)
    found = cross_validate(features, residual, head.weight, net.alpha, TRIALS)
    losses = []
    for prox in TRIALS.tolist():
        trial = copy.deepcopy(head)
        trial.update_(features, targets, alpha=net.alpha, prox=prox)
        losses.append((trial(other_features) - other_targets).square().mean())
    found["best"] = torch.stack(losses)
    return {name: float(TRIALS[losses.argmin()]) for name, losses in found.items()}


def main():
    """Fit by the default rule on every table and seed; print the median choices."""
    arguments = parse_arguments()
    use_one_thread()
    found = []
    for split, seed in named_splits(arguments):
        model = fit(split, seed, callbacks=[Choices()])
        callbacks = [callback for _, callback in model.net_.callbacks_]
        own = next(c for c in callbacks if isinstance(c, Choices))
        found += [{"table": split.name, "seed": seed, **row} for row in own.found]
    results = pd.DataFrame(found)
    groups = results.groupby(["table", "epochs", "rows"], sort=False)
    medians = groups[["GCV", "LOO", "best"]].median()
    medians = medians.unstack("rows").swaplevel(axis=1)[["trained on", "held out"]]
    print(medians.round(2).to_string())
    if arguments.output:
        results.to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()
