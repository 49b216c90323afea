"""New targets on a trained backbone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._device import lapack_on_one_thread, own_settings
from sklearn_cfll._grids import refuse_on_grid
from sklearn_cfll._problem import state_problem
from sklearn_cfll._stream import naming_features
from sklearn_cfll._stream_terms import settle_terms
from sklearn_cfll._validation import read_rows
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.net import CFLLNet
from sklearn_cfll.network import Network


class Transfer(BaseCFLL):
    """Solves further heads on the backbone that was trained."""

    @own_settings()
    def refit_head(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Any:
        """Solve a head for new targets on the trained backbone.

        There is no training: one pass over the rows and one solve. The targets may be
        other in number and kind than those of fit, for a classifier other classes.
        Every row is used; ``alpha="auto"`` and the classifier's calibration go by
        leave-one-out, or by the held-out rows where they are given.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows, those of fit or others.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            New targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        X_val, y_val : array-like, default=None
            Held-out rows.
        sample_weight_val : array-like, default=None
            Weights of the held-out rows.

        Returns
        -------
        estimator : object
            A new fitted estimator; this one stays as it is.
        """
        check_is_fitted(self)
        refuse_on_grid(self, "refit_head")
        new = copy.copy(self)
        settle_terms(new, "backbone")
        train = read_rows(new, X, y, sample_weight, reset=False, new_targets=True)
        held_out = new._read_held_out(X_val, y_val, sample_weight_val)
        new._learn_targets(train.chosen(train.y), train.chosen(train.weight))
        problem = state_problem(new._as_trained(), train, held_out)
        problem.encode_held_out(new)
        n_outputs = problem.batches.encoded.shape[-1]
        net = with_new_head(self.net_, copy.deepcopy(self.backbone_), n_outputs)
        net.output_weight, net.decode = new._output_weight, new._targets.decode
        with lapack_on_one_thread(), naming_features(net, problem):
            path = new._solve(net, problem)
            new._adopt(net, problem.batches.input_dtype)
            new._publish(net, problem, path)
        return new


def with_new_head(
    net: CFLLNet, backbone: torch.nn.Module, n_outputs: int | None = None
) -> CFLLNet:
    """Copy a trained net, with a head of zeros, of as many outputs where not given."""
    trained = net.module_.head.weight
    n_outputs = trained.shape[1] if n_outputs is None else n_outputs
    head = ClosedFormHead(len(trained), n_outputs, dtype=wide_dtype(trained.device))
    new = copy.copy(net)
    new.module_ = Network(backbone, head.to(trained.device))
    new.n_outputs = n_outputs
    return new
