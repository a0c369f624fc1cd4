"""L1 penalties, which scikit-learn 1.8 began to spell otherwise."""

from __future__ import annotations

from typing import Any


def l1_logistic(strength: float, *, seed: int, iterations: int = 1000) -> Any:
    """A logistic regression with an L1 penalty of weight 1 / ``strength``, not yet fitted."""
    import sklearn
    from sklearn.linear_model import LogisticRegression

    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    penalty: dict[str, Any] = {"l1_ratio": 1.0} if version >= (1, 8) else {"penalty": "l1"}
    return LogisticRegression(C=strength, solver="liblinear", max_iter=iterations, random_state=seed, **penalty)
