"""Questions over documents: chunks, their words and vectors, and the passages that a question finds."""
