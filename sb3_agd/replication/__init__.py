from sb3_agd.replication.policy_score_actions import PolicyScoreActions

__all__ = ["PolicyScoreActions"]
