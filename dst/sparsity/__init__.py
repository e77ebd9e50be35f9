"""The core: sparse networks whose topology changes while they train, for any PyTorch loop.

A method is a composition of small parts: a distribution (how much where), an init (which positions first), a pattern
(which masks are allowed), drop and grow scores (who leaves, who enters), curves and a plan (how much, when).
"""

from dst.sparsity.plan import UpdatePlan
from dst.sparsity.scope import Scope
from dst.sparsity.sparsifier import Sparsifier

__all__ = ["Scope", "Sparsifier", "UpdatePlan"]
