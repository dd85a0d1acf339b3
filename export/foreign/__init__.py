"""Export checkpoints that Rill did not train."""

from rill.export.foreign.run import export_state_dict

__all__ = ["export_state_dict"]
