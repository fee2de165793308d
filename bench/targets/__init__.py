"""What is measured: each module has one question, and `Target`s say with how many users it is asked."""
