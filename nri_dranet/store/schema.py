"""The tables of the journal, by version. A new version adds a step; steps are never changed."""

from __future__ import annotations

VERSION = 3

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE claims (
        uid TEXT PRIMARY KEY,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        state TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        prepared INTEGER NOT NULL,
        plan TEXT NOT NULL,
        holder TEXT,
        facts TEXT NOT NULL,
        successor TEXT
    ) STRICT;
    CREATE TABLE statuses (
        uid TEXT PRIMARY KEY,
        facts TEXT NOT NULL,
        pending INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE quarantine (
        uid TEXT NOT NULL,
        source TEXT NOT NULL,
        reason TEXT NOT NULL,
        content TEXT NOT NULL,
        set_aside REAL NOT NULL
    ) STRICT;
    """,
    # It told claims that kubelet had prepared from those that a watch had seen; nobody asked for it.
    "ALTER TABLE claims DROP COLUMN prepared;",
    # Devices that were nowhere when they should have come home: owed to the host also after their claim is gone.
    "CREATE TABLE strays (device TEXT PRIMARY KEY, boot_id TEXT NOT NULL, plan TEXT NOT NULL) STRICT;",
)
"""``STEPS[n]`` takes a journal of version n to n + 1 (``PRAGMA user_version``)."""
