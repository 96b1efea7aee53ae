----------------------------- MODULE TraceStreams -----------------------------
(* Follows recorded traces of stream pools: a slot belongs to one thread at a time (I1), unless the pool shares. The
   pool of StreamPool.tla keeps to this: its OneOwner and NoneLost say more. A trace that can't be followed to its end
   is a deadlock. *)
EXTENDS RecordedStreams, Integers, Sequences
VARIABLES holders, trace, at

TraceInit == holders = [s \in Slots |-> 0] /\ trace \in DOMAIN Log /\ at = 1
Event == Log[trace][at]
Step(name) == at <= Len(Log[trace]) /\ Event[1] = name /\ at' = at + 1 /\ UNCHANGED trace
Grant(s) == (holders[s] = 0 \/ Shares[trace]) /\ holders' = [holders EXCEPT ![s] = @ + 1]
Return(s) == holders[s] > 0 /\ holders' = [holders EXCEPT ![s] = @ - 1]

TraceNext == \/ Step("Grant") /\ Grant(Event[2])
             \/ Step("Return") /\ Return(Event[2])
             \/ at = Len(Log[trace]) + 1 /\ UNCHANGED <<holders, trace, at>>
TraceSpec == TraceInit /\ [][TraceNext]_<<holders, trace, at>>
===============================================================================
