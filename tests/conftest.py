"""What all tests share. Invariant: a test leaves nothing behind outside its own tmp_path and needs no network."""

import os
import signal

from hypothesis import HealthCheck, settings

# Before torch is imported anywhere: ranks and Ray's workers share two cores, and sums must come out the same each time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "RAY_AUTH_TOKEN", "0" * 64
)  # or Ray writes one into the home folder, where it changes `ray start`
os.environ.pop("RAY_ADDRESS", None)  # tests start their own Ray

# A shell starts what it puts into the background with Ctrl-C ignored, and tests raise that signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are the same in each run, and none fails because the machine was busy.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
