"""Trees of containers: torch's pytrees, which `torch.utils` keeps in a private module."""

from __future__ import annotations

from torch.utils import _pytree

TreeSpec = _pytree.TreeSpec
"""How the leaves of a tree belong together.

Private: `torch.utils._pytree.TreeSpec`. Public: none.
"""

tree_flatten = _pytree.tree_flatten
"""Return the leaves of a tree, and how they belong together.

Private: `torch.utils._pytree.tree_flatten`. Public: none.
"""

tree_flatten_with_path = _pytree.tree_flatten_with_path
"""Return the leaves of a tree with the keys that lead to each, and how they belong together.

Private: `torch.utils._pytree.tree_flatten_with_path`. Public: none.
"""

keystr = _pytree.keystr
"""Return keys that lead to a leaf as text.

Private: `torch.utils._pytree.keystr`. Public: none.
"""

tree_unflatten = _pytree.tree_unflatten
"""Return the tree with given leaves.

Private: `torch.utils._pytree.tree_unflatten`. Public: none.
"""

tree_leaves = _pytree.tree_leaves
"""Return the leaves of a tree.

Private: `torch.utils._pytree.tree_leaves`. Public: none.
"""

tree_structure = _pytree.tree_structure
"""Return how the leaves of a tree belong together.

Private: `torch.utils._pytree.tree_structure`. Public: none.
"""

tree_map = _pytree.tree_map
"""Return a tree with the results of a function of each leaf.

Private: `torch.utils._pytree.tree_map`. Public: none.
"""

tree_map_only = _pytree.tree_map_only
"""Return a tree in which each leaf of a given class is replaced by a function's result.

Private: `torch.utils._pytree.tree_map_only`. Public: none.
"""
