"""Settings that must stand before torch is loaded: tests share few cores with each other."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
