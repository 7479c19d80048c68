"""The master: binds the listener and keeps it for life, starts one worker a slot, replaces the dead.

It runs neither uvloop nor worker code, so that what breaks a worker cannot break
what replaces it. `slots` decides, `supervisor` does.
"""
