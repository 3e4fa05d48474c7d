"""``python -m nri_dranet``."""

from __future__ import annotations

import sys

from nri_dranet.cli import main

sys.exit(main())
