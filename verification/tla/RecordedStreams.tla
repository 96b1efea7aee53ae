----------------------------- MODULE RecordedStreams -----------------------------
(* What traces.py recorded; it writes this module anew. *)
EXTENDS Integers
Slots == 0..1
Shares == << FALSE >>
Log == << << <<"Grant", 0>>, <<"Grant", 1>>, <<"Return", 0>>, <<"Grant", 0>> >> >>
===================================================================================
