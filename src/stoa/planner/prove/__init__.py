"""Plans, tried on traces in the simulator before anything is bought."""

from stoa.planner.prove.proof import PoolProof, Proof, ServiceProof, prove
from stoa.planner.prove.tuned import tune

__all__ = ["PoolProof", "Proof", "ServiceProof", "prove", "tune"]
