---------------------------- MODULE TraceLifecycle ----------------------------
(* Follows recorded traces through Lifecycle. A trace that can't be followed to its end is a deadlock; the last state
   says which trace and which event it is. *)
EXTENDS Lifecycle, Recorded, Integers, Sequences
VARIABLES trace, at

TraceInit == LifeInit /\ trace \in DOMAIN Log /\ at = 1
Event == Log[trace][at]
Step(name) == at <= Len(Log[trace]) /\ Event[1] = name /\ at' = at + 1 /\ UNCHANGED trace

TraceNext == \/ Step("Accept") /\ Accept(Event[2], Event[3])
             \/ Step("Start") /\ Start(Event[2], Event[3])
             \/ Step("Finish") /\ Finish(Event[2])
             \/ Step("Complete") /\ Complete(Event[2])
             \/ Step("Back") /\ Back(Event[2])
             \/ Step("Shut") /\ Shut(Event[3])
             \/ at = Len(Log[trace]) + 1 /\ UNCHANGED <<life, open, trace, at>>
TraceSpec == TraceInit /\ [][TraceNext]_<<life, open, trace, at>>
===============================================================================
