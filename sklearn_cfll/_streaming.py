"""Rows that come in chunks: backbone steps on each, and the exact head of all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sklearn.base import _fit_context, is_classifier
from sklearn.utils.validation import check_is_fitted

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._build import build_net
from sklearn_cfll._conformal import ConformalScores
from sklearn_cfll._device import lapack_on_one_thread, own_settings, seeded
from sklearn_cfll._final import (
    ALPHA_PATH,
    as_parameter,
    largest_of_the_best,
    training_moments,
)
from sklearn_cfll._first_chunk import FirstChunk
from sklearn_cfll._grids import refuse_on_grid
from sklearn_cfll._problem import Problem, state_problem
from sklearn_cfll._stream import naming_features
from sklearn_cfll._stream_terms import (
    as_streaming,
    refuse_changed_terms,
    settle_terms,
)
from sklearn_cfll._sums import HeadSums, faded, in_user_units, size_of
from sklearn_cfll._transfer import with_new_head
from sklearn_cfll._undo import all_or_nothing
from sklearn_cfll._validation import (
    Rows,
    check_alpha,
    naming_weights,
    read_rows,
)
from sklearn_cfll.functional.paths import AnyPath, merge, path_of, remove
from sklearn_cfll.net import CFLLNet
from sklearn_cfll.optimizers import has_learnable_parameters

# Ridge where the backbone starts on a stream and moves with it: no rows are held out,
# and few rows may not make a large head, which makes large steps.
_MOVING_ALPHA = 0.1

# What a moved head's sums don't tell, all or some of them.
OF_FIT = {"alpha_path_", "log_evidence_", "loo_predictions_", "loo_score_"}


class Streaming(BaseCFLL):
    """Adds rows to a fitted estimator, or to none, and removes them again."""

    _conformal: ConformalScores | None

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learn from further rows, which need not be kept.

        After fit the backbone stays as it is, unless ``stream_epochs`` is a number
        above zero; without fit it is trained on each chunk. While it stays, the head
        is the exact one of all rows, but for those that fit held out, from sums over
        them. Once it has moved, earlier rows count through the head as it was trained.
        The first call of a stream without fit builds the backbone and learns the
        scaling of X and y.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            New rows; two at least in the first call.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, on one scale in all calls.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            Where the data can't be used, a parameter that the first rows settle has
            changed since (``backbone``, ``dtype``, ``sample_norm``), or
            ``early_stopping`` is True: no rows of a stream are held out.

        Warns
        -----
        UserWarning
            Where X is constant in the first call, or a column or the targets of a later
            one lie 20 standard deviations of the first off; once, and not after fit.
        """
        return self._learn_chunk(X, y, sample_weight)

    def _learn_chunk(self, X: Any, y: Any, sample_weight: Any) -> Any:
        if self.early_stopping is True:
            raise ValueError(
                "partial_fit holds out no rows; set early_stopping='auto' or False."
            )
        with all_or_nothing(self), naming_weights(sample_weight), own_settings():
            first = not hasattr(self, "net_")
            if first:
                settle_terms(self)
            else:
                self._validate_params()  # scikit-learn does so in the first call alone
                refuse_changed_terms(self)
            train = read_rows(self, X, y, sample_weight, reset=first, new_targets=False)
            self._meet_targets(train, first)
            refuse_on_grid(self, "partial_fit")
            self._look_at_scales(train, first)
            view = as_streaming(self, len(train), first)
            problem = state_problem(view, train, None)
            before = None if first else self._before(problem)
            with lapack_on_one_thread(), seeded(problem.seed, problem.batches.device):
                net, stepped = self._advance(view, problem, first)
                with naming_features(net, problem):
                    path = self._merge_head(net, problem, stepped)
                self._adopt(net, problem.batches.input_dtype)
                self._publish_streamed(net, problem, path, before)
            net.release()
        return self

    def _look_at_scales(self, train: Rows, first: bool) -> None:
        """Warn of rows whose scales are not those of the rest of the stream."""
        if first:
            self._first_chunk = FirstChunk.of(train, labels=is_classifier(self))
        elif self._sums.streamed:
            names = vars(self).get("feature_names_in_")
            self._first_chunk = self._first_chunk.compared(train, names)

    def _meet_targets(self, train: Rows, first: bool) -> None:
        """Learn from the first rows how to encode y."""
        if first:
            self._learn_targets(train.chosen(train.y), train.chosen(train.weight))

    def _advance(
        self, view: Any, problem: Problem, first: bool
    ) -> tuple[CFLLNet, bool]:
        """Step on the backbone, or take it as it is; say whether it moved."""
        if not first and view.max_epochs == 0:
            return with_new_head(self.net_, self.backbone_), False
        net = build_net(view, problem, None if first else self.net_.module_)
        if not first:
            problem.batches.energy = self._energy_of_stream()
        refuse_on_grid(view, "partial_fit")
        with naming_features(net, problem):
            net.fit(problem.batches, None)
        net.module_.eval()
        self.history_ = net.history
        self.n_iter_ = len(net.history) + (0 if first else self.n_iter_)
        self.n_recoveries_ = net.n_recoveries_ + (0 if first else self.n_recoveries_)
        trains = has_learnable_parameters(net.module_.backbone)
        return net, view.max_epochs != 0 and trains

    def _energy_of_stream(self) -> float:
        """Give the mean square of the encoded targets of all rows so far."""
        moments, head = self._sums.moments, self.net_.module_.head
        nothing = [torch.zeros_like(part).cpu() for part in (head.weight, head.bias)]
        return float(moments.error_of(*nothing).mean())

    def _merge_head(self, net: CFLLNet, problem: Problem, stepped: bool) -> AnyPath:
        """Solve the head of the earlier rows and of these together."""
        n_rows = problem.batches.n_samples
        batches, share = faded(problem.batches, float(self.forgetting))
        moments = in_user_units(training_moments(net, batches), problem)
        if "_sums" not in vars(self):
            sums = HeadSums(moments, batches.dtype, *size_of(problem, share))
            sums = replace(sums, streamed=True, stepped=stepped)
        else:
            sums = self._sums
            left = float(self.forgetting) ** n_rows
            earlier = sums.moments.scaled(left)
            if stepped:
                # The sums are of features as they were. They still say how much the
                # rows knew in each direction; what they knew, the trained head says.
                head = net.module_.head
                last = self.net_.module_.head
                earlier = earlier.moved(
                    head.weight.cpu(),
                    head.bias.cpu(),
                    torch.as_tensor(self._alpha_of_stream(None), dtype=torch.float64),
                    earlier.error_of(last.weight.cpu(), last.bias.cpu()),
                )
                sums = replace(sums, stepped=True, stale=True)
            further, further_weight = size_of(problem, share)
            sums = replace(
                sums,
                moments=merge(earlier, moments),
                n_rows=left * sums.n_rows + further,
                weight=left * sums.weight + further_weight,
            )
        aged = sums.aged or self.forgetting < 1
        self._sums = replace(sums, n_calls=sums.n_calls + 1, aged=aged)
        return self._solve_sums(net)

    def _solve_sums(self, net: CFLLNet) -> AnyPath:
        if not self._sums.moments.finite:
            raise FloatingPointError(
                "the sums over the rows of the stream overflow; scale X or the weights."
            )
        self._sums = replace(self._sums, moved=True)
        for name in OF_FIT & set(vars(self)):
            delattr(self, name)
        self._conformal = None
        path = path_of(self._sums.moments)
        self.alpha_ = self._alpha_of_stream(path)
        head = net.module_.head
        alpha = torch.as_tensor(self.alpha_, dtype=torch.float64)
        weight, bias = path.solve(alpha)
        head.weight, head.bias = weight.to(head.weight), bias.to(head.bias)
        return path

    def _alpha_of_stream(self, path: AnyPath | None) -> Any:
        """Ridge of the head: the user's, that of fit, or one that suits the stream."""
        alpha = check_alpha(self.alpha, self._sums.moments.n_outputs)
        if not isinstance(alpha, str):
            return alpha
        if not self._sums.streamed:
            return self.alpha_
        if self._sums.stepped or path is None:
            return _MOVING_ALPHA
        # What is left of the degrees of freedom is counted in rows.
        score = self._sums.path_per_row(path).generalized_errors(ALPHA_PATH)
        if is_classifier(self):
            score = score.mean(1, keepdim=True)
        best = largest_of_the_best(score / self._loss_unit)
        return as_parameter(torch.tensor(ALPHA_PATH, dtype=torch.float64)[best])

    def forget(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Remove rows from the head, exactly, as if they had never been in it.

        The backbone stays as it is, and with it what it learnt from the rows. So does,
        of a classifier, the factor that makes logits of scores; the logistic head of
        fit is dropped.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows that are in the head: of the calls of ``partial_fit``, or of fit, but
            for those that it held out.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.
        sample_weight : array-like of shape (n_samples,), default=None
            The weights with which they came.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            Where rows came before the backbone moved or have lost weight by
            ``forgetting``, so that they can't be removed exactly; or where no rows
            could give the sums that would be left. Rows that never were in the head
            are not always noticed.
        """
        check_is_fitted(self)
        refuse_on_grid(self, "forget")
        if self._sums.stale or self._sums.aged:
            cause, cure = "has moved", "stream_epochs=0"
            if not self._sums.stale:
                cause, cure = "has moved on to weigh earlier rows less", "forgetting=1"
            raise ValueError(
                f"the estimator {cause} since rows went in, which can't be removed "
                f"exactly any more; stream with {cure}."
            )
        with all_or_nothing(self), own_settings():
            refuse_changed_terms(self)
            train = read_rows(self, X, y, sample_weight, reset=False)
            problem = state_problem(self._as_trained(), train, None)
            net = with_new_head(self.net_, self.backbone_)
            before = self._before(None)
            rows = in_user_units(training_moments(net, problem.batches), problem)
            rest = remove(self._sums.moments, rows)
            if rest is None:
                raise ValueError(
                    "X and y hold rows that are not in the head, or all of those that "
                    "are: without them the sums would be of no rows; pass rows that "
                    "went in, with the weights that they had."
                )
            n_rows, weight = size_of(problem)
            self._sums = replace(
                self._sums,
                moments=rest,
                n_rows=self._sums.n_rows - n_rows,
                weight=self._sums.weight - weight,
            )
            path = self._solve_sums(net)
            self._adopt(net, problem.batches.input_dtype)
            self._publish_streamed(net, problem, path, before)
        return self

    # For subclasses -------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Of an attribute that isn't there alone.
        sums = vars(self).get("_sums")
        if name in OF_FIT and sums is not None and sums.moved:
            raise AttributeError(
                f"{name} is that of the head that fit solves, which partial_fit or "
                "forget has moved since; call fit, or refit_head, to have it anew."
            )
        return object.__getattribute__(self, name)

    def _before(self, problem: Problem | None) -> Any:
        """Note what must be known of a chunk, or of none, before the head moves."""

    def _publish_streamed(
        self, net: CFLLNet, problem: Problem, path: AnyPath, before: Any
    ) -> None:
        """Set the coefficients, and what else is learnt from the chunk."""
        raise NotImplementedError
