-------------------------------- MODULE Paths --------------------------------
(* Calls of PyTorch's own operators (vendor) beside calls of Steel's, on an Apple GPU:
   steelworks/devices/mps.py and _mps_gate.py, steelworks/paths/_choose.py and _hazards.py.

   "streams": threads have streams. Outside all blocks a thread is on its base stream, which is the
   default one for the threads in Default and one of its own for the others; in a block of the
   device's (MPSStream.use) it is on that block's stream and has the turn, but for the time that it
   waits for the GPU. A call takes the path that the selector picks: Steel where there is a Steel
   kernel and several streams were seen, else the vendor's. A vendor call has the turn, taken with
   it where its thread has none. A Steel call takes none.

   "owner": one thread owns the device for as long as it is in a worker_scope (a block), or for one
   copy; others are refused.

   Every operation is encoded inside the queue of its thread's stream (from torch 2.15: Queued).
   What a thread does when nobody is in its way is one step: it stands only where it must wait, and
   while it encodes or waits for the GPU, where others may come between. *)
EXTENDS Integers, FiniteSets, TLC

CONSTANTS Threads,  \* the threads
          Default,  \* those whose base stream is the default stream
          Ops,      \* the operators
          Mode,     \* "streams" or "owner"
          Queued,   \* whether streams have queues (torch 2.15)
          Dying,    \* whether a thread may end while it owns the device
          Bug       \* "none", or the name of a mistake; each must be found

VARIABLES pc,    \* of each thread: <<place, what it does, its path, in a block or out>>
          gate,  \* whose turn it is, who holds the gate and how often it entered; Nobody: none
          queue, \* which stream's queue each thread is in
          steel, \* the operators that have a Steel kernel
          seen   \* whether the selector has seen a thread on a stream of its own
vars == <<pc, gate, queue, steel, seen>>

Nobody == 0
Dead == 1     \* the holder is a thread that has ended
NoQueue == "none"

Init == /\ pc = [t \in Threads |-> <<"top", "", "", "out">>]
        /\ gate = [turn |-> Nobody, holder |-> Nobody, depth |-> 0]
        /\ queue = [t \in Threads |-> NoQueue]
        /\ steel = {}
        /\ seen = FALSE

Place(t) == pc[t][1]
What(t) == pc[t][2]
Path(t) == pc[t][3]
Inside(t) == pc[t][4] = "block"
Top(t, in) == pc[t] = <<"top", "", "", in>>
Goto(t, place, what, path, in) == pc' = [pc EXCEPT ![t] = <<place, what, path, in>>]

Current(t) == IF Mode = "owner" THEN "default"
              ELSE IF Inside(t) THEN "block" ELSE IF t \in Default THEN "default" ELSE "base"

(* -------- the turn *)
Free == gate.turn = Nobody
Has(t) == gate.holder = t
Taken(t, depth) == [turn |-> t, holder |-> t, depth |-> depth]
Turned(t) == IF Has(t) THEN [gate EXCEPT !.depth = @ + 1] ELSE Taken(t, 1)
Left(t) == IF gate.depth > 1 THEN [gate EXCEPT !.depth = @ - 1]
           ELSE IF Bug = "the turn is kept" THEN [gate EXCEPT !.holder = Nobody, !.depth = 0]
           ELSE [turn |-> Nobody, holder |-> Nobody, depth |-> 0]
Let == [turn |-> Nobody, holder |-> Nobody, depth |-> 0]   \* while one waits for the GPU

(* -------- the queue of a stream: one thread at a time *)
Others(t) == Threads \ {t}
InDefault(t) == \E u \in Others(t) : queue[u] = "default"
Blocked(t) == Queued /\ Current(t) = "default" /\ InDefault(t)
EnterQueue(t) == queue' = [queue EXCEPT ![t] = IF Queued THEN Current(t) ELSE NoQueue]
LeaveQueue(t) == queue' = [queue EXCEPT ![t] = NoQueue]

