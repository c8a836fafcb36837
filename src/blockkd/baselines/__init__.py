"""What Block-KD is compared to, each a Distiller over the same interface."""

from blockkd.baselines.alignment import FeatureAlignment
from blockkd.baselines.catkd import CATKD
from blockkd.baselines.contrast import CRD
from blockkd.baselines.decoupled import DecoupledKD
from blockkd.baselines.fcfd import FCFD
from blockkd.baselines.features import AT, VID, FitNet
from blockkd.baselines.logits import KD, CrossEntropy
from blockkd.baselines.multilevel import MLKD
from blockkd.baselines.overhaul import OFD
from blockkd.baselines.relations import NST, PKT, RKD, SP
from blockkd.baselines.review import ReviewKD
from blockkd.baselines.simkd import SimKD

__all__ = [
    "AT",
    "CATKD",
    "CRD",
    "FCFD",
    "KD",
    "MLKD",
    "NST",
    "OFD",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "CrossEntropy",
    "DecoupledKD",
    "FeatureAlignment",
    "FitNet",
    "ReviewKD",
    "SimKD",
]
