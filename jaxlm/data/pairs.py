"""Rows that belong together two by two, made into the arrays that a policy is trained on."""

from typing import NamedTuple

import numpy as np


class PairBatch(NamedTuple):
    """Pairs for one step: rows 2i and 2i + 1 belong together. The first five are as in `packing.Batch`, [2B, L] each.

    Of preferences a pair is the chosen and the rejected response to one prompt; of labels the labelled example, and then its
    prompt with the response of another example, on which the baseline of KTO is measured. `weights` is 1 on what the
    assistant says in the response, and on what ends it. A pair without any weight is only filling.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    labels: np.ndarray  # [2B] float32: 1 chosen or desirable, 0 rejected or undesirable (of labels both rows alike)
    reference: np.ndarray  # [2B] float32: log-probability of the response under the reference; 0 where it is not known
