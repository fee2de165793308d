"""Staff's view of money. What happened can be read here and never changed; staff's own deeds go
through billing.ledger.staff_actions, which writes them down."""

from __future__ import annotations

import importlib
import pathlib

# For the moment: what is there already (the finished list of imports comes back with the last file).
for _file in pathlib.Path(__file__).parent.glob("[a-z]*.py"):
    importlib.import_module(f"billing.admin.{_file.stem}")
