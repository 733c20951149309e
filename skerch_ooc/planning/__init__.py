"""Spec, plan, and all that follows from them alone: sizes, memory, tasks, stages, growth.

Nothing here touches a file or an operator.
"""
