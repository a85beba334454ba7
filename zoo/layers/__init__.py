"""The parts that models are composed from. A layer knows no model.

Shape letters, the same in every annotation: B batch, T query length, S key length, N query heads, K kv
heads, G = N/K, H head_dim, D embed, F mlp, V vocab, L layers.
"""
