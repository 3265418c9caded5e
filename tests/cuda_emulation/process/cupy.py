"""``import cupy`` in a process whose PYTHONPATH begins here: the stand-in takes CuPy's place.

XPLSTM_FAULTS in the environment has pairs of texts as JSON: in the sources of the kernels the second of a
pair takes the place of the first. XPLSTM_PATIENCE is how many seconds a wait may take. XPLSTM_LOG is a file
to which a process adds a line.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

from tests.cuda_emulation import compiled, libraries, standin
from xplstm.cli import fit, trials
from xplstm.kernels._cuda import partitions, waits

compiled.faults = tuple(map(tuple, json.loads(os.environ.get("XPLSTM_FAULTS", "[]"))))
waits.PATIENCE = float(os.environ.get("XPLSTM_PATIENCE", standin.PATIENCE))
partitions.THREADS = 64
trials.LAUNCHES, trials.LONG, trials.BUSY = 3, 40, 0.01
with open(os.environ.get("XPLSTM_LOG", os.devnull), "a", encoding="utf-8") as log:
    if trials.IDENTITY not in sys.argv:
        log.write(" ".join(sys.argv) + "\n")
trials.RANDOM = trials.RANDOM[:1]
trials.REPEATED = trials.Shape(T=3, B=5, I=3, H=20, reverse=trials.BOTH, valid="lengths")
every, plans = trials.cut_shapes, trials.cuts
trials.cut_shapes = lambda kind: every(kind)[:1]
trials.cuts = lambda *sizes: plans(*sizes)[:3]

# Times of a device on which everything takes 1.5 times as long as the model's costs say.
fit.SIZES, fit.KINDS = ((1, 8), (5, 20), (16, 64), (40, 33)), ("float32",)
fit.step_time = lambda _cp, _like, kind, sizes, run: (
    1.5
    * (
        partitions.fused_cost(1, *sizes, kind, partitions.COSTS)
        if run is fit._run_fused
        else run.keywords["plans"][run.keywords["backward"]].cost
    )
)

stand_ins = standin.modules()
stand_ins["cupy"].ones = np.ones
stand_ins["cupy"].cuda.runtime.getDeviceCount = lambda: 2
sys.modules.update(stand_ins)
libraries.listen()
sys.modules["array_api_compat.cupy"] = standin.LIBRARY
