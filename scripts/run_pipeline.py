"""Expert, demonstrations, student and their comparison from one command; `il_based_rl.pipeline` holds the stages."""

from il_based_rl.comparison import Comparison
from il_based_rl.config import PipelineConfig
from il_based_rl.pipeline import main, pipeline


def run_pipeline(
    env_id: str = "Pendulum-v1",
    ppo_timesteps: int = 200_000,
    num_demo_episodes: int = 50,
    bc_epochs: int = 100,
    seed: int = 42,
    output_dir: str = ".",
) -> Comparison:
    """Run all stages, and return how expert, student and a random policy compare."""
    return pipeline(
        PipelineConfig(
            env_id=env_id,
            ppo_timesteps=ppo_timesteps,
            num_demo_episodes=num_demo_episodes,
            bc_epochs=bc_epochs,
            seed=seed,
            output_dir=output_dir,
        )
    )


if __name__ == "__main__":
    main()
