"""The factor that keeps float16 gradients within their range."""

from __future__ import annotations

from typing import Any

# torch.amp.GradScaler's numbers. Powers of two change no digit of a gradient.
_START, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000


class LossScale:
    """Grows after many good steps in a row, and shrinks after one whose gradients are not all finite.

    torch's own scaler works on optimizers of torch; the bank's tells itself whether its step was made.

    Attributes:
        value: what the loss is to be multiplied by.
    """

    def __init__(self) -> None:
        self.value, self._good_steps = _START, 0

    def update(self, stepped: bool) -> None:
        """Take in whether the last step was made."""
        self._good_steps = self._good_steps + 1 if stepped else 0
        if not stepped:
            self.value = max(1.0, self.value * _BACKOFF)
        elif self._good_steps == _INTERVAL:
            self.value, self._good_steps = self.value * _GROWTH, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the scale that gave `state`."""
        self.value, self._good_steps = state["value"], state["good_steps"]
