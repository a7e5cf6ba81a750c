"""What others do, built as their papers and documentation say.

Scalers (how many): `StaticPeak`, `Hpa`, `RayServe`, `Knative`, `RequestRate`, `SageServe`. Placements (where): `OnDemand`,
`SpotHedge`. `Both(scaler, placement)` is an autoscaler that simulator and live loop can run. Fields are the
parameters; defaults are the source's.
"""

from stoa.simulator.baselines.hpa import Hpa
from stoa.simulator.baselines.knative import Knative
from stoa.simulator.baselines.on_demand import OnDemand
from stoa.simulator.baselines.parts import Both, Placement, Scaler
from stoa.simulator.baselines.ray_serve import RayServe
from stoa.simulator.baselines.request_rate import RequestRate
from stoa.simulator.baselines.sageserve import SageServe
from stoa.simulator.baselines.spothedge import SpotHedge
from stoa.simulator.baselines.static_peak import StaticPeak

__all__ = [
    "Both",
    "Hpa",
    "Knative",
    "OnDemand",
    "Placement",
    "RayServe",
    "RequestRate",
    "SageServe",
    "Scaler",
    "SpotHedge",
    "StaticPeak",
]
