"""Inputs that nobody would type, for everything that takes one: `python -m tests.fuzz` (`make fuzz`).

Hypothesis makes the inputs and shortens what fails. Each target has one promise: whatever comes, it answers, or raises
an error of ours, within two seconds and without keeping memory.
"""
