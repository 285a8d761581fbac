"""How late an idle task of the same event loop is beside each call, on devices that keep a call waiting: ``python -m tests.lateness``.

`calls` has the calls, `devices` the devices, `measure` the clocks. `__main__` makes each call on each device and prints the table.
"""
