"""What a pipeline costs: idle time, parameters and activations of a device (V3 report, table 2).

DualPipeV and the devices are from the table of the authors' repository, deepseek-ai/DualPipe.

PP is the number of stages into which the model is cut. Durations are those of one stage and one micro-batch: F forward,
B full backward, W its part for the weights, F&B an overlapped pair.

    method       idle time                     parameters   activations   devices
    1F1B         (PP - 1)(F + B)               1            PP            PP
    ZB1P         (PP - 1)(F + B - 2W)          1            PP            PP
    DualPipe     (PP/2 - 1)(F&B + B - 3W)      2            PP + 1        PP
    DualPipeV    the same                      2            PP + 1        PP/2

Parameters and activations are those of a device, in units of a stage's. parallel/simulate.py derives all of them from
the schedules. With I = B - W, the idle time of ZB1P is exact where W <= F and W <= I, that of DualPipe and DualPipeV
where F = I >= W.
"""

from typing import Any, NamedTuple

from minids.validation import require, require_whole


class PipelineCost(NamedTuple):
    """A row of the table. `idle` is in the unit of the durations."""

    idle: Any
    parameters: int
    activations: int
    devices: int


def published_pipeline_cost(method: str, stages: int, F: Any, B: Any, W: Any, pair: Any) -> PipelineCost:
    """Return a row of this table. Durations are numbers, or anything that can be added and multiplied.

    Raises ValueError for a method that is not in the table, and for an odd number of stages with DualPipe.
    """
    require_whole("stages", stages)
    both_ways = PipelineCost((stages // 2 - 1) * (pair + B - 3 * W), 2, stages + 1, stages)
    rows = {
        "1F1B": PipelineCost((stages - 1) * (F + B), 1, stages, stages),
        "ZB1P": PipelineCost((stages - 1) * (F + B - 2 * W), 1, stages, stages),
        "DualPipe": both_ways,
        "DualPipeV": both_ways._replace(devices=stages // 2),
    }
    require("method", method, method in rows, " or ".join(rows))
    require("stages", stages, stages % 2 == 0 or not method.startswith("Dual"), f"even for {method}")
    return rows[method]
