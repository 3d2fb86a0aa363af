"""The line that a person reads for a logged step, and how numbers and times are shown in it."""

from collections.abc import Mapping

SHORT = {"text": "text", "understanding": "und", "generation": "gen"}


def step_line(values: Mapping[str, float], steps: int, eta_s: float) -> str:
    """One line for one step's metrics (names as in metrics.py)."""
    step = int(values["step"])
    parts = [f"step {step:>{len(str(steps))}}/{steps}", f"{step / steps:6.1%}", f"loss {values['loss/all']:.3f}"]
    for stream, short in SHORT.items():
        if f"loss/{stream}" in values:
            parts.append(f"{short} {values[f'loss/{stream}']:.3f}")
        elif values.get(f"mix/{stream}"):
            parts.append(f"{short} -    ")  # this step has none of it, so `loss` is that of the others
    parts += [
        f"|g| {values['optim/grad_norm']:.2f}",
        f"lr {values['optim/lr']:.1e}",
        f"{count(values['perf/tokens_per_s'])} tok/s",
        *([f"{values['perf/mfu']:.0%} mfu"] if "perf/mfu" in values else []),  # where the device's peak is known
        f"wait {values['perf/data_wait']:.0%}",
        f"{values['mem/peak_gib']:.1f}GiB",
        f"eta {duration(eta_s)}",
    ]
    return "  ".join(parts)


def count(value: float) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as 45s, 3m20s, 4h12m or 1d20h."""
    whole = round(seconds)
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // lower_size}{lower}"
    return f"{whole}s"
