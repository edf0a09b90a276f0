"""``python -m sb3_agd COMMAND``: RL-Zoo's commands with AGDPPO among the algorithms."""

from sb3_agd.zoo.cli import main

# Workers of SubprocVecEnv import this module again under another name
if __name__ == "__main__":
    main()
