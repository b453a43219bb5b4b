"""Before any test: no network, no warnings of tokenizers about forks, one thread, the project on the path."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

torch.set_num_threads(1)
