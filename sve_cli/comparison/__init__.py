"""Systems compared on the same samples, and how many members one of them needs. Works from predictions alone.

`compare_predictions`, `compare_seeds` and `compare_ood` give `findings.Difference` rows; `member_curves` gives
`findings.Curve`. The same arguments give the same numbers.
"""

from sve_cli.comparison.members import MOST_SUBSETS, enough_members, member_curves, n_subsets
from sve_cli.comparison.paired import holm, n_needed
from sve_cli.comparison.pairing import Aligned, align
from sve_cli.comparison.systems import SCORES, compare_ood, compare_predictions, compare_seeds
from sve_cli.comparison.words import member_sentences, pair_sentences

__all__ = [
    "MOST_SUBSETS",
    "SCORES",
    "Aligned",
    "align",
    "compare_ood",
    "compare_predictions",
    "compare_seeds",
    "enough_members",
    "holm",
    "member_curves",
    "member_sentences",
    "n_needed",
    "n_subsets",
    "pair_sentences",
]
