"""Single tokens on a GPU, where a cache is at hand and no gradient is wanted: one launch per layer and token.

Slots stay where they are (`Cache.age` says how old each is). At a boundary one physical slot becomes the new open slot,
after its content was added to another one; or, where there is room, an empty slot does. Nothing is shifted, and nothing
waits for the host.

A step leaves the cache it is given unchanged and writes a new one, because the caller may still need the old one (beam
search, a second prompt from one prefix). That costs one write of all states beside the one read. A caller that no
longer needs the old cache donates it (`Cache.donated`), and the step updates its states in place. With plain decay it
then leaves slots unwritten that it only reads: the decay since a slot's last write is kept as a number (`Cache.lag`).
With the delta rule it writes all slots, because the transition changes each of them.

`dynamic.py` finds the boundary and the merge itself; `planned.py` reads them from a plan; `slots.py` has what both do
to the slots.
"""
