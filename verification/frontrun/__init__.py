"""Small scenes of the real pool and queue, whose schedules are explored bytecode by bytecode with frontrun."""
