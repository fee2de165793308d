"""`make run`: the whole service on a bare machine. Production never imports this package."""
