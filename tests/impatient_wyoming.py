"""The server for Home Assistant, impatient with silent and slow clients."""

import sys

import app.wyoming_talk
import app.wyoming_wire
from app.wyoming import main

app.wyoming_talk.IDLE_S = 3.0
app.wyoming_wire.LOOK_S = 0.2
app.wyoming_wire.SLOW_S = 1.0

if __name__ == "__main__":
    sys.exit(main())