(* To encode: now, or when the stream's queue is free. *)
Begin(t, what, path, in) ==
  IF Blocked(t) THEN Goto(t, "queue", what, path, in) /\ UNCHANGED queue
  ELSE /\ Goto(t, "encode", what, path, in)
       /\ IF Bug = "off the queue" THEN UNCHANGED queue ELSE EnterQueue(t)
GetQueue(t) == /\ Place(t) = "queue" /\ ~Blocked(t)
               /\ Goto(t, "encode", What(t), Path(t), pc[t][4]) /\ EnterQueue(t)
               /\ UNCHANGED <<gate, steel, seen>>

(* -------- calls *)
Several(t) == seen \/ Current(t) # "default"
Chosen(t, op) == IF Several(t) /\ op \in steel THEN "steel" ELSE "vendor"
TakesTurn(path) == Mode = "streams" /\ ((path = "vendor" /\ Bug # "no vendor lock") \/ Bug = "Steel takes turns")

Call(t, op) ==
  /\ Top(t, "block") \/ (Top(t, "out") /\ Mode = "streams")
  /\ LET path == Chosen(t, op)
     IN IF ~TakesTurn(path)
        THEN Begin(t, op, path, pc[t][4]) /\ UNCHANGED gate
        ELSE IF Free \/ (Has(t) /\ Bug # "not again")
        THEN Begin(t, op, path, pc[t][4]) /\ gate' = Turned(t)
        ELSE Goto(t, "turn", op, path, pc[t][4]) /\ UNCHANGED <<gate, queue>>
  /\ seen' = Several(t)
  /\ UNCHANGED steel
GetTurn(t) == /\ Place(t) = "turn" /\ Free
              /\ gate' = Turned(t) /\ Begin(t, What(t), Path(t), pc[t][4])
              /\ UNCHANGED <<steel, seen>>
EndCall(t) == /\ Place(t) = "encode"
              /\ Goto(t, "top", "", "", pc[t][4]) /\ LeaveQueue(t)
              /\ gate' = IF What(t) \in {"copy", "once"} \/ TakesTurn(Path(t)) THEN Left(t) ELSE gate
              /\ UNCHANGED <<steel, seen>>

(* An operator gets a Steel kernel, whatever the threads are doing. *)
Migrate(op) == /\ op \notin steel /\ Mode = "streams"
               /\ steel' = steel \cup {op}
               /\ UNCHANGED <<pc, gate, queue, seen>>

(* -------- blocks of the device's streams *)
Use(t) == /\ Mode = "streams" /\ Top(t, "out")
          /\ IF Free THEN Goto(t, "top", "", "", "block") /\ gate' = Taken(t, 1)
             ELSE Goto(t, "enter", "", "", "out") /\ UNCHANGED gate
          /\ UNCHANGED <<queue, steel, seen>>
Enter(t) == /\ Place(t) = "enter" /\ Free
            /\ Goto(t, "top", "", "", "block") /\ gate' = Taken(t, 1)
            /\ UNCHANGED <<queue, steel, seen>>
Leave(t) == /\ Mode = "streams" /\ Top(t, "block")
            /\ Goto(t, "top", "", "", "out") /\ gate' = Left(t)
            /\ UNCHANGED <<queue, steel, seen>>

(* It waits for the GPU, alone (sync) or ahead of a copy to the CPU (copy), inside its stream's queue. *)
Depth(what) == IF what = "copy" THEN 2 ELSE 1
Wait(t, what) == /\ Mode = "streams" /\ Top(t, "block")
                 /\ Goto(t, "commit", what, "", "block")
                 /\ gate' = IF Bug = "waits with the turn" THEN Taken(t, Depth(what)) ELSE Let
                 /\ IF Bug = "casts on the way out" THEN UNCHANGED queue ELSE EnterQueue(t)
                 /\ UNCHANGED <<steel, seen>>
Back(t) == /\ gate' = IF Bug = "comes back without a turn" THEN gate ELSE Taken(t, Depth(What(t)))
           /\ IF What(t) = "copy"
              THEN Goto(t, "encode", "copy", "", "block") /\ EnterQueue(t)
              ELSE Goto(t, "top", "", "", "block") /\ LeaveQueue(t)
EndWait(t) == /\ Mode = "streams" /\ Place(t) = "commit"
              /\ IF Free \/ Bug \in {"waits with the turn", "comes back without a turn"} THEN Back(t)
                 ELSE Goto(t, "again", What(t), "", "block") /\ LeaveQueue(t) /\ UNCHANGED gate
              /\ UNCHANGED <<steel, seen>>
Again(t) == /\ Place(t) = "again" /\ Free /\ Back(t)
            /\ UNCHANGED <<steel, seen>>

(* -------- one owner *)
Claimable == \/ gate.holder = Nobody
             \/ Bug = "no owner"
             \/ (gate.holder = Dead /\ Bug # "a dead owner stays")
Refused(t) == /\ Goto(t, "refused", IF gate.holder = Dead THEN "by the dead" ELSE "", "", "out")
              /\ UNCHANGED <<gate, queue>>
Owned(t) == gate' = [turn |-> Nobody, holder |-> t, depth |-> 1]
Scope(t) == /\ Mode = "owner" /\ Top(t, "out")
            /\ IF Claimable THEN Goto(t, "top", "", "", "block") /\ Owned(t) /\ UNCHANGED queue
               ELSE Refused(t)
            /\ UNCHANGED <<steel, seen>>
Once(t) == /\ Mode = "owner" /\ Top(t, "out")
           /\ IF Claimable THEN Begin(t, "once", "", "out") /\ Owned(t) ELSE Refused(t)
           /\ UNCHANGED <<steel, seen>>
Heed(t) == /\ Place(t) = "refused" /\ Goto(t, "top", "", "", "out")
           /\ UNCHANGED <<gate, queue, steel, seen>>
(* The end of a scope leaves no work behind: it waits for the GPU first. *)
Finish(t) == /\ Mode = "owner" /\ Top(t, "block")
             /\ Goto(t, "commit", "finish", "", "block") /\ EnterQueue(t)
             /\ gate' = [gate EXCEPT !.depth = 2]
             /\ UNCHANGED <<steel, seen>>
Finished(t) == /\ Mode = "owner" /\ Place(t) = "commit"
               /\ Goto(t, "top", "", "", "out") /\ LeaveQueue(t) /\ gate' = Let
               /\ UNCHANGED <<steel, seen>>
(* The thread ends in its scope; another takes its place. *)
Die(t) == /\ Dying /\ Mode = "owner" /\ Top(t, "block")
          /\ Goto(t, "top", "", "", "out")
          /\ gate' = [gate EXCEPT !.holder = Dead]
          /\ UNCHANGED <<queue, steel, seen>>

Next == \/ \E t \in Threads :
             \/ \E op \in Ops : Call(t, op)
             \/ GetTurn(t) \/ GetQueue(t) \/ EndCall(t) \/ Use(t) \/ Enter(t) \/ Leave(t)
             \/ Wait(t, "sync") \/ Wait(t, "copy") \/ EndWait(t) \/ Again(t)
             \/ Scope(t) \/ Once(t) \/ Heed(t) \/ Finish(t) \/ Finished(t) \/ Die(t)
        \/ \E op \in Ops : Migrate(op)

-------------------------------------------------------------------------------
(* R3 to R5: vendor operators share objects; no two threads encode one at a time. *)
Vendor(t) == Place(t) = "encode" /\ Path(t) = "vendor"
OneVendor == Cardinality({t \in Threads : Vendor(t)}) <= 1

(* The owner thread: with one stream, one thread at a time uses the device. *)
OneUser == Mode = "owner" => Cardinality({t \in Threads : Place(t) \in {"encode", "commit"}}) <= 1

(* From torch 2.15 an encoder is touched inside its stream's queue only, which one thread at a time is in. *)
InQueue == Queued => \A t \in Threads : Place(t) \in {"encode", "commit"} <=> queue[t] = Current(t)
OneInQueue == \A t, u \in Threads : queue[t] = "default" /\ queue[u] = "default" => t = u

(* A Steel call is never blocked by a vendor call: it never waits for the turn, nor for a stream that its thread
   does not share. *)
SteelFree == \A t \in Threads : Path(t) = "steel" => \/ Place(t) = "encode"
                                                     \/ (Place(t) = "queue" /\ Current(t) = "default")
(* Who waits for the turn waits for a thread that encodes, or is about to: never for the GPU. *)
WantsTurn(t) == Place(t) \in {"enter", "turn", "again"}
NoWaitForGPU == \A t, u \in Threads : WantsTurn(t) /\ gate.turn = u => Place(u) # "commit"

(* The turn is with the thread that is in a block (and does not wait for the GPU) or in a vendor call; the books
   say so. *)
Holds(t) == IF Inside(t) THEN Place(t) \notin {"commit", "again"}
            ELSE Path(t) = "vendor" /\ Place(t) \in {"queue", "encode"}
TurnKept == Mode = "streams" => /\ \A t \in Threads : gate.turn = t <=> Holds(t)
                                /\ gate.holder = gate.turn
                                /\ gate.depth = 0 <=> gate.turn = Nobody

(* No deadlock: nobody waits, by way of others, for itself. *)
WaitsFor(t, u) == \/ (WantsTurn(t) /\ gate.turn = u)
                  \/ (Place(t) = "queue" /\ u # t /\ queue[u] = "default")
RECURSIVE Reach(_, _)
Reach(set, n) == IF n = 0 THEN set ELSE Reach(set \cup {u \in Threads : \E t \in set : WaitsFor(t, u)}, n - 1)
NoCycle == \A t \in Threads : t \notin Reach({u \in Threads : WaitsFor(t, u)}, Cardinality(Threads))

(* A refusal names an owner that lives. *)
RefusedRightly == \A t \in Threads : What(t) # "by the dead"

(* Whoever waits comes in, if calls and blocks end. No symmetry here. *)
Fairness == \A t \in Threads :
  /\ SF_vars(Enter(t)) /\ SF_vars(GetTurn(t)) /\ SF_vars(Again(t)) /\ SF_vars(GetQueue(t))
  /\ WF_vars(EndCall(t)) /\ WF_vars(EndWait(t)) /\ SF_vars(Leave(t))
Alike == Permutations(Threads)
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness
Waiting(t) == Place(t) \in {"enter", "turn", "again", "queue"}
EveryTurnComes == \A t \in Threads : Waiting(t) ~> ~Waiting(t)
(* Migration: an operator that has a Steel kernel keeps it; when all have one, calls outside blocks soon wait for
   nobody's turn, for ever. *)
Grows == [][steel \subseteq steel']_vars
FreeAtLast == <>(steel = Ops /\ seen) => <>[](\A t \in Threads : Place(t) # "turn")
===============================================================================
