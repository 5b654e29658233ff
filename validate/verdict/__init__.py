"""Policy and measurements in, GO, NO-GO or INCONCLUSIVE out. Nothing is run.

Results on disk can be judged again by another policy.
"""

from __future__ import annotations

from validate.verdict.decision import decide
from validate.verdict.evidence import Champion, Evidence
from validate.verdict.groups import Paired, by_class, by_name
from validate.verdict.policy import Policy
from validate.verdict.rejudging import champion_at, gate, judge_again, metric_of_samples

__all__ = [
    "Champion",
    "Evidence",
    "Paired",
    "Policy",
    "by_class",
    "by_name",
    "champion_at",
    "decide",
    "gate",
    "judge_again",
    "metric_of_samples",
]
