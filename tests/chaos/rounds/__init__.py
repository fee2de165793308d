"""Rounds of faults: real processes, a hundred conversations, and something fails.

    python -m tests.chaos.rounds [--rounds 5] [--seed N] [--conversations 100]

`stage` has the processes, `asks` the messages of the users, `faults` the faults; `judge` compares the
rows, the provider's record and the events that the clients received.
"""
