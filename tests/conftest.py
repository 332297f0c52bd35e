"""What every test needs: the helpers of this folder, importable from its sub-folders."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine does, before torch is imported
