from __future__ import annotations

from chatproject.local.run import main

main()
