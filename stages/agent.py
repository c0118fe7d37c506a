"""``python -m stages.agent``: torchrun, but it ends with the process that started it, however that ended.

torchrun puts every rank into a session of its own, so no signal to a group reaches them. Ranks follow their agent, see
``stages.ranks.joined``, and the agent follows whoever launched it: nothing of a training outlives what it belongs to.
"""

import os

from torch.distributed import run

from stages.children import follow

if __name__ == "__main__":
    follow(os.getppid())
    run.main()
