"""Rounds of faults: everything real, a hundred conversations, and something dies.

    python -m tests.chaos.rounds [--rounds 5] [--seed N] [--conversations 100]

`stage` are the processes, `asks` what people ask for, `faults` what happens to them meanwhile,
`judge` says from the rows, the provider's record and what the clients saw whether all is right.
"""
