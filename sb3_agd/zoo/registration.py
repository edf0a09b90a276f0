"""Puts AGDPPO among the algorithms of RL Baselines3 Zoo."""


def register() -> None:
    """
    Make ``agdppo`` known to rl_zoo3: as an algorithm, with its search space, and with the hyperparameters that this
    package ships. The zoo's scripts are to be imported or run after it.

    The zoo has a registry for all of this but its ``ExperimentManager``, which its ``train`` builds from a name in
    ``rl_zoo3.exp_manager``. The subclass takes that name: otherwise, all options of ``train`` would have to be copied.
    """
    # Here and not above: `--help` of commands that need none of it does not wait
    import rl_zoo3.exp_manager
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params

    from sb3_agd.agdppo import AGDPPO
    from sb3_agd.zoo.experiment_manager import AGDExperimentManager
    from sb3_agd.zoo.search_space import sample_agdppo_params

    ALGOS["agdppo"] = AGDPPO
    HYPERPARAMS_SAMPLER["agdppo"] = sample_agdppo_params
    HYPERPARAMS_CONVERTER["agdppo"] = convert_onpolicy_params
    rl_zoo3.exp_manager.ExperimentManager = AGDExperimentManager  # type: ignore[misc]
