"""The hashing of passwords: Argon2id, within the memory of a small machine."""

from __future__ import annotations

from django.contrib.auth.hashers import Argon2PasswordHasher


class Hasher(Argon2PasswordHasher):
    """Argon2id with the parameters that OWASP names for 19 MiB.

    Django's default takes 100 MiB, of which a web process would need one for each of its DB_THREADS. A hash
    takes about 20 ms of one core, in a thread of the pool and without the interpreter's lock.
    """

    time_cost = 2
    memory_cost = 19 * 1024  # KiB
    parallelism = 1
