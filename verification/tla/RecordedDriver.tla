---------------------------- MODULE RecordedDriver ----------------------------
(* What verification/driver_race recorded; it writes this module anew. *)
EXTENDS Integers
Callers == 1..1
Completers == {2}
Encoders == 1..1
Log == << << <<"Send", 1, "make", 1>>, <<"Lock", 1, "", 0>>, <<"Lock", 1, "", 0>>, <<"Begin", 1, "", 0>>, <<"Finish", 1, "", 0>>, <<"Unlock", 1, "", 0>>, <<"Unlock", 1, "", 0>> >> >>
===============================================================================
