from sb3_agd.zoo.registration import register

__all__ = ["register"]
