"""Rank directions without labels, and write the order down for whoever shows them.

``ranking.json`` in a run's folder, best direction first:

    {
      "format": "hdiscovery-ranking-1",
      "step": 3000,                       training steps behind the ranked checkpoint
      "K": 32, "S": 5.0,
      "samples": 16,                      samples that every direction was tried on
      "shifts": [-5.0, …, 0.0, …, 5.0],   shifts that every sample was given
      "seed": 1,
      "features": {"name": …, "sha256": …},   the net behind consistency, fidelity and effect
      "directions": [
        {
          "k": 7,                         index of the direction, from 0
          "score": 0.71,                  in [0, 1]; the directions are sorted by it, falling
          "accuracy": 0.98,               in [0, 1]
          "monotonicity": 0.95,           in [-1, 1]
          "smoothness": 0.97,             in [0, 1]
          "consistency": 0.41,            in [-1, 1]
          "fidelity": 0.88,               in [0, 1]
          "effect": 0.32,                 at least 0; 1: as different as two unrelated samples
          "redundancy": 0.0,              in [0, 1]; 0 for a direction that is nobody's twin
          "twin_of": null                 or [k, sign]: a better direction that does the same
        }, …                              (sign 1) or the opposite (sign -1)
      ]
    }

Every number is finite. What each measures and how the score is made of them: `Ranked`.
"""
