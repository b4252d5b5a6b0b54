"""How fusedloss is judged: an independent oracle, the list of losses with samples of their operands, and the rule.

The tests and ``python -m fusedloss check`` have these in common. Nothing of it is imported by the losses.
"""
