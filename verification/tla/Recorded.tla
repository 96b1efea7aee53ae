-------------------------------- MODULE Recorded --------------------------------
(* What traces.py recorded; it writes this module anew. Each event is
   <<step, its requests, waiting requests that end with it>>. *)
EXTENDS Integers
Names == 1..2
Log == << << <<"Accept", {1}, {}>>, <<"Start", {1}, {}>>, <<"Accept", {2}, {}>>, <<"Complete", {1}, {}>>, <<"Shut", {}, {2}>> >> >>
=================================================================================
