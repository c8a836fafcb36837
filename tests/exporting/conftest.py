"""torch.export logs every step of a trace; pytest would keep all of it, at several times the cost of the trace."""

import logging

logging.getLogger("torch.__trace").propagate = False
