------------------------------- MODULE Lifecycle -------------------------------
(* What those who ask may rely on (I2), and no more: a request waits, runs, and is over exactly once.

   BatchQueue.tla implements this, which TLC checks. Traces of the running code, with all its features, are followed
   here: TraceLifecycle.tla. *)
CONSTANT Requests
VARIABLES life,  \* of each request: "new", "waits", "runs" or "over"
          open   \* whether requests are accepted

LifeInit == life = [r \in Requests |-> "new"] /\ open = TRUE

Are(S, states) == \A r \in S : life[r] \in states
Move(S, to, D) == life' = [r \in Requests |-> IF r \in S THEN to ELSE IF r \in D THEN "over" ELSE life[r]]

(* In all of these, D are waiting requests that end in the same locked section. *)
Accept(S, D) == open /\ Are(S, {"new"}) /\ Are(D, {"waits"}) /\ Move(S, "waits", D) /\ UNCHANGED open
Start(S, D)  == Are(S, {"waits"}) /\ Are(D, {"waits"}) /\ S \cap D = {} /\ Move(S, "runs", D) /\ UNCHANGED open
Finish(S)    == Are(S, {"waits", "runs"}) /\ Move({}, "", S) /\ UNCHANGED open
Complete(S)  == Are(S, {"runs"}) /\ Move({}, "", S) /\ UNCHANGED open
Back(S)      == Are(S, {"runs"}) /\ Move(S, "waits", {}) /\ UNCHANGED open
Shut(D)      == Are(D, {"waits"}) /\ Move({}, "", D) /\ open' = FALSE
Direct(S)    == open /\ Are(S, {"new"}) /\ Move(S, "runs", {}) /\ UNCHANGED open
Forget(S)    == Are(S, {"over"}) /\ Move(S, "new", {}) /\ UNCHANGED open

LifeNext == \E S \in SUBSET Requests :
              \/ \E D \in SUBSET Requests : Accept(S, D) \/ Start(S, D)
              \/ Finish(S) \/ Complete(S) \/ Back(S) \/ Shut(S) \/ Direct(S) \/ Forget(S)
LifeSpec == LifeInit /\ [][LifeNext]_<<life, open>>
===============================================================================
