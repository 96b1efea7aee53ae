------------------------------ MODULE GemmPrograms ------------------------------
(* What gemm_programs.py recorded of a kernel; it writes this module anew. Here: two threads of
   one threadgroup that exchange a value, and their threadgroup as a whole. *)
EXTENDS Integers
Programs == <<
  <<[reads |-> {}, writes |-> {0}, gets |-> {}, puts |-> {}, line |-> 1, fenced |-> TRUE],
    [reads |-> {1}, writes |-> {}, gets |-> {}, puts |-> {2}, line |-> 0, fenced |-> FALSE]>>,
  <<[reads |-> {}, writes |-> {1}, gets |-> {}, puts |-> {}, line |-> 1, fenced |-> TRUE],
    [reads |-> {0}, writes |-> {}, gets |-> {}, puts |-> {3}, line |-> 0, fenced |-> FALSE]>>,
  <<[reads |-> {}, writes |-> {}, gets |-> {}, puts |-> {2, 3}, line |-> 0, fenced |-> FALSE]>> >>
GroupOf == <<0, 0, 0>>
Twice == {}
Outputs == {2, 3}
Crews == {<<1, 2>>}
Seats == 1..2
=================================================================================
